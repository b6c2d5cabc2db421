"""How much the evaluation harness adds to the bare model on a caption run.

Captions the photos of a folder with `captions.json` twice in turns: through `Model.stream` alone, and through a
whole run of the benchmark `captions_json` (reading, journal, progress, scoring, bootstrap, report). Prints seconds of
both by the clock and by the processor, and their ratios, which other work on the machine disturbs less.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from eval.benchmarks import find
from eval.models import VLMModel
from eval.run import Options, evaluate

GOAL = 1.10


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Time of a piece of work by the clock and by the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.json")
    parser.add_argument("--model", default="tiny", help="bundled name, local folder or hub id")
    parser.add_argument("--limit", type=int, help="only the first photos")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which the median counts")
    args = parser.parse_args(argv)

    model = VLMModel(args.model, "cpu")
    benchmark = find("captions_json")
    photos = [item.image for item in benchmark.read(args.data, "all")[: args.limit]]

    def bare() -> None:
        list(model.model.stream("caption", photos, batch_size=args.batch_size))

    def harness() -> None:
        with tempfile.TemporaryDirectory() as out:  # a folder of its own, since a finished run predicts nothing again
            options = Options(
                benchmark, args.data, args.model, Path(out), "all", limit=args.limit, batch_size=args.batch_size
            )
            evaluate(options, load=lambda name, task, device: model)

    list(model.model.stream("caption", photos[: args.batch_size]))  # the first batch pays for what is set up once
    times = [(seconds(bare), seconds(harness)) for _ in range(args.repeats)]
    for number, kind in enumerate(("clock", "processor")):
        alone, whole = (statistics.median(pair[side][number] for pair in times) for side in (0, 1))
        ratio = statistics.median(pair[1][number] / pair[0][number] for pair in times)
        print(
            f"{kind:<9}  {len(photos)} photos: model {alone:.2f} s, harness {whole:.2f} s, "
            f"median ratio {ratio:.3f} (goal: at most {GOAL:.2f})"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
