"""Folders that one run at a time writes into."""

import signal
import subprocess
import sys

import pytest

from vlm.errors import ArgumentError
from vlm.files.lock import locked


def test_one_at_a_time(tmp_path):
    with locked(tmp_path / "new" / "folder") as folder:
        assert folder.is_dir()
        with pytest.raises(ArgumentError, match="another run is writing into"), locked(folder):
            pass
    with locked(folder):  # and again afterwards
        pass


def test_a_killed_run_lets_go(tmp_path):
    code = f"from vlm.files.lock import locked\nwith locked({str(tmp_path)!r}): print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        with pytest.raises(ArgumentError), locked(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
    with locked(tmp_path):
        pass


def test_places_that_are_no_folders_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ArgumentError, match=r"name a(nother)? folder"), locked(place):
            pass
