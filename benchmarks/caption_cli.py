"""What the caption command costs: start to finish on one photo, and many photos in a folder against one by one.

Prints ratios measured in one run:

* the share of a whole `python -m tasks.caption` that is imports, and the share that is reading weights;
* `--help` against importing torch and timm (it should answer in under half that time);
* photos a second of a folder of 64 photos against the same photos given one by one to a loaded model.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

SAMPLE = Path(__file__).parents[1] / "datasets" / "sample"
STAGES = """
import time
times = [time.perf_counter()]
def mark():
    times.append(time.perf_counter())
from tasks._command import no_collections
with no_collections():
    import torch, timm, vlm.model
    mark()
    model = vlm.model.load("tiny")
mark()
model.caption(PHOTO)
mark()
print(*(b - a for a, b in zip(times, times[1:])))
"""


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median wall time of a call after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def python(*arguments: str) -> str:
    """Run the interpreter; returns what it prints."""
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout


def start_up(repeats: int) -> None:
    photo = str(SAMPLE / "cat.jpg")
    whole = seconds(lambda: python("-m", "tasks.caption", "--image", photo), repeats)
    help_ = seconds(lambda: python("-m", "tasks.caption", "--help"), repeats)
    imports = seconds(lambda: python("-c", "import torch, timm"), repeats)
    code = STAGES.replace("PHOTO", repr(photo))
    rows = [list(map(float, python("-c", code).split())) for _ in range(repeats)]
    stages = [statistics.median(column) for column in zip(*rows, strict=True)]
    print(f"one photo, start to finish: {whole:.2f} s")
    for name, value in zip(("imports", "reading weights", "the caption itself"), stages, strict=True):
        print(f"  {name}: {value:.2f} s, {value / whole:.0%} of it")
    print(f"--help: {help_:.2f} s, {help_ / imports:.2f} of importing torch and timm ({imports:.2f} s)")


def folder(count: int, repeats: int) -> None:
    import vlm

    model = vlm.load("tiny")
    photos = list(islice(cycle(sorted(SAMPLE.glob("*.jpg"))), count))
    many = count / seconds(lambda: model.captions(photos), repeats)
    single = count / seconds(lambda: [model.caption(photo) for photo in photos], repeats)
    print(f"{count} photos: {many:.1f} photos/s together, {single:.1f} one by one, ratio {many / single:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=64, help="photos of the folder")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each command, of which the median counts")
    arguments = parser.parse_args()
    start_up(arguments.repeats)
    folder(arguments.photos, arguments.repeats)


if __name__ == "__main__":
    main()
