"""A run from the command line's point of view: killed, short of memory, short of photos, by one process and by two."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from eval.benchmark import Item, check_items
from eval.benchmarks import find
from eval.journal import Journal
from eval.predict import Batches, out_of_memory
from eval.run import Options, evaluate
from vlm.errors import ArgumentError, DataError
from vlm.files.lock import locked

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("astronaut", "cat", "coffee", "flower", "rocket")


@pytest.fixture
def photos(tmp_path, put_photo) -> Path:
    """Five photos, two questions each; ten people say the photo's name, or three of ten do."""
    asked = []
    for number, name in enumerate(NAMES):
        put_photo(tmp_path / f"data/{name}.jpg", name)
        for place, agree in enumerate([10, 3]):
            answers = [name] * agree + ["thing"] * (10 - agree)
            question = f"{name} {place}"
            asked.append({"image": f"{name}.jpg", "question_id": 2 * number + place, "question": question})
            asked[-1] |= {"answers": answers, "source": "sure" if agree == 10 else "unsure"}
    (tmp_path / "data/vqa.json").write_text(json.dumps(asked))
    return tmp_path / "data"


def options(data: Path, **changes) -> Options:
    settings = {"model": "fake", "out": data.parent / "out", "split": "vqa", "batch_size": 3} | changes
    return Options(find(settings.pop("benchmark", "vqa_json")), data, **settings)


def run(model, chosen: Options) -> dict:
    results = evaluate(chosen, load=lambda name, task, device: model)
    assert results is not None
    return results


def answers() -> dict[str, str]:
    """Right for all questions but the two about the rocket."""
    return {f"{name} {place}": name for name in NAMES[:4] for place in range(2)}


# Figures and files


def test_figures_by_hand(photos, fake):
    results = run(fake(answers(), default="no idea"), options(photos, command="python -m eval ..."))
    # sure: 4 of 5 right; unsure: 0.9 for each of 4 (three of ten people agree)
    assert results["figures"]["accuracy"]["value"] == pytest.approx(100 * (4 + 4 * 0.9) / 10)
    assert results["figures"]["accuracy"]["low"] < 76 < results["figures"]["accuracy"]["high"]
    assert results["groups"]["source"] == {
        "sure": {"value": pytest.approx(80), "n": 5},
        "unsure": {"value": pytest.approx(72), "n": 5},
    }
    assert results["prompt"] == " answer?"
    assert {"n": 10, "of": 10, "missing": 0}.items() <= results.items()
    assert results == json.loads((photos.parent / "out/results.json").read_text())
    expected = [{"question_id": n, "answer": NAMES[n // 2] if n < 8 else "no idea"} for n in range(10)]
    assert json.loads((photos.parent / "out/predictions.json").read_text()) == expected


def test_questions_about_a_photo_share_its_batch_and_its_object(photos, fake):
    model, seen = fake(answers()), []
    model.answer = lambda images, questions: seen.append(list(map(id, images))) or ["x"] * len(images)
    run(model, options(photos, batch_size=4))
    assert [[batch.index(image) for image in batch] for batch in seen] == [[0, 0, 2, 2], [0, 0, 2, 2], [0, 0]]


def test_limit_takes_the_first_items(photos, fake):
    results = run(fake(answers()), options(photos, limit=4))
    assert (results["n"], results["of"]) == (4, 10)
    assert results["figures"]["accuracy"]["value"] == pytest.approx(95)


def test_a_private_split_ends_with_a_submission(tmp_path, put_photo, fake):
    put_photo(tmp_path / "test2015/COCO_test2015_000000000042.jpg")
    asked = {"data_subtype": "test-dev2015", "questions": [{"question_id": 1, "image_id": 42, "question": "What?"}]}
    (tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json").write_text(json.dumps(asked))
    chosen = options(tmp_path, benchmark="vqav2", split="test-dev", out=tmp_path / "out")
    assert run(fake({"What?": "cat"}), chosen)["figures"] == {}
    assert json.loads((tmp_path / "out/predictions.json").read_text()) == [{"question_id": 1, "answer": "cat"}]
    assert "private" in (tmp_path / "out/report.html").read_text()


# Resuming


def files_of(out: Path) -> dict[str, object]:
    """What a run left, without what differs from run to run."""
    results = json.loads((out / "results.json").read_text())
    for name in ("seconds", "predicted_in_these_seconds", "finished"):
        results.pop(name)
    results["settings"].pop("processes")
    return {"results": results} | {
        name: json.loads((out / name).read_text()) for name in ("predictions.json", "items.json")
    }


SCRIPT = """
import importlib.util, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("helpers", {conftest!r})
helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)
from eval.benchmarks import find
from eval.run import Options, evaluate

class Dying(helpers.FakeModel):
    def _reply(self, keys):
        if len(self.sizes) == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._reply(keys)

def main():
    model = Dying({told!r})
    chosen = Options(find("vqa_json"), Path({data!r}), "fake", Path(sys.argv[1]), "vqa", batch_size=3)
    results = evaluate(chosen, load=lambda name, task, device: model)
    print(model.sizes, results is not None)

main()
"""


@pytest.fixture
def script(photos, tmp_path) -> Path:
    path = tmp_path / "script.py"
    conftest = str(Path(__file__).with_name("conftest.py"))
    path.write_text(SCRIPT.format(conftest=conftest, told=answers(), data=str(photos)))
    return path


def call(*command: str | Path | int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)


def test_a_killed_run_goes_on_and_ends_as_an_unbroken_one(script, tmp_path):
    assert call(sys.executable, script, tmp_path / "whole", 99).returncode == 0
    killed = call(sys.executable, script, tmp_path / "killed", 2)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed/results.json").exists()
    assert len((tmp_path / "killed/predictions.jsonl").read_text().splitlines()) == 1 + 6
    resumed = call(sys.executable, script, tmp_path / "killed", 99)
    assert resumed.stdout.startswith("[3, 1]"), resumed.stderr  # only the four items that were left
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("launcher", ["accelerate.commands.launch", "torch.distributed.run"])
def test_two_processes_equal_one(script, tmp_path, launcher):
    assert call(sys.executable, script, tmp_path / "one", 99).returncode == 0
    flags = [
        "--multi_gpu",
        "--main_process_port=0",
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        "--num_processes=2",
    ]
    flags = flags if launcher.startswith("accelerate") else ["--standalone", "--nproc-per-node=2"]
    done = call(sys.executable, "-m", launcher, *flags, script, tmp_path / "two", 99)
    assert done.returncode == 0, done.stderr
    assert sorted(line.split()[-1] for line in done.stdout.splitlines()) == ["False", "True"]
    rows = [len((tmp_path / "two" / name).read_text().splitlines()) for name in FILES]
    assert rows == [1 + 6, 1 + 4]  # three photos and two, with two questions each
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
    # and one process goes on where two were
    resumed = call(sys.executable, script, tmp_path / "two", 0)
    assert resumed.stdout.split("\n")[0] == "[] True", resumed.stderr


FILES = ("predictions.jsonl", "predictions.1.jsonl")


def test_a_finished_run_is_not_predicted_again(photos, fake):
    run(fake(answers()), options(photos))
    again = fake({})
    assert run(again, options(photos))["figures"]["accuracy"]["value"] == pytest.approx(76)
    assert again.sizes == []


def test_more_items_and_another_batch_size_go_on_in_the_same_folder(photos, fake):
    run(fake(answers()), options(photos, limit=4))
    model = fake(answers())
    assert run(model, options(photos, batch_size=10))["n"] == 10
    assert model.sizes == [6]


def test_a_torn_last_line_is_predicted_again(photos, fake):
    run(fake(answers()), options(photos))
    path = photos.parent / "out/predictions.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    model = fake(answers())
    assert run(model, options(photos))["figures"]["accuracy"]["value"] == pytest.approx(76)
    assert model.sizes == [1]
    assert len(path.read_bytes().splitlines()) == 1 + 10


@pytest.mark.parametrize("keep", [0, 5])
def test_a_torn_first_line_is_no_run(photos, fake, keep):
    path = photos.parent / "out/predictions.jsonl"
    path.parent.mkdir()
    path.write_bytes(b'{"benchmark"'[:keep])
    assert run(fake(answers()), options(photos))["n"] == 10


@pytest.mark.parametrize(
    "change, field",
    [({"weights": "1" * 64}, "weights"), ({"split": "cocoqa"}, "split"), ({"data": "another"}, "items")],
)
def test_a_folder_of_another_run_is_refused(photos, fake, change, field):
    run(fake(answers()), options(photos))
    asked = json.loads((photos / "vqa.json").read_text())
    if change.pop("data", None):
        asked[0]["question"] = "Why?"
        (photos / "vqa.json").write_text(json.dumps(asked))
    (photos / "cocoqa.json").write_text(json.dumps(asked))
    model = fake(answers(), weights=change.pop("weights", "0" * 64))
    with pytest.raises(DataError, match=f"belongs to a run with {field}=.*give another --out"):
        run(model, options(photos, **change))


def test_an_id_that_is_predicted_twice_is_refused(tmp_path):
    for rank, rows in enumerate([[(1, "a"), (2, "b")], [(2, "c")]]):
        journal = Journal(tmp_path, {"benchmark": "x"})
        journal.open(rank)
        journal.append(rows)
        journal.close()
    with pytest.raises(DataError, match="predicts 2 a second time"):
        journal.read()


def test_damage_in_the_middle_is_an_error(tmp_path):
    journal = Journal(tmp_path, {"benchmark": "x"})
    journal.open()
    journal.append([(1, "a")])
    journal.close()
    with (tmp_path / "predictions.jsonl").open("a") as file:
        file.write("garbage\n[1]\n")
    with pytest.raises(DataError, match="line 3, is damaged"):
        journal.read()


# Memory


def test_a_batch_that_does_not_fit_is_halved_and_later_ones_stay_small(photos, fake, capsys):
    model = fake(answers())
    model.most = 2
    assert run(model, options(photos, batch_size=8))["figures"]["accuracy"]["value"] == pytest.approx(76)
    assert model.sizes == [8, 4, 2, 2, 2, 2, 2]
    assert "out of memory with 8 items; going on with 4" in capsys.readouterr().err


def test_an_item_that_never_fits_is_an_error(photos, fake):
    model = fake(answers())
    model.most = 0
    with pytest.raises(ArgumentError, match="single item does not fit"):
        run(model, options(photos))


@pytest.mark.parametrize(
    "error, expected",
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 80 bytes."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert out_of_memory(error) is expected


def test_torch_says_out_of_memory_in_these_words():
    import torch

    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert out_of_memory(error.value)
    assert issubclass(torch.cuda.OutOfMemoryError, RuntimeError)


def test_other_errors_of_the_model_are_not_hidden():
    def broken(items, images):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        Batches(broken, 4)([1, 2], [1, 2])  # pyright: ignore[reportArgumentType]


# Missing photos


def test_missing_photos_fail_the_run_before_the_model_is_loaded(photos):
    (photos / "cat.jpg").unlink()
    (photos / "rocket.jpg").unlink()

    def load(*args):
        raise AssertionError("the model was loaded")

    with pytest.raises(
        DataError, match=r"2 of 5 photos cannot be used: '.*cat\.jpg' does not exist; .*--allow-missing"
    ):
        evaluate(options(photos), load=load)
    listed = (photos.parent / "out/missing.txt").read_text().splitlines()
    assert [Path(line.split("\t")[0]).name for line in listed] == ["cat.jpg", "rocket.jpg"]


def test_missing_and_damaged_photos_are_left_out_where_allowed(photos, fake):
    (photos / "cat.jpg").unlink()
    (photos / "rocket.jpg").write_bytes(b"no photo")
    with pytest.raises(DataError, match="1 of 5 photos"):
        run(fake(answers()), options(photos))
    results = run(fake(answers()), options(photos, allow_missing=True))
    assert (results["n"], results["of"], results["missing"]) == (6, 10, 2)
    assert results["figures"]["accuracy"]["value"] == pytest.approx(95)
    assert "2 photos could not be used" in (photos.parent / "out/report.html").read_text()


def test_a_damaged_photo_fails_the_run_at_its_end_and_is_tried_again(photos, fake, put_photo):
    (photos / "rocket.jpg").write_bytes(b"no photo")
    with pytest.raises(DataError, match=r"1 of 5 photos cannot be used: '.*rocket\.jpg' is not an image"):
        run(fake(answers()), options(photos))
    assert not (photos.parent / "out/results.json").exists()
    put_photo(photos / "rocket.jpg", "rocket")
    model = fake(answers())
    assert run(model, options(photos))["n"] == 10
    assert model.sizes == [2]
    assert not (photos.parent / "out/missing.txt").exists()


def test_no_photo_at_all_is_an_error_even_where_missing_ones_are_allowed(photos, fake):
    for photo in photos.glob("*.jpg"):
        photo.unlink()
    with pytest.raises(DataError, match="none of the 5 photos"):
        run(fake(answers()), options(photos, allow_missing=True))


# Arguments


@pytest.mark.parametrize("change", [{"split": "test"}, {"batch_size": 0}, {"limit": 0}])
def test_impossible_options_are_refused(photos, change):
    with pytest.raises(ArgumentError, match=r"choose one of: vqa, cocoqa|below 1"):
        options(photos, **change)


# Two runs at once, and texts that files cannot hold


def test_a_second_run_is_refused_while_one_writes(photos, fake):
    model = fake(answers())
    with locked(photos.parent / "out"), pytest.raises(ArgumentError, match="another run is writing into"):
        run(model, options(photos))
    assert run(model, options(photos))["n"] == 10


def test_predictions_that_two_runs_have_both_made_are_no_damage(tmp_path):
    for rank in range(2):
        journal = Journal(tmp_path, {"benchmark": "x"})
        journal.open(rank)
        journal.append([(1, "a"), (2, "b")])
        journal.close()
    assert journal.read()[0] == {1: "a", 2: "b"}


def test_a_file_is_no_folder_for_results(photos, fake):
    with pytest.raises(ArgumentError, match="is a file; name a folder"):
        run(fake(answers()), options(photos, out=photos / "vqa.json"))


def test_half_a_surrogate_pair_in_the_data_ends_no_run(tmp_path, put_photo, fake):
    put_photo(tmp_path / "data/a.jpg", "cat")
    put_photo(tmp_path / "data/b.jpg", "coffee")
    asked = [
        {"image": f"{name}.jpg", "question_id": name, "question": "what\ud800?", "answers": [f"{name}\udcff"]}
        for name in "ab"
    ]
    (tmp_path / "data/vqa.json").write_text(json.dumps(asked))
    results = run(fake({"what??": "a?"}), options(tmp_path / "data"))
    assert results["n"] == 2
    for file in ("results.json", "items.json", "predictions.json", "report.html"):
        (tmp_path / "out" / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("lacking", [0, 1])
def test_items_without_answers_among_others_are_refused_before_any_work(photos, lacking):
    asked = json.loads((photos / "vqa.json").read_text())
    items = [Item(row["question_id"], photos / row["image"], tuple(row["answers"])) for row in asked]
    items[lacking] = replace(items[lacking], references=())
    with pytest.raises(DataError, match=f"1 of 10 items have no answers, {lacking} "):
        check_items(items, "x")
    with pytest.raises(DataError, match="10 of 10 items have no captions"):
        check_items([replace(item, references=()) for item in items], "x", captioned=True)
    check_items([replace(item, references=()) for item in items], "x")  # a private split
