"""What a run leaves for people: the report, the comparison, the table, and the command line itself."""

import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from eval import report, table
from eval.__main__ import main
from eval.benchmarks import BENCHMARKS, find
from eval.compare import compare_runs
from eval.run import Options, evaluate
from vlm.errors import ArgumentError, DataError

NAMES = ("astronaut", "cat", "coffee", "flower", "rocket")
EVIL = '<script>alert(1)</script> "><img src=x onerror=alert(2)> {{ 7 * 7 }}'


def measure(folder: Path, model, out: str, **changes) -> Path:
    """Answer the questions of `vqa.json` and return the run's folder."""
    chosen = Options(find("vqa_json"), folder, "fake", folder.parent / out, "vqa", **changes)
    evaluate(chosen, load=lambda name, task, device: model)
    return folder.parent / out


@pytest.fixture
def data(tmp_path, put_photo) -> Path:
    """One question about each of five photos, whose answer is the photo's name."""
    folder = tmp_path / "rooms"
    for name in NAMES:
        put_photo(folder / f"{name}.jpg", name)
    asked = [{"image": f"{name}.jpg", "question": name, "answer": name} for name in NAMES]
    (folder / "vqa.json").write_text(json.dumps(asked))
    return folder


def right(*names: str) -> dict[str, str]:
    return {name: name for name in names}


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def check_page(text: str) -> Page:
    """Nothing on the page runs, and nothing comes from elsewhere."""
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert names.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        address = attributes.get("src") or attributes.get("href") or "data:"
        assert address.startswith("data:"), address
    assert "url(" not in text and "@import" not in text
    return page


# The report


def test_the_report_stands_alone_and_shows_figures_and_examples(data, fake):
    page = check_page((measure(data, fake(right(*NAMES[:3])), "run") / "report.html").read_text())
    assert "vqa_json (rooms, vqa)" in page.text
    assert "60.0" in page.text
    photos = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(photos) == 3 * 5  # best, worst, random
    assert sum(tag == "rect" for tag, _ in page.tags) == report.BINS


def test_best_and_worst_are_in_order(data, fake):
    folder = measure(data, fake(right("cat", "rocket")), "run")
    rows = {name: items for name, _, items in report.choose(report.read(folder)[1], "accuracy")}
    assert {item["question"] for item in rows["Best"][:2]} == {"cat", "rocket"}
    assert {item["question"] for item in rows["Worst"][:3]} == {"astronaut", "coffee", "flower"}
    assert (
        rows["Random"]
        == {name: items for name, _, items in report.choose(report.read(folder)[1], "accuracy")}["Random"]
    )


def test_texts_that_would_run_are_shown_as_text(data, fake):
    asked = [{"image": "cat.jpg", "question": EVIL, "answers": [EVIL] * 10, "source": EVIL}]
    (data / "vqa.json").write_text(json.dumps(asked))
    model = fake({EVIL: EVIL})
    model.name = EVIL
    one = measure(data, model, "one", command=EVIL)
    text = (one / "report.html").read_text()
    page = check_page(text)
    assert page.text.count(EVIL) >= 5  # model, group, question, prediction, reference, command
    assert "49" not in re.sub(r"data:[^\"]*", "", page.text)
    worse = measure(data, fake({EVIL: EVIL + "?"}), "two")
    compare_runs([one, worse], data / "compare.html")
    assert EVIL in check_page((data / "compare.html").read_text()).text


def test_a_photo_that_is_gone_leaves_a_hole_in_the_page(data, fake):
    folder = measure(data, fake(), "run")
    results, items = report.read(folder)
    (data / "cat.jpg").unlink()
    assert "photo not found" in report.render(results, items)


def test_boxes_are_drawn_in_percent(tmp_path, put_photo):
    put_photo(tmp_path / "cat.jpg")
    item = {"image": str(tmp_path / "cat.jpg"), "box": [0.1, 0.2, 0.6, 0.9], "predicted_box": [0.0, 0.0, 0.5, 1.0]}
    item |= {"question": "the cat", "premise": "", "references": [], "prediction": "box", "scores": {}}
    source = report.report_template("macros.html").make_module().__getattribute__("photo")(report.card(item))
    assert "left:10.00%;top:20.00%;width:50.00%;height:70.00%" in source
    assert 'class="box guess"' in source


@pytest.mark.parametrize(
    "values, counts",
    [([0.0, 100.0, 100.0], {0: 1, 19: 2}), ([0.0, 9.9, 150.0], {0: 2, 15: 1}), ([-3.0, 52.0], {0: 1, 10: 1})],
)
def test_histogram_by_hand(values, counts):
    made = report.histogram(values)
    assert {number: count for number, count in enumerate(made["counts"]) if count} == counts
    assert made["mean"] == pytest.approx(sum(values) / len(values))


def test_results_say_how_they_came_about(data, fake):
    folder = measure(data, fake(right("cat")), "run", command="python -m eval vqa_json --data rooms")
    results = report.read_results(folder)
    assert results["command"] == "python -m eval vqa_json --data rooms"
    assert results["weights_sha256"] == "0" * 64
    assert results["settings"] == {"beams": 1, "limit": None, "batch_size": 16, "device": "cpu", "processes": 1}
    assert {"python", "torch", "numpy"} <= results["versions"].keys()
    assert report.summary(results).splitlines() == [
        "vqa_json (rooms, vqa), model fake, n = 5",
        f"accuracy  {report.show_figure(results['figures']['accuracy'])}",
    ]


# Comparing


def test_compare_finds_the_difference_and_its_sign(data, fake):
    base, better = measure(data, fake(right("cat")), "a"), measure(data, fake(right(*NAMES)), "b")
    text = compare_runs([base, better], data / "compare.html")
    assert "+80.0 [" in text
    assert "-80.0 [" in compare_runs([better, base], data / "compare.html")
    page = check_page((data / "compare.html").read_text())
    assert "-80.0" in page.text and "loses most" in page.text and "gains most" not in page.text


def test_a_run_equals_itself(data, fake):
    base = measure(data, fake(right("cat")), "a")
    assert "+0.0 [+0.0, +0.0], p 1.000" in compare_runs([base, base], data / "compare.html")


def test_compare_refuses_runs_over_other_items(data, fake):
    base, half = measure(data, fake(), "a"), measure(data, fake(), "b", limit=2)
    with pytest.raises(DataError, match="another set of items"):
        compare_runs([base, half], data / "compare.html")
    with pytest.raises(ArgumentError, match="two or more"):
        compare_runs([base], data / "compare.html")
    with pytest.raises(DataError, match=r"results\.json' is missing"):
        compare_runs([base, data], data / "compare.html")


# The table


def result(**changes) -> dict:
    return {
        "benchmark": "captions_json",
        "data": "flickr8k",
        "split": "all",
        "n": 1000,
        "of": 1000,
        "figures": {
            "CIDEr": {"value": 52.54, "low": 49.14, "high": 55.86},
            "BLEU-4": {"value": 20.84},
            "ROUGE-L": {"value": 48.0},
        },
        "model": "tiny",
        "weights_sha256": "abcdef" * 10 + "0000",
        "settings": {"limit": None},
        "finished": "2026-01-01T00:00:00+00:00",
    } | changes


def test_recalls_are_shown_all():
    figures = {
        f"{way} recall@{k}": {"value": float(k)} for k in (1, 5, 10) for way in ("text-to-image", "image-to-text")
    }
    lines = table.markdown([result(benchmark="retrieval_json", figures=figures)]).splitlines()
    assert [line.split(" | ")[2:] for line in lines[2:8]] == [
        [name, f"{figures[name]['value']:.1f} |"] for name in figures
    ]


def test_the_table_by_hand():
    other = result(model="/home/someone/blip|large", weights_sha256="f" * 64, figures={"CIDEr": {"value": 70.0}})
    older = result(figures={"CIDEr": {"value": 1.0}}, finished="2025-01-01T00:00:00+00:00")
    partial = result(benchmark="vqa_json", data="coco", split="vqa", n=10, of=474, figures={"accuracy": {"value": 9.0}})
    partial["settings"] = {"limit": 10}
    assert table.markdown([other, result(), older, partial]).splitlines() == [
        "| test set | n | figure | blip\\|large | tiny |",
        "|---|---:|---|---:|---:|",
        "| captions_json (flickr8k, all) | 1,000 | CIDEr | 70.0 | 52.5 [49.1, 55.9] |",
        "|  |  | BLEU-4 |  | 20.8 |",
        "| vqa_json (coco, vqa) | 10 of 474 | accuracy |  | 9.0 |",
        "",
        "Points of a hundred, with 95 % bootstrap intervals over the items in brackets. Weights (SHA-256): "
        "blip\\|large (weights) `ffffffffffff`, tiny (weights) `abcdefabcdef`. Made by:",
        "",
        "```",
        "python -m eval captions_json --data data/flickr8k --model blip|large --split all",
        "python -m eval captions_json --data data/flickr8k --model tiny --split all",
        "python -m eval vqa_json --data data/coco --model tiny --split vqa --limit 10",
        "```",
    ]


def test_two_titles_of_one_test_set_have_a_row_each():
    figures = {"CIDEr": {"value": 50.0}}
    lines = table.markdown(
        [result(title=title, model=title, figures=figures) for title in ("mine", "yours")]
    ).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| mine: captions_json", "| yours: captions_json"]


def test_the_table_says_what_a_test_set_is_and_which_weights_were_hashed():
    named = result(title="1,000 photos of Flickr8k's test set", weights_of="model.safetensors")
    lines = table.markdown([named]).splitlines()
    assert lines[2].startswith("| 1,000 photos of Flickr8k's test set: captions_json | 1,000 | CIDEr | ")
    assert any("tiny (model.safetensors) `abcdefabcdef`" in line for line in lines)
    words = shlex.split(lines[-2])
    assert words[words.index("--title") + 1] == named["title"] and "--limit" not in words


def write_result(folder: Path, **changes) -> None:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(result(**changes)))


def test_readme_gets_all_models_and_a_card_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_result(tmp_path / "runs/a")
    write_result(tmp_path / "runs/b", model="other")
    card = tmp_path / "vlm/weights/tiny/MODEL_CARD.md"
    card.parent.mkdir(parents=True)
    for path in (tmp_path / "README.md", card):
        path.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    assert main(["table", "runs"]) == 0
    first = (tmp_path / "README.md").read_text()
    assert "| other | tiny |" in first and "old" not in first
    assert first.startswith("before\n") and first.endswith("\nafter\n")
    assert "other" not in card.read_text() and "52.5" in card.read_text()
    assert main(["table", "runs"]) == 0  # writing it again changes nothing
    assert (tmp_path / "README.md").read_text() == first


def test_table_complains_before_it_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_result(tmp_path / "runs/a")
    (tmp_path / "one.md").write_text(f"{table.BEGIN}\n{table.END}")
    (tmp_path / "two.md").write_text("no marks")
    assert main(["table", "runs", "--into", "one.md", "two.md"]) == 2
    assert "'two.md' lacks the lines <!-- results:begin -->" in capsys.readouterr().err
    assert (tmp_path / "one.md").read_text() == f"{table.BEGIN}\n{table.END}"
    assert main(["table", "two.md"]) == 2
    assert "holds no results.json" in capsys.readouterr().err


# The command line


def test_list_names_every_benchmark_with_what_it_needs(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for benchmark in BENCHMARKS.values():
        assert f"{benchmark.name}: {benchmark.metrics[0]}" in printed
        assert benchmark.needs in printed


@pytest.mark.parametrize(
    "argv", [["--help"], ["list"], ["vqav2", "--help"], ["compare", "--help"], ["table", "--help"]]
)
def test_nothing_heavy_is_imported_to_print_help(argv):
    code = f"""
import sys
from eval.__main__ import main
try:
    main({argv})
except SystemExit:
    pass
print(sorted(sys.modules.keys() & {{"torch", "numpy", "PIL", "jinja2", "timm", "accelerate"}}), file=sys.stderr)
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.stderr == "[]\n"
    assert len(finished.stdout) > 300


@pytest.mark.parametrize(
    "argv, message",
    [
        (["coco_captions", "--data", "x"], "did you mean 'coco_caption'"),
        (["coco_caption", "--data", "absent"], "'absent' is not a folder"),
        (["vqav2", "--data", "x", "--split", "train"], "choose one of: val, test-dev, test"),
        (["compare", "x"], "two or more"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
