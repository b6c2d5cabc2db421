"""Measure models on published test sets: `python -m eval NAME --data DIR --model M`."""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

import vlm
from eval.benchmarks import BENCHMARKS, find
from eval.benchmarks.captions import with_java_metrics
from eval.models import ABILITIES
from vlm.errors import ArgumentError

DRAWN = Path("runs/drawn")  # pictures of the benchmarks that draw their own

USAGE = """\
usage: python -m eval BENCHMARK --data DIR [--model M] [--limit N] [--split S] [--out DIR] ...
       python -m eval list                      list the benchmarks and the files and models they need
       python -m eval compare RUN RUN ...       compare runs on one benchmark, with a paired test
       python -m eval table RUN ...             write the results table of README.md and the model cards

`python -m eval BENCHMARK --help` lists the options."""


@dataclass(frozen=True)
class RunArgs:
    benchmark: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="BENCHMARK")]
    """Name of a benchmark; `python -m eval list` shows them."""
    data: Path | None = None
    """Folder with the publisher's files. Not needed by benchmarks that draw their own
    pictures; they write them to runs/drawn, or to this folder."""
    model: str = "tiny"
    """Bundled name, local folder or hub id. For other models: hf:FOLDER or hf:OWNER/NAME for BLIP, GIT, Florence-2 or
    SmolVLM in transformers, from disk or from the Hugging Face hub; open_clip:ARCHITECTURE/TAG for image and text
    encoders; timm:MODEL for image encoders; inception:FILE for the network of FID."""
    split: str | None = None
    """Split to evaluate, such as val or test; `python -m eval list` shows them, the default first."""
    limit: int | None = None
    """Evaluate only the first N items, to try things out. The scores are not comparable with those of the full set."""
    batch_size: int = 16
    """Items per batch; affects speed and memory, not the scores."""
    out: Path | None = None
    """Folder for the results, by default one under runs/eval/. The same command continues where it stopped."""
    allow_missing: bool = False
    """If photos are missing or damaged, score the remaining items."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, mps."""
    title: str | None = None
    """Name of the test set in reports and tables, such as "820 COCO val2017 photos". By default benchmark, folder and
    split."""
    java_metrics: Annotated[tuple[Literal["METEOR", "SPICE"], ...], tyro.conf.UseAppendAction] = ()
    """Caption benchmarks only: also compute METEOR, SPICE or both, which need Java. The captions of a finished run are
    reused."""


@dataclass(frozen=True)
class CompareArgs:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Folders of two or more finished runs of one benchmark; the others are compared with the first."""
    html: Path = Path("compare.html")
    """HTML file to write."""


@dataclass(frozen=True)
class TableArgs:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Folders of finished runs, or folders that contain them."""
    into: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """Markdown files to update, between the lines `<!-- results:begin -->` and `<!-- results:end -->`. By default
    README.md, and the MODEL_CARD.md of each model with the runs of that model."""


def main(argv: Sequence[str] | None = None) -> int:
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    from tasks._command import exit_code

    todo = {"list": show_list, "compare": compare, "table": table}.get(args[0], run)
    return exit_code(lambda: todo(args), "stopped; run the same command to continue")


def show_list(argv: Sequence[str]) -> int:
    """Print the benchmarks."""
    for benchmark in BENCHMARKS.values():
        print(f"{benchmark.name}: {', '.join(benchmark.metrics)}")
        print(f"    splits  {', '.join(benchmark.splits)}")
        print(f"    needs   {benchmark.needs}; a model that can {does(benchmark.task)}")
        print(f"    card    datasets/{benchmark.card}/README.md")
    return 0


def does(task: str) -> str:
    """What a model with a task or an ability can do; the task's file is not imported, since that would load torch."""
    if task in ABILITIES:
        return ABILITIES[task]
    source = Path(vlm.__file__).with_name("tasks") / f"{task}.py"
    found = re.search(r'^    does = "(.+)"$', source.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else task


def run(argv: Sequence[str]) -> int:
    """Run a benchmark and print its figures."""
    from tasks._command import parse

    args = parse("python -m eval BENCHMARK", RunArgs, __doc__, argv)
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
    """Compare finished runs: scores side by side, paired tests, and the items that changed most."""
    from tasks._command import parse

    args = parse("python -m eval compare", CompareArgs, compare.__doc__, argv[1:])
    from eval.compare import compare_runs

    print(compare_runs(args.runs, args.html))
    print(f"page: {args.html}")
    return 0


def table(argv: Sequence[str]) -> int:
    """Write the results table into Markdown files."""
    from tasks._command import parse

    args = parse("python -m eval table", TableArgs, table.__doc__, argv[1:])
    from eval.table import update_files

    for path in update_files(args.runs, args.into):
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
