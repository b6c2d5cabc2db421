"""One run of a benchmark: items to predictions to scores to files, resumable at any moment, by one process or many."""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from eval import models, report
from eval.benchmark import Benchmark, Item, Scores, check_items, unicode_only
from eval.journal import Journal
from eval.predict import Batches, Tally, by_photo, predict_all
from vlm.errors import ArgumentError, DataError
from vlm.files.atomic import write_text
from vlm.files.lock import locked

SEED = 0  # of the bootstrap's draws
MAX_WORKERS = 8  # threads that load photos
NAMED = 3  # missing photos that an error names; the others are in missing.txt


@dataclass(frozen=True)
class Options:
    """A run: what to measure, on what, and where to put it."""

    benchmark: Benchmark
    data: Path
    model: str
    out: Path
    split: str
    limit: int | None = None
    batch_size: int = 16
    device: str = "cpu"
    allow_missing: bool = False
    title: str | None = None
    command: str = ""

    def __post_init__(self):
        if self.split not in self.benchmark.splits:
            known = ", ".join(self.benchmark.splits)
            raise ArgumentError(f"{self.benchmark.name} has no split {self.split!r}; choose one of: {known}")
        for name in ("batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(f"{name}={value} is below 1; give 1 or more")


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int
    count: int
    device: str
    wait: Callable[[], None]  # until all have come here


def evaluate(
    options: Options, load: Callable[[str, str, str], models.EvalModel] = models.load
) -> dict[str, Any] | None:
    """Run a benchmark, or the rest of it, and write the files of its folder.

    Args:
        options: of the run.
        load: from name, task and device to a model.

    Returns:
        What `results.json` holds; None in all processes but the first.

    Raises:
        VLMError: data, model or options cannot be used, or photos are missing.
    """
    report.report_template("report.html")  # where jinja2 is missing, this fails now and not after hours
    processes = _processes(options.device)
    with locked(options.out) if processes.rank == 0 else nullcontext():
        return _evaluate(options, load, processes)


def _evaluate(
    options: Options, load: Callable[[str, str, str], models.EvalModel], processes: Processes
) -> dict[str, Any] | None:
    """As `evaluate`, in a folder that no other run writes into."""
    benchmark = options.benchmark
    every = list(map(unicode_only, benchmark.read(options.data, options.split)))
    captioned = benchmark.task.startswith("caption") or benchmark.task == "embed"
    check_items(every, f"{benchmark.name}, split {options.split}, at {str(options.data)!r}", captioned)
    items = every[: options.limit]
    absent = {str(path): "does not exist" for path in {item.image for item in items} if not path.is_file()}
    _report_missing(absent, items, options, processes)
    model = load(options.model, benchmark.task, processes.device)
    settings = model.settings(benchmark.task)
    journal = Journal(options.out, _fingerprint(options, every, model.weights, settings))
    done, _ = journal.read()
    processes.wait()  # nobody writes before all have read, so that all divide the same rest
    journal.open(processes.rank)
    rest = [item for item in items if item.id not in done and str(item.image) not in absent]
    batches = Batches(models.predictor(model, benchmark, items), options.batch_size)
    tally = None
    if processes.rank == 0:
        tally = Tally(benchmark, items)
        tally.add([(item, done[item.id]) for item in items if item.id in done])
    workers = max(1, min(MAX_WORKERS, (os.cpu_count() or 1) // processes.count))
    started = time.perf_counter()
    try:
        predict_all(by_photo(rest)[processes.rank :: processes.count], model.prepare, batches, journal, tally, workers)
    finally:
        journal.close()
    seconds = time.perf_counter() - started
    processes.wait()
    if processes.rank:
        return None

    predictions, errors = journal.read()
    unusable = absent | {str(item.image): errors[item.id] for item in items if item.id in errors}
    _report_missing(unusable, items, options, processes)
    items = [item for item in items if item.id in predictions]
    if not items:
        raise DataError(f"none of the {len(unusable)} photos can be used; check --data {str(options.data)!r}")
    values = [predictions[item.id] for item in items]
    digest = _digest(items)
    scores = benchmark.score(items, values)
    pairs = [(item, value) for item, value in zip(items, values, strict=True) if item.scored]
    items, values = [item for item, _ in pairs], scores.predictions or [value for _, value in pairs]
    results = {
        "benchmark": benchmark.name,
        "task": benchmark.task,
        "data": options.data.resolve().name,
        "title": options.title,
        "split": options.split,
        "n": len(items),
        "of": sum(item.scored for item in every),
        "missing": len(unusable),
        "figures": _figures(benchmark, scores),
        "groups": _groups(items, scores),
        "model": model.name,
        "weights_sha256": model.weights,
        "weights_of": getattr(model, "weights_of", "weights"),
        "prompt": settings.pop("prompt", None),
        "settings": settings
        | scores.settings
        | {name: getattr(options, name) for name in ("limit", "batch_size", "device")}
        | {"processes": processes.count},
        "items_sha256": digest,
        "seconds": round(seconds, 2),
        "predicted_in_these_seconds": len(rest),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": options.command,
        "versions": _versions(),
    }
    report.write(options.out, results, report.records(items, values, scores), benchmark.submission(items, values))
    return results


def _processes(device: str) -> Processes:
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:  # set by accelerate launch and torchrun
        return Processes(0, 1, device, lambda: None)
    from accelerate import PartialState

    on_gpu = device.startswith("cuda")
    state = PartialState(cpu=not on_gpu, timeout=timedelta(days=1))  # the slowest process may lag by more than minutes
    own = f"cuda:{state.local_process_index}" if on_gpu else device
    return Processes(state.process_index, state.num_processes, own, state.wait_for_everyone)


def _report_missing(unusable: dict[str, str], items: Sequence[Item], options: Options, processes: Processes) -> None:
    """List photos that cannot be used in the run's folder.

    Raises:
        DataError: there are any, and the user has not allowed it.
    """
    file = options.out / "missing.txt"
    if processes.rank == 0:
        file.unlink(missing_ok=True)
        if unusable:
            write_text(file, "".join(f"{path}\t{why}\n" for path, why in sorted(unusable.items())))
    if unusable and not options.allow_missing:
        named = sorted(unusable.items())[:NAMED]
        first = "; ".join(
            why if path in why else f"{path!r} {why}" for path, why in named
        )  # an ImageError has the path
        raise DataError(
            f"{len(unusable)} of {len({item.image for item in items})} photos cannot be used: {first}; "
            f"all are listed in {str(file)!r}; add the missing files, or give --allow-missing to score the other items"
        )


def _figures(benchmark: Benchmark, scores: Scores) -> dict[str, dict[str, float]]:
    """Each figure with its 95 % bootstrap interval over items, where it follows from them one by one."""
    import numpy as np

    from eval.metrics.bootstrap import bootstrap_mean, bootstrap_metric

    figures = {}
    for name, value in scores.figures.items():
        draws, interval = np.random.default_rng(SEED), None
        if name in scores.items:
            interval = bootstrap_mean(scores.items[name], draws)
        elif name in benchmark.of_sums:
            interval = bootstrap_metric(scores.sums, benchmark.of_sums[name], draws)
        bounds = (interval.low, interval.high) if interval else scores.intervals.get(name)
        figures[name] = {"value": value} | (dict(zip(("low", "high"), bounds, strict=True)) if bounds else {})
    return figures


def _groups(items: Sequence[Item], scores: Scores) -> dict[str, dict[str, dict[str, float]]]:
    """The first figure that is a mean over items, of each part of the benchmark: kind, group, `value` and `n`."""
    leading = next((name for name in scores.figures if name in scores.items), None)
    found: dict[str, dict[str, list[float]]] = {}
    if leading:
        for item, value in zip(items, scores.items[leading], strict=True):
            for kind, groups in item.groups.items():
                for group in (groups,) if isinstance(groups, str) else groups:
                    found.setdefault(kind, {}).setdefault(group, []).append(value)
    return {
        kind: {
            group: {"value": sum(values) / len(values), "n": len(values)} for group, values in sorted(groups.items())
        }
        for kind, groups in found.items()
    }


def _fingerprint(options: Options, items: Sequence[Item], weights: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What predictions depend on. Neither limit nor batch size belong to it: they change no prediction."""
    return {
        "benchmark": options.benchmark.name,
        "split": options.split,
        "items": _digest(items),
        "weights": weights,
        "settings": json.loads(json.dumps(settings)),
        "device": options.device.partition(":")[0],
    }


def _digest(items: Sequence[Item]) -> str:
    """SHA-256 of what the items ask and know, wherever the photos lie."""
    digest = hashlib.sha256(json.dumps(items[0].choices).encode())  # all items share them
    for item in items:
        known = (item.id, item.image.name, item.references, item.question, item.premise, item.box)
        digest.update(json.dumps((*known, item.ratings) if item.ratings else known).encode())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("vlm-foundation", "torch", "timm", "tokenizers", "numpy", "pillow", "scikit-learn", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return found
