"""The commands that ask about photos and texts, with a small random model, as a user types them."""

import io
import json
import math
import shlex
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

import vlm
from tasks import classify, entail, ground, summarize, vqa
from tasks.__main__ import commands, main
from tasks._command import printable
from vlm.errors import ArgumentError
from vlm.predictor import Predictor

ROOT = Path(__file__).parents[2]
CAT, COFFEE = (str(ROOT / "datasets" / "sample" / f"{name}.jpg") for name in ("cat", "coffee"))
ASKED = {
    "vqa": ["--question", "is it red?", "--max-length", "4"],
    "ground": ["--phrase", "the sofa"],
    "entail": ["--text", "two cats"],
    "classify": ["--labels", "cat,dog"],
    "match": ["--text", "two cats"],
}
CANNOT = {
    "vqa": "answer questions",
    "ground": "find what a phrase names",
    "entail": "judge sentences about photos",
    "classify": "give photos labels",
    "summarize": "summarise texts",
    "match": "say whether sentences fit photos",
}


@pytest.fixture(scope="module")
def model(all_tasks) -> vlm.Model:
    return vlm.load(str(all_tasks))


@pytest.fixture
def run(all_tasks, capsys):
    """`run(task, *options)`: exit code, lines on stdout and lines on stderr."""

    def call(task: str, *options: str) -> tuple[int, list[str], list[str]]:
        code = main([task, "--model", str(all_tasks), *options])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return call


@pytest.mark.parametrize("task", ASKED)
def test_a_bad_file_loses_only_itself(run, tmp_path, task):
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    images = [part for image in (CAT, str(tmp_path / "bad.jpg"), COFFEE) for part in ("--image", image)]
    code, out, err = run(task, *images, *ASKED[task])
    assert code == 1 and len(err) == 1 and "bad.jpg" in err[0] and err[0].startswith("error: ")
    assert [line.split(": ")[0] for line in out] == [CAT, COFFEE]


@pytest.mark.parametrize("task", ASKED)
def test_a_command_without_a_photo_says_so(run, task):
    assert run(task, *ASKED[task]) == (2, [], ["error: no photo was given; name one with --image photo.jpg"])


@pytest.mark.parametrize("task", ASKED)
def test_batches_change_nothing_and_json_has_the_path(run, task):
    images = ["--image", CAT, "--image", COFFEE]
    _, together, _ = run(task, *images, *ASKED[task], "--json")
    _, alone, _ = run(task, *images, *ASKED[task], "--json", "--batch-size", "1")
    assert [json.loads(line)["path"] for line in together] == [CAT, COFFEE]
    for first, second in zip(map(json.loads, together), map(json.loads, alone), strict=True):
        for name in ("answer", "label", "box"):
            assert first.get(name) == second.get(name)


def test_every_question_is_asked_about_every_photo(run, model):
    questions = ["is it red?", "what is on the sofa?"]
    options = [part for question in questions for part in ("--question", question)]
    code, out, err = run("vqa", "--image", CAT, "--image", COFFEE, *options, "--max-length", "4", "--json")
    assert (code, err) == (0, [])
    records = [json.loads(line) for line in out]
    assert [(record["path"], record["question"]) for record in records] == [
        (path, question) for path in (CAT, COFFEE) for question in questions
    ]
    for record in records:
        assert record["answer"] == model.answer(record["path"], record["question"], max_tokens=4)


def test_one_question_prints_the_answer_alone(run, model):
    expected = model.answer(CAT, "is it red?", choices=["yes", "no"])
    assert run("vqa", "--image", CAT, "--question", "is it red?", "--answers", "yes,no") == (0, [expected], [])


def test_answers_may_lie_in_a_file_and_all_be_weighed(run, tmp_path):
    (tmp_path / "answers.txt").write_text("yes\n\nred, and white\n", encoding="utf-8")
    options = ["--answers", str(tmp_path / "answers.txt"), "--score-all", "--top", "9", "--json"]
    code, out, _ = run("vqa", "--image", CAT, "--question", "is it red?", *options)
    assert code == 0 and {json.loads(line)["answer"] for line in out} == {"yes", "red, and white"}


def test_several_answers_have_their_probabilities(run):
    options = [
        "vqa",
        "--image",
        CAT,
        "--question",
        "is it red?",
        "--answers",
        "yes,no,red",
        "--score-all",
        "--top",
        "9",
    ]
    _, plain, _ = run(*options)
    records = [json.loads(line) for line in run(*options, "--json")[1]]
    assert sum(record["probability"] for record in records) == pytest.approx(1)
    assert plain == [f"{record['answer']} {100 * record['probability']:.1f} %" for record in records]


def test_questions_come_from_a_pipe(run, model, monkeypatch, tmp_path):
    """Each photo is encoded once; a question without words is reported, and the rest are answered."""
    encoded: list[int] = []
    encode_images = Predictor.encode_images
    monkeypatch.setattr(Predictor, "encode_images", lambda *args: encoded.append(1) or encode_images(*args))
    monkeypatch.setattr(sys, "stdin", io.StringIO("is it red?\n\n ? \nwhat is it"))
    code, out, err = run("vqa", "--image", CAT, "--image", str(tmp_path / "gone.jpg"), "--max-length", "4")
    assert len(encoded) == 1
    answers = {text: model.answer(CAT, text, max_tokens=4) for text in ("is it red?", "what is it")}
    assert code == 1 and out == [f"{question}: {answer}" for question, answer in answers.items()]
    assert len(err) == 2 and "gone.jpg" in err[0] and "contains no words" in err[1]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert run("vqa", "--image", CAT) == (0, [], [])
    monkeypatch.setattr(sys, "stdin", io.StringIO("is it red?\n"))
    assert run("vqa", "--image", str(tmp_path / "gone.jpg"))[:2] == (1, [])


def test_a_terminal_is_asked_for_questions(run, model, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("is it red?\n\nnever read\n"))
    code, out, err = run("vqa", "--image", CAT, "--max-length", "4")
    assert code == 0 and out == [model.answer(CAT, "is it red?", max_tokens=4)]
    assert err == ["Type a question and press Enter; an empty line ends.", "? ? "]


def test_a_box_is_printed_and_drawn(run, model, tmp_path):
    box = model.ground(CAT, "the sofa")
    out = tmp_path / "out.png"
    code, lines, _ = run("ground", "--image", CAT, "--phrase", "the sofa", "--draw", str(out))
    assert code == 0 and lines == [" ".join(f"{value:.1f}" for value in box)]
    with Image.open(out) as drawn, Image.open(CAT) as photo:
        assert drawn.size == photo.size
        corner = [min(int(min(box[i], box[i + 2])), side - 1) for i, side in enumerate(photo.size)]
        assert drawn.getpixel(tuple(corner)) == (255, 0, 0) != photo.getpixel(tuple(corner))


@pytest.mark.parametrize("kind", ["itself", "link", "hard link", "folder"])
def test_nothing_is_drawn_over_the_photo(run, tmp_path, kind):
    photo, other = tmp_path / "photo.png", tmp_path / "other.png"
    with Image.open(CAT) as image:
        image.resize((64, 64)).save(photo)
    before = photo.read_bytes()
    if kind == "link":
        other.symlink_to(photo)
    elif kind == "hard link":
        other.hardlink_to(photo)
    elif kind == "folder":
        (tmp_path / "linked").symlink_to(tmp_path)
        other = tmp_path / "linked/photo.png"
    else:
        other = photo
    code, _, err = run("ground", "--image", str(photo), "--phrase", "the sofa", "--draw", str(other))
    assert code == 2 and "would replace the photo itself" in err[0] and photo.read_bytes() == before


def test_a_region_is_described(run, model):
    expected = model.describe_region(CAT, (10, 20, 200, 150))
    assert run("ground", "--image", CAT, "--region", "10,20,200,150") == (0, [printable(expected)], [])
    # the second photo is too small for it
    code, out, _ = run("ground", "--image", CAT, "--region", "440,0,2000,50", "--image", COFFEE, "--json")
    records = [json.loads(line) for line in out]
    with Image.open(COFFEE) as photo:
        fits = photo.width > 440
    assert [record["region"] for record in records] == [[440, 0, 2000, 50]] * (1 + fits) and code == int(not fits)


def test_probabilities_of_a_sentence(run, model):
    code, out, _ = run("entail", "--image", CAT, "--text", "two cats", "--caption", "a sofa", "--json")
    record = json.loads(out[0])
    assert code == 0 and record["label"] == model.entail(CAT, "two cats", "a sofa")
    assert sum(record["probabilities"].values()) == pytest.approx(1) and len(record["probabilities"]) == 3


def test_labels_in_order_of_their_probability(run, model):
    code, out, _ = run("classify", "--image", CAT, "--labels", "cat,dog,sofa", "--top", "2", "--json")
    records = [json.loads(line) for line in out]
    assert code == 0 and [record["label"] for record in records] == [
        answer.text for answer in model.run("classify", [CAT], [["cat", "dog", "sofa"]])[0][:2]
    ]
    _, plain, _ = run("classify", "--image", CAT, "--labels", "cat,dog,sofa", "--top", "2")
    assert plain[0] == f"{records[0]['label']} {100 * records[0]['probability']:.1f} %"


def test_a_pair_takes_sentences_around_labels(small_clip, capsys):
    command = ["--image", CAT, "--labels", "cat,dog", "--model", f"open_clip:small/{small_clip / 'small.pt'}"]
    found = []
    for templates in ([], ["--template", "a photo of a {}."], ["--template", "art of {}", "--template", "{}"]):
        assert classify.main([*command, *templates, "--top", "2", "--json"]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1] != found[2]


def test_texts_and_files_are_summarised(run, model, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("Two cats sit on a sofa.", encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\xff")
    expected = model.summarize("Two cats sit on a sofa.", max_tokens=6)
    short = ["--max-length", "6"]
    assert run("summarize", "--text", "Two cats sit on a sofa.", *short) == (0, [expected], [])
    files = [part for name in ("a.txt", "b.txt", "c.txt") for part in ("--file", str(tmp_path / name))]
    code, out, err = run("summarize", *files, *short)
    assert code == 1 and out == [f"{tmp_path / 'a.txt'}: {expected}"]
    assert ["b.txt" in err[0], "UTF-8" in err[0], "c.txt" in err[1], len(err)] == [True, True, True, 2]
    monkeypatch.setattr(sys, "stdin", (tmp_path / "a.txt").open(encoding="utf-8"))
    code, out, _ = run("summarize", "--file", "-", "--json", *short)
    assert code == 0 and json.loads(out[0])["summary"] == expected


def test_sentences_that_fit(run, model):
    texts = ["two cats on a red sofa", "a dog"]
    expected = model.run("match", [CAT, CAT], texts)
    photo = model.encode([CAT])[0]
    for text, value in zip(texts, expected, strict=True):
        source = model.task("match").source(None, text)
        (answers,) = model.predictor.score([source], [photo.patches], ["no", "yes"])
        assert value == pytest.approx({answer.text: math.exp(answer.score) for answer in answers}["yes"])
    options = [part for text in texts for part in ("--text", text)]
    code, out, err = run("match", "--image", CAT, *options)
    assert (code, err) == (0, [])
    assert out == [f"{text}: {value:.3f}" for text, value in zip(texts, expected, strict=True)]
    _, out, _ = run("match", "--image", CAT, *options, "--json")
    assert [json.loads(line)["probability"] for line in out] == pytest.approx(expected)


@pytest.mark.parametrize("language, task", [("en", "caption"), ("zh", "caption_zh"), ("de", "caption_de")])
def test_captions_in_a_language(run, model, language, task):
    code, out, err = run("caption", "--image", CAT, "--language", language, "--max-length", "5")
    assert (code, err) == (0, [])
    assert out == [model.run(task, [CAT], max_tokens=5)[0][0].text]
    assert out == [model.caption(CAT, language=language, max_tokens=5)]


def test_an_unknown_language(model):
    with pytest.raises(ArgumentError, match=r"language='fr' is unknown; choose one of: en, (de, zh|zh, de)"):
        model.caption(CAT, language="fr")


@pytest.mark.parametrize(
    "command, words",
    [
        (["vqa", "--question", "what?", "--score-all"], ["--score-all", "--answers"]),
        (["vqa", "--question", "what?", "--answers", "gone.txt"], ["--answers 'gone.txt' cannot be read", "No such"]),
        (["vqa", "--question", "what?", "--answers", ", ,"], ["contains no names"]),
        (["vqa", "--question", "what?", "--top", "0"], ["--top 0"]),
        (["vqa", "--question", "?"], ["contains no words"]),
        (["vqa", "--question", "what?", "--batch-size", "0"], ["--batch-size 0"]),
        (["ground"], ["--phrase", "--region"]),
        (["ground", "--region", "1,2,3"], ["--region '1,2,3' is not four numbers"]),
        (["ground", "--region", "9,9,5,5"], ["cat.jpg", "9,9,5,5 is not a box in a photo of 451x300"]),
        (["ground", "--phrase", "x", "--draw", "x.png", "--image", COFFEE], ["--draw 'x.png' is for one photo"]),
        (["ground", "--phrase", "the sofa", "--draw", "gone/x.png"], ["--draw 'gone/x.png' cannot be written"]),
        (["ground", "--phrase", "the sofa", "--draw", "x.what"], ["--draw 'x.what' cannot be written"]),
        (["entail", "--text", " "], ["contains no words"]),
        (["classify", "--labels", "a,b", "--template", "x"], ["scores labels as answers"]),
        (["classify", "--labels", "a,b", "--top", "0"], ["--top 0"]),
    ],
)
def test_bad_options_give_one_line(run, tmp_path, monkeypatch, command, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*command, "--image", CAT)
    assert code in (1, 2) and out == [] and len(err) == 1 and all(word in err[0] for word in words), err


@pytest.mark.parametrize("task", CANNOT)
def test_a_model_that_only_captions_says_so(task, capsys, random_captioner):
    options = ["--text", "x"] if task == "summarize" else ["--image", CAT, *ASKED[task]]
    assert main([task, "--model", str(random_captioner), *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    cannot = f"{str(random_captioner)!r} cannot {CANNOT[task]} (it was trained for: caption)"
    able = json.loads((ROOT / "vlm" / "weights" / "tiny" / "config.json").read_text())["tasks"]
    name = {"vqa": "answer"}.get(task, task)
    hint = {"match": "train one, see docs/training.md"}.get(name, "such as ofa:OFA-Sys/ofa-base")
    assert cannot in err and ("such as tiny" if name in able else hint) in err


@pytest.fixture(scope="module")
def random_captioner(all_tasks, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("captioner")
    for file in all_tasks.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    del config["tasks"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_help_imports_nothing_heavy():
    code = "import sys\nfrom tasks import classify, entail, ground, summarize, vqa\n"
    code += "for task in (classify, entail, ground, summarize, vqa):\n    try: task.main(['--help'])\n"
    code += "    except SystemExit: pass\n"
    code += "print(sorted(m for m in ('torch', 'timm', 'numpy', 'tokenizers') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for option in ("--labels", "--text", "--phrase", "--file", "--question"):
        assert option in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_console_command_lists_them():
    assert set(commands()) >= {"vqa", "ground", "entail", "classify", "summarize"}
    assert not any(name.startswith("_") for name in commands())
    for task in (vqa, ground, entail, classify, summarize):
        assert commands()[task.__name__.removeprefix("tasks.")] == (task.__doc__ or "").splitlines()[0]


def test_the_how_to_page_names_commands_and_options_that_exist():
    lines = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8").splitlines()
    found = [shlex.split(line)[1:] for line in lines if line.startswith("    vlm ")]
    assert {command[0] for command in found} >= {"vqa", "ground", "entail", "classify", "summarize"}
    for task, *words in found:
        known = {f"--{field.name.replace('_', '-')}" for field in fields(import_module(f"tasks.{task}").Args)}
        assert {word for word in words if word.startswith("--")} <= known, task
