"""Freed memory stays with the process: counted in page faults."""

import ctypes
import subprocess
import sys

import pytest

from vlm.train.memory import keep_freed_memory

GLIBC = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
SCRIPT = """
import resource, sys
from vlm.train.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    blocks = [bytearray(8 << 20) for _ in range(4)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    run = subprocess.run([sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


@pytest.mark.skipif(not GLIBC, reason="only glibc has the switch")
def test_steps_take_no_page_faults():
    # 10 steps write 4 * 8 MiB each: 81,920 pages of 4 KiB, unless the system hands out larger ones
    assert faults("keep") < 200 < faults("default")


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", None)  # nothing is even looked up
    assert keep_freed_memory() is False


def test_other_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # as musl, which has no mallopt
    assert keep_freed_memory() is False
