"""Measure models on published test sets: `python -m eval NAME --data DIR --model M`."""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from eval.benchmarks import BENCHMARKS, find
from eval.benchmarks.captions import with_java_metrics
from vlm.errors import ArgumentError, VLMError

DRAWN = Path("runs/drawn")  # pictures of the benchmarks that draw their own

USAGE = """\
usage: python -m eval BENCHMARK --data DIR [--model M] [--limit N] [--split S] [--out DIR] ...
       python -m eval list                      the benchmarks, and what each needs
       python -m eval compare RUN RUN ...       runs side by side, with a paired test
       python -m eval table RUN ...             the results table of README.md and the model cards

python -m eval COMMAND --help says more."""


@dataclass(frozen=True)
class RunArgs:
    benchmark: Annotated[str, tyro.conf.Positional]
    """Name of a benchmark; `python -m eval list` shows them."""
    data: Path | None = None
    """Folder with the publisher's files. Benchmarks that draw their own pictures do without: by default runs/drawn."""
    model: str = "tiny"
    """Bundled name, local folder or hub id; hf:DIR_OR_HUB_ID for models of transformers, open_clip:ARCHITECTURE/TAG and
    timm:MODEL for encoders, inception:FILE for FID."""
    split: str | None = None
    """Part of the benchmark; each has its own default."""
    limit: int | None = None
    """Only the first N items. Figures such as CIDEr depend on the whole set: for trying things out."""
    batch_size: int = 16
    """Items that go through the model together; it does not change the figures."""
    out: Path | None = None
    """Folder of the run, by default one under runs/eval/. The same command goes on with what is in it."""
    allow_missing: bool = False
    """Score the other items where photos are missing or damaged."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, mps."""
    title: str | None = None
    """What the test set is, for reports and tables: "820 COCO val2017 photos". By default the names of the benchmark,
    the folder and the split."""
    java_metrics: tuple[Literal["METEOR", "SPICE"], ...] = ()
    """Of captions: METEOR, SPICE or both, which run in Java. A finished run is scored again, not predicted again."""


@dataclass(frozen=True)
class CompareArgs:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of two or more finished runs of one benchmark; the first is what the others are compared with."""
    html: Path = Path("compare.html")
    """Where the page goes."""


@dataclass(frozen=True)
class TableArgs:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of finished runs, or folders that hold such folders."""
    into: tuple[Path, ...] = ()
    """Markdown files with `<!-- results:begin -->` and `<!-- results:end -->`. By default README.md and each model's
    MODEL_CARD.md, which gets the runs of its own model."""


def main(argv: Sequence[str] | None = None) -> int:
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    try:
        return {"list": show_list, "compare": compare, "table": table}.get(args[0], run)(args)
    except VLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def show_list(argv: Sequence[str]) -> int:
    """Print the benchmarks."""
    for benchmark in BENCHMARKS.values():
        print(f"{benchmark.name}: {', '.join(benchmark.metrics)}")
        print(f"    splits  {', '.join(benchmark.splits)}")
        print(f"    needs   {benchmark.needs}; a model that can {benchmark.task}")
        print(f"    card    datasets/{benchmark.card}/README.md")
    return 0


def run(argv: Sequence[str]) -> int:
    """Run a benchmark and print its figures."""
    args = tyro.cli(RunArgs, args=argv, prog="python -m eval BENCHMARK", description=__doc__)
    benchmark = find(args.benchmark)
    split = args.split or benchmark.splits[0]
    if args.java_metrics:
        benchmark = with_java_metrics(benchmark, args.java_metrics)
    from eval.report import summary
    from eval.run import Options, evaluate

    if args.data is None and not benchmark.drawn:
        raise ArgumentError(f"{benchmark.name} needs --data, the folder with {benchmark.needs}")
    data = (args.data or DRAWN).expanduser()
    model = Path(args.model).name if Path(args.model).is_dir() else re.sub(r"[^\w.-]+", "-", args.model)
    label = [benchmark.name, data.resolve().name, split, model]
    options = Options(
        benchmark,
        data,
        args.model,
        args.out or Path("runs/eval", "-".join(label)),
        split,
        limit=args.limit,
        batch_size=args.batch_size,
        device=args.device,
        allow_missing=args.allow_missing,
        title=args.title,
        command=shlex.join(["python", "-m", "eval", *argv]),
    )
    results = evaluate(options)
    if results:
        print(summary(results))
        print(f"report: {options.out / 'report.html'}")
    return 0


def compare(argv: Sequence[str]) -> int:
    """Compare runs."""
    args = tyro.cli(CompareArgs, args=argv[1:], prog="python -m eval compare", description=compare.__doc__)
    from eval.compare import compare_runs

    print(compare_runs(args.runs, args.html))
    print(f"page: {args.html}")
    return 0


def table(argv: Sequence[str]) -> int:
    """Write the results table into Markdown files."""
    args = tyro.cli(TableArgs, args=argv[1:], prog="python -m eval table", description=table.__doc__)
    from eval.table import update_files

    for path in update_files(args.runs, args.into):
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
