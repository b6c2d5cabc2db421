"""Caption benchmarks end to end, with a fake model whose figures are worked by hand and with a real one."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval.__main__ import main
from eval.benchmark import Item
from eval.benchmarks import find
from eval.benchmarks.captions import score as score_captions
from eval.benchmarks.captions import with_java_metrics
from eval.metrics import captions
from eval.predict import Tally
from eval.report import read
from eval.run import Options, evaluate

SENTENCES = {
    "cat": "a cat looks into the camera",
    "rocket": "one white rocket waits on concrete",
    "stairs": "people climb up an iron staircase",
}


@pytest.fixture
def data(tmp_path, put_photo) -> Path:
    """Three photos with one caption each, of six words, no two of which share a pair of words."""
    folder = tmp_path / "three"
    for name in SENTENCES:
        put_photo(folder / f"{name}.jpg", name)
    records = [{"file": f"{name}.jpg", "captions": [text.capitalize() + "."]} for name, text in SENTENCES.items()]
    (folder / "captions.json").write_text(json.dumps(records))
    return folder


def measure(data: Path, model, out: str = "out") -> dict:
    chosen = Options(find("captions_json"), data, "fake", data.parent / out, "all")
    results = evaluate(chosen, load=lambda name, task, device: model)
    assert results is not None
    return results


def values(results: dict) -> dict[str, float]:
    return {name: figure["value"] for name, figure in results["figures"].items()}


def test_perfect_captions(data, fake):
    # cosine 1 for each n, times 10: CIDEr's largest value
    expected = {"CIDEr": 1000, "BLEU-4": 100, "ROUGE-L": 100, "BLEU-1": 100, "BLEU-2": 100, "BLEU-3": 100}
    assert values(measure(data, fake(SENTENCES))) == pytest.approx(expected)


def test_one_caption_of_three_is_wrong(data, fake):
    told = SENTENCES | {"stairs": "xylophones zigzag beneath violet unicorns tonight"}
    results = measure(data, fake(told))
    # two perfect photos of three; BLEU: 12 of 18 words, 10 of 15 pairs, 8 of 12 triples, 6 of 9 quadruples
    assert values(results) == pytest.approx(
        {name: 2 / 3 * (1000 if name == "CIDEr" else 100) for name in values(results)}
    )
    assert [item["scores"]["CIDEr"] for item in read(data.parent / "out")[1]] == pytest.approx([1000, 1000, 0])
    # with three photos a draw misses all, or hits none but, wrong ones often enough to span everything
    assert results["figures"]["CIDEr"]["low"] == 0
    assert results["figures"]["BLEU-4"]["high"] == pytest.approx(100)
    submitted = json.loads((data.parent / "out/predictions.json").read_text())
    assert submitted[0] == {"image_id": "cat.jpg", "caption": SENTENCES["cat"]}


def test_bleu_from_sums_equals_bleu(data, fake):
    told = {
        "cat": "a cat looks into a camera",
        "rocket": "one white rocket",
        "stairs": "people climb up an iron ladder",
    }
    results = measure(data, fake(told))
    sums = np.array([item["sums"] for item in read(data.parent / "out")[1]], float)
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"):
        metric = find("captions_json").of_sums[name]
        assert metric(sums.sum(0, keepdims=True))[0] == pytest.approx(results["figures"][name]["value"], abs=1e-6), name
    assert results["figures"]["BLEU-4"]["low"] < results["figures"]["BLEU-4"]["value"]


def test_the_running_score_ends_at_the_final_one(data, fake):
    told = SENTENCES | {"cat": "a cat sleeps"}
    benchmark = find("captions_json")
    items = benchmark.read(data, "all")
    tally = Tally(benchmark, items)
    for item in items:
        tally.add([(item, told[item.image.stem])])
    final = values(measure(data, fake(told)))["CIDEr"]
    assert tally.total / tally.count == pytest.approx(final)
    assert str(tally) == f"CIDEr {final:.1f}"


def test_nocaps_domains_are_means_over_their_photos(tmp_path, put_photo, fake):
    names = list(SENTENCES)
    for name in names:
        put_photo(tmp_path / f"val/{name}.jpg", name)
    images = [{"id": n, "file_name": f"{name}.jpg", "domain": "in" if n else "out"} for n, name in enumerate(names)]
    annotations = [{"id": n, "image_id": n, "caption": SENTENCES[name]} for n, name in enumerate(names)]
    (tmp_path / "nocaps_val_4500_captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    chosen = Options(find("nocaps"), tmp_path, "fake", tmp_path / "out", "val")
    model = fake({"cat": SENTENCES["cat"], "rocket": SENTENCES["rocket"]}, default="xylophones zigzag tonight")
    results = evaluate(chosen, load=lambda name, task, device: model)
    assert results is not None
    assert results["groups"]["domain"] == {
        "in": {"value": pytest.approx(500), "n": 2},
        "out": {"value": pytest.approx(1000), "n": 1},
    }
    assert json.loads((tmp_path / "out/predictions.json").read_text())[2]["image_id"] == 2


def test_the_command_measures_a_model_as_its_library_captions(data, random_model, capsys):
    import vlm
    from vlm.files.digest import files_sha256
    from vlm.tasks.base import SENTENCE_SEARCH
    from vlm.tasks.caption import PROMPT

    out = data.parent / "out"
    command = [
        "captions_json",
        "--data",
        str(data),
        "--model",
        str(random_model),
        "--out",
        str(out),
        "--batch-size",
        "2",
    ]
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"captions_json (three, all), model {random_model}, n = 3"
    assert printed[1].startswith("CIDEr ") and printed[-1] == f"report: {out / 'report.html'}"

    results, items = read(out)
    model = vlm.load(str(random_model))
    assert [item["prediction"] for item in items] == [model.caption(data / f"{name}.jpg") for name in SENTENCES]
    assert results["weights_sha256"] == files_sha256([random_model / "model.safetensors"])
    assert results["prompt"] == PROMPT
    assert SENTENCE_SEARCH.items() <= results["settings"].items()
    assert results["weights_of"] == "model.safetensors" and results["title"] is None
    assert results["command"] == "python -m eval " + " ".join(command)


def test_a_title_stands_in_what_is_printed_and_in_the_report(data, random_model, capsys):
    out = data.parent / "out"
    command = ["captions_json", "--data", str(data), "--model", str(random_model), "--out", str(out)]
    assert main([*command, "--title", "three <photos>"]) == 0
    assert capsys.readouterr().out.startswith(f"three <photos>: captions_json, model {random_model}, n = 3\n")
    assert read(out)[0]["title"] == "three <photos>"
    assert "<h1>three &lt;photos&gt;: captions_json</h1>" in (out / "report.html").read_text()


def test_a_model_that_cannot_do_the_task_is_named_with_it(data, random_model, capsys):
    (data / "vqa.json").write_text(json.dumps([{"image": "cat.jpg", "question": "What?", "answer": "cat"}]))
    for name, task in (("vqa_json", "answer questions"), ("retrieval_json", "embed photos and sentences")):
        assert main([name, "--data", str(data), "--model", str(random_model), "--out", str(data.parent / name)]) == 2
        error = capsys.readouterr().err
        assert f"model {str(random_model)!r} cannot {task}" in error and error.count("\n") == 1


# METEOR and SPICE


def test_meteor_has_an_interval_of_its_own_and_leaves_bleu_alone(data, fake, monkeypatch):
    plain = measure(data, fake(SENTENCES))
    rows = np.zeros((3, 23))  # two captions that are their reference, of four content and two function words; one wrong
    rows[:, :4] = [6, 6, 2, 2]
    rows[:2, 4:8], rows[:2, 21:] = [4, 4, 2, 2], 6
    monkeypatch.setattr(captions, "require_java", lambda name: None)
    monkeypatch.setattr(captions, "meteor_statistics", lambda *sentences: rows)
    benchmark = with_java_metrics(find("captions_json"), ["METEOR"])
    chosen = Options(benchmark, data, "fake", data.parent / "out", "all")
    results = evaluate(chosen, load=lambda name, task, device: fake(SENTENCES))
    assert results is not None
    assert values(results).pop("METEOR") == pytest.approx(100 * 2 / 3)  # precision and recall of 8 of 12, 4 of 6
    assert (results["figures"]["METEOR"]["low"], results["figures"]["METEOR"]["high"]) == pytest.approx((0, 100))
    for name, figure in plain["figures"].items():
        assert results["figures"][name] == figure
    assert results["predicted_in_these_seconds"] == 0  # scored again, not predicted again


def test_java_metrics_fail_before_the_model_is_loaded(data, monkeypatch, capsys):
    command = ["captions_json", "--data", str(data), "--model", "absent", "--java-metrics"]
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    for names in (["METEOR"], ["METEOR", "SPICE"]):
        assert main([*command, *names]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: METEOR needs ") and error.count("\n") == 1
    assert main(["gqa", "--data", str(data), "--java-metrics", "SPICE"]) == 2
    assert capsys.readouterr().err.startswith("error: gqa has no SPICE; --java-metrics is for coco_caption, nocaps, ")


def test_cider_of_one_photo_comes_with_a_remark(tmp_path):
    items = [Item(number, tmp_path / "a.jpg", ("a cat on a sofa",)) for number in range(2)]
    with pytest.warns(UserWarning, match="CIDEr of one photo is 0"):
        score_captions(items[:1], ["a cat on a sofa"])
    score_captions(items, ["a cat on a sofa", "a dog"])  # no remark
