"""Files that appear whole or not at all."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vlm.files.atomic import replacing, write_bytes, write_text


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    file = tmp_path / "model.bin"
    file.write_bytes(b"old")
    with replacing(file) as partial:
        partial.write_bytes(b"new")
        assert file.read_bytes() == b"old" and partial.parent == tmp_path
    assert file.read_bytes() == b"new" and list(tmp_path.iterdir()) == [file]


def test_a_pipe_is_written_into_and_stays(tmp_path):
    """What is no file, such as /dev/null, must not be replaced by one."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
    write_text(pipe, "a page")
    assert reader.communicate(timeout=20)[0] == b"a page" and pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_device_stays_a_device_and_is_named():
    with pytest.raises(OSError, match="No space left") as caught:
        write_text("/dev/full", "a page")
    assert caught.value.filename == "/dev/full" and Path("/dev/full").is_char_device()


def test_a_failure_without_a_name_gets_that_of_the_file(tmp_path):
    file = tmp_path / "model.bin"
    with pytest.raises(OSError) as caught, replacing(file):
        raise OSError(28, "No space left on device")  # as `write` says it
    assert caught.value.filename == str(file)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_block_that_fails_leaves_the_old_file_and_no_partial_one(tmp_path, error):
    file = tmp_path / "model.bin"
    file.write_bytes(b"old")
    with pytest.raises(type(error)), replacing(file) as partial:
        partial.write_bytes(b"half")
        raise error
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_a_block_that_fails_makes_no_new_file(tmp_path):
    with pytest.raises(ValueError, match="no such value"), replacing(str(tmp_path / "model.bin")) as partial:
        partial.write_bytes(b"half")
        raise ValueError("no such value")
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_writes_nothing_leaves_the_old_file(tmp_path):
    file = tmp_path / "model.bin"
    file.write_bytes(b"old")
    with pytest.raises(FileNotFoundError), replacing(file):
        pass
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_processes_do_not_share_a_partial_file(tmp_path, monkeypatch):
    with replacing(tmp_path / "a") as first:
        first.touch()
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with replacing(tmp_path / "a") as second:
            second.touch()
            assert first != second


def start(code: str, *arguments: object) -> "subprocess.Popen[bytes]":
    """Another process, with `replacing` and `sys` imported."""
    head = "import sys\nfrom vlm.files.atomic import replacing\n"
    command = [sys.executable, "-c", head + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])


def test_a_file_that_two_processes_write_is_always_whole(tmp_path):
    file, size = tmp_path / "model.bin", 1 << 20
    code = """
        for _ in range(40):
            with replacing(sys.argv[1]) as partial:
                partial.write_bytes(sys.argv[2].encode() * int(sys.argv[3]))
    """
    whole = {letter.encode() * size for letter in "ab"}
    file.write_bytes(b"a" * size)
    writers = [start(code, file, letter, size) for letter in "ab"]
    seen: set[bytes] = set()
    while any(writer.poll() is None for writer in writers):
        seen.add(file.read_bytes())
    seen.add(file.read_bytes())
    assert [writer.wait() for writer in writers] == [0, 0]
    assert seen <= whole and list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path):
    file = tmp_path / "model.bin"
    file.write_bytes(b"old")
    code = """
        with replacing(sys.argv[1]) as partial:
            partial.write_bytes(b"half")
            print("writing", flush=True)
            sys.stdin.read()
    """
    with start(code, file) as writer:
        assert writer.stdout and writer.stdout.readline() == b"writing\n"
        writer.kill()
    assert writer.returncode == -signal.SIGKILL and file.read_bytes() == b"old"
    with replacing(file) as partial:  # what the killed process left is in nobody's way
        partial.write_bytes(b"new")
    assert file.read_bytes() == b"new"


def test_text_is_utf_8_with_plain_ends_of_lines(tmp_path):
    write_text(tmp_path / "new" / "folder" / "a.txt", "图片\nä\n")
    assert (tmp_path / "new" / "folder" / "a.txt").read_bytes() == "图片\nä\n".encode()
    write_bytes(tmp_path / "new" / "folder" / "a.txt", b"\r\n\x00")
    assert (tmp_path / "new" / "folder" / "a.txt").read_bytes() == b"\r\n\x00"


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "page.html")
    for text in ("new", "newer"):  # the file is missing at first
        write_text(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "page.html").read_text() == text


def test_text_that_utf_8_cannot_hold_is_written_as_escapes(tmp_path):
    record = {"a": "\udcff \ud800 é"}
    write_text(tmp_path / "a.json", json.dumps(record, ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == record


def test_an_error_names_the_file_and_not_its_partial_copy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as failed, replacing(tmp_path / "gone" / "x") as partial:
        partial.write_text("")
    assert failed.value.filename == str(tmp_path / "gone" / "x")
