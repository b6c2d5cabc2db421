"""What all commands have in common: arguments, one line for each error, and how they end."""

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tasks import classify
from tasks.__main__ import main as vlm_main
from tasks._command import exit_code, json_line, named_as_options, one_value_each, parse, printable, repeatable
from tasks._photos import read_list
from vlm.errors import ArgumentError, DataError

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "datasets" / "sample"
CAT = str(SAMPLE / "cat.jpg")


def run(module: str, *arguments: str, **changes) -> subprocess.CompletedProcess[bytes]:
    """A command as a process of its own; `changes` are environment variables."""
    command = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **changes}
    return subprocess.run(command, capture_output=True, env=environment, cwd=ROOT, timeout=120)


# Arguments


@pytest.mark.parametrize(
    "command, words",
    [
        ("caption --imgae x.jpg", ["unknown option --imgae", "did you mean --image?", "vlm caption --help"]),
        ("caption --image x.jpg --num-beams x", ["--num-beams 'x' is not a whole number", "vlm caption --help"]),
        ("caption --image x.jpg --temperature hot --sample", ["--temperature 'hot' is not a number"]),
        ("caption --image x.jpg --language fr", ["--language fr", "en, zh, de"]),
        ("caption --image", ["--image needs a value"]),
        ("caption --image x.jpg --sample yes", ["'yes' belongs to no option"]),
        ("vqa --image x.jpg --top two", ["--top 'two' is not a whole number"]),
        ("convert model.pt", ["OUT must be given"]),
        ("retrieve serch x", ["'serch'", "index, search"]),
        ("retrieve index photos", ["--out must be given"]),
        ("retrieve index photos --out x --batch-size 1e3", ["--batch-size '1e3' is not a whole number"]),
        ("train tiny_caption --dta x --out y", ["unknown option --dta", "--data must be given"]),
        ("train tiny_caption --data x --out y --phases.0.lr fast", ["--phases.0.lr 'fast' is not a number"]),
        ("train", ["CONFIG, --data, --out must be given"]),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line(command, words, capsys):
    name, *arguments = command.split()
    assert import_module(f"tasks.{name}").main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert all(word in err for word in words), err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["caption_coco", "--dta", "x"], ["unknown option --dta", "--data"]),
        (["vqav2", "--limit", "many"], ["--limit 'many' is not a whole number"]),
        (["vqav2", "--data", "x", "--limit", "0"], ["--limit 0 is below 1"]),
        (["compare", "--htm", "x"], ["unknown option --htm", "--html"]),
        (["table"], ["no runs"]),
    ],
)
def test_a_mistake_in_the_arguments_of_the_harness_is_one_line(arguments, words, capsys):
    assert import_module("eval.__main__").main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and all(word in err for word in words), err


@pytest.mark.parametrize(
    "name, option",
    [
        ("caption", "--image"),
        ("classify", "--template"),
        ("vqa", "--question"),
        ("entail", "--text"),
        ("ground", "--phrase"),
        ("summarize", "--file"),
        ("text_to_image", "--text"),
        ("train", "--annotations"),
    ],
)
def test_an_option_of_several_values_takes_them_at_once_or_one_by_one(name, option):
    kind = import_module(f"tasks.{name}").Args
    assert option in repeatable(kind)
    rest = {"classify": ["--labels", "x"], "text_to_image": ["--model", "m", "--vqgan", "v"], "train": ["c"]}
    rest["train"] += ["--data", "d", "--out", "o"]
    rest = rest.get(name, []) + (["--image", "p"] if "--image" in repeatable(kind) and option != "--image" else [])
    field = option[2:]
    for arguments in ([option, "a", "b", option, "c"], [option, "a", option, "b", "c"]):
        assert getattr(parse("x", kind, None, [*rest, *arguments]), field) == ("a", "b", "c")


def test_values_of_other_options_stay_where_they_are():
    given = ["index", "--image", "a", "b", "--top", "3", "-", "--image=x", "--image", "-", "c", "--", "--image", "d"]
    assert one_value_each(given, {"--image"}) == [
        "index", "--image", "a", "--image", "b", "--top", "3", "-", "--image=x", "--image", "-", "--image", "c",
        "--", "--image", "d",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "error, shown",
    [
        ("num_captions=9 with beams=5; give 1 to 5", "--num-captions 9 with --num-beams 5; give 1 to 5"),
        ("temperature=0.0 is not above 0; set beams=1", "--temperature 0.0 is not above 0; set --num-beams 1"),
        ("more than max_pixels=64000; raise max_pixels", "more than --max-megapixels 0.064; raise --max-megapixels"),
        ("'seed=1/top=2.jpg' does not exist", "'seed=1/top=2.jpg' does not exist"),  # a name of a file
    ],
)
def test_errors_name_the_options_of_commands(error, shown):
    assert named_as_options(error) == shown


def test_options_that_would_do_nothing_are_refused(capsys):
    for arguments, words in [
        (["caption", "--top-k", "5"], "--top-k needs --sample"),
        (["caption", "--temperature", "1"], "--temperature needs --sample"),
        (["caption", "--seed", "3"], "--seed needs --sample"),
        (["caption", "--sample", "--num-beams", "3"], "leave one of them out"),
        (["vqa", "--question", "what?", "--answers", "a,b", "--max-length", "3"], "--max-length has no meaning"),
        (["vqa", "--question", "what?", "--answers", "a", "--score-all", "--num-beams", "3"], "--score-all"),
        (["vqa", "--question", "what?", "--score-all"], "--answers"),
    ]:
        assert import_module(f"tasks.{arguments[0]}").main(["--image", CAT, *arguments[1:]]) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-3", "1e-9"])
@pytest.mark.parametrize("command", ["caption --image x", "retrieve index x --out y", "classify --image x --labels a"])
def test_a_size_that_allows_no_photo_is_refused(command, value, capsys):
    name, *arguments = command.split()
    assert import_module(f"tasks.{name}").main([*arguments, "--max-megapixels", value]) == 2
    assert "--max-megapixels" in capsys.readouterr().err


# Lists of names


def test_a_long_list_is_no_file():
    names = [str(number) for number in range(5000)]
    assert read_list("--labels", ",".join(names)) == names
    assert read_list("--labels", "a" * 300) == ["a" * 300]
    assert read_list("--labels", "cat, dog/wolf,\0") == ["cat", "dog/wolf", "\0"]


@pytest.mark.parametrize("value", ["lables.csv", "gone.txt", "{folder}/labels", "Labels.TXT", "{folder}"])
def test_a_file_that_is_not_there_is_no_name(tmp_path, value):
    value = value.format(folder=tmp_path)
    with pytest.raises(ArgumentError, match="cannot be read") as refused:
        read_list("--labels", value)
    assert "\n" not in str(refused.value) and "--labels" in str(refused.value)


def test_commas_separate_names_in_tables_alone(tmp_path):
    (tmp_path / "a.csv").write_text('cat,dog\n"horse, white",\n', encoding="utf-8-sig")
    (tmp_path / "a.txt").write_text("cat\nhorse, white\n\n")
    assert read_list("--labels", str(tmp_path / "a.csv")) == ["cat", "dog", "horse, white"]
    assert read_list("--labels", str(tmp_path / "a.txt")) == ["cat", "horse, white"]


# Photos


def test_an_empty_folder_beside_good_photos_loses_itself_alone(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    command = ["--labels", "cat,dog", "--image", str(tmp_path / "empty"), CAT, str(tmp_path / "*.png")]
    assert import_module("tasks.classify").main(command) == 1
    out, err = capsys.readouterr()
    assert out == f"{CAT}: cat\n" and err.count("error: ") == 2 and "empty" in err and "*.png" in err
    assert import_module("tasks.classify").main(["--labels", "a", "--image", str(tmp_path), str(tmp_path / "?")]) == 2


# How a command ends


@pytest.mark.parametrize(
    "error, code, words",
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (OSError(28, "No space left on device", "/x/y"), 2, "error: '/x/y': No space left on device"),
        (OSError(30, "Read-only file system"), 2, "error: Read-only file system"),
        (DataError("two\nlines"), 2, "error: two lines"),
    ],
)
def test_whatever_ends_a_command_has_one_line_and_a_code(error, code, words, capsys):
    def fail() -> int:
        raise error

    assert exit_code(fail) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(words) and err.count("\n") == (1 if words else 0)


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 // 0)


@pytest.mark.parametrize("module", ["eval", "tasks"])
def test_a_reader_that_stops_ends_the_command(module):
    read, write = os.pipe()
    os.close(read)
    arguments = ["list"] if module == "eval" else ["--help"]
    done = subprocess.run([sys.executable, "-m", module, *arguments], stdout=write, stderr=subprocess.PIPE, cwd=ROOT)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_an_output_that_is_full_is_one_line():
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "eval", "list"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: No space left on device") and done.stderr.count(b"\n") == 1


def test_ctrl_c_while_a_question_is_awaited(all_tasks):
    command = [sys.executable, "-m", "tasks.vqa", "--image", CAT, "--model", str(all_tasks)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

    def listen() -> None:  # a shell's background jobs, and what they start, are deaf to Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, **pipes, cwd=ROOT, preexec_fn=listen) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"what animal is this?\n")
        process.stdin.flush()
        assert process.stdout.readline()  # the model is loaded and waits for the next question
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert (process.returncode, error) == (130, b"stopped\n")


# Text that the output cannot hold


@pytest.mark.parametrize("encoding, options", [("ascii", []), ("cp1252", ["--json"]), ("utf-8", ["--json"])])
def test_names_that_the_output_cannot_hold(tmp_path, encoding, options):
    names = [b"\xff\xfe.jpg", "名 é.jpg".encode(), b"two\nlines.jpg"]
    for name in names:
        shutil.copy(CAT.encode(), os.path.join(os.fsencode(tmp_path), name))
    done = run(
        "tasks.classify", "--image", str(tmp_path), "--labels", "cat,Hündin", *options, PYTHONIOENCODING=encoding
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    if options:  # always UTF-8, and the file can be found
        found = {os.fsencode(json.loads(line.decode())["path"]) for line in lines}
        assert found == {os.path.join(os.fsencode(tmp_path), name) for name in names}


@pytest.mark.parametrize("command", ["match --text", "classify --labels", "vqa --question", "entail --text"])
def test_arguments_in_another_encoding_are_refused(command, all_tasks, capsys):
    name, option = command.split()
    model = "tiny" if name == "classify" else str(all_tasks)
    latin_1 = os.fsdecode(b"caf\xe9")  # as Python reads it from a command line
    assert import_module(f"tasks.{name}").main(["--model", model, "--image", CAT, option, latin_1]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and "UTF-8" in err and err.count("\n") == 1


def test_json_is_utf_8_whatever_it_holds():
    for record in ({"a": "é\udcff"}, {"a": "\ud83d"}, {"a": "\n \u2028 名"}):
        line = json_line(record)
        assert json.loads(line.encode()) == record and "\n" not in line


def test_a_line_stays_one_line():
    assert printable("a\nb\x1b[31m\udcff é名") == "a\\nb\\x1b[31m\\udcff é名"


def test_a_json_file_holds_a_list(tmp_path):
    file = tmp_path / "labels.json"
    file.write_text('["cat, the", "dog"]')
    assert read_list("--labels", str(file)) == ["cat, the", "dog"]
    for text, reason in (("{", "is not JSON"), ('{"a": 1}', "must hold a list of texts"), ("[1]", "a list of texts")):
        file.write_text(text)
        with pytest.raises(ArgumentError, match=reason):
            read_list("--labels", str(file))


@pytest.mark.parametrize("value", ["lables.json", "~/nothere/labels", "./nothere/labels", "/nothere/labels"])
def test_a_list_that_is_not_there(value):
    with pytest.raises(ArgumentError, match="cannot be read: No such file"):
        read_list("--labels", value)


@pytest.mark.parametrize("value", ["cat;dog", "cat|dog", "cat\tdog"])
def test_names_that_are_not_separated_by_commas(value):
    with pytest.raises(ArgumentError, match="is one name; separate names by commas"):
        read_list("--labels", value)


def test_a_name_may_hold_a_slash():
    assert read_list("--labels", "salt/pepper, cat") == ["salt/pepper", "cat"]
    assert read_list("--labels", "salt/pepper") == ["salt/pepper"]


@pytest.mark.parametrize(
    "argv", [["classify", "--image", "a.jpg", "--labels", "cat", "--labels", "dog"],
             ["caption", "--image", "a.jpg", "--num-beams=2", "--num_beams", "3"],
             ["generate", "--prompt", "a", "--prompt", "b", "--out", "a.png", "--out", "b.png"]],
)  # fmt: skip
def test_an_option_of_one_value_given_twice_is_refused(argv, capsys):
    assert vlm_main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --") and "is given twice; give it once" in err and err.count("\n") == 1


def test_the_only_label_is_remarked_on(capsys):
    with pytest.warns(UserWarning, match="'cat' is the only label"):
        classify.main(["--image", CAT, "--labels", "cat"])


@pytest.mark.parametrize(
    "argv, reason",
    [
        (["--num-beams", "100000000"], "--num-beams 100000000 is above 10000"),
        (["--max-length", "0"], "--max-length 0 leaves no room for the shortest answer"),
        (["--max-length", "1000"], "--max-length 1000 allows answers of"),
        (["--sample", "--temperature", "inf"], "--temperature inf is not a number above 0"),
    ],
)
def test_settings_of_a_search_that_have_no_meaning(argv, reason, capsys):
    assert vlm_main(["caption", "--image", CAT, *argv]) == 2
    err = capsys.readouterr().err
    assert reason in err and err.count("\n") == 1, err
