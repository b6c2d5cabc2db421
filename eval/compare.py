"""Runs of one benchmark side by side, with a paired bootstrap test of each against the first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks import find
from eval.report import EXAMPLES, Record, read, report_template, show_figure, title
from vlm.errors import ArgumentError, DataError
from vlm.files.atomic import write_text
from vlm.files.pages import thumbnail

SEED = 0  # of the bootstrap's draws


def compare_runs(folders: Sequence[Path], html: Path) -> str:
    """Compare finished runs.

    Args:
        folders: of two or more runs; the first is the baseline.
        html: page to be written.

    Returns:
        The table as text.

    Raises:
        ArgumentError: fewer than two runs.
        DataError: a run has not finished, or they did not score the same items.
    """
    if len(folders) < 2:
        raise ArgumentError("compare needs two or more runs; give their folders")
    results, items = zip(*map(read, folders), strict=True)
    for folder, run in zip(folders[1:], results[1:], strict=True):
        for field, what in (("benchmark", "benchmark"), ("split", "split"), ("items_sha256", "set of items")):
            if run[field] != results[0][field]:
                raise DataError(
                    f"{str(folder)!r} scored another {what} than {str(folders[0])!r} ({run[field]} against "
                    f"{results[0][field]}); only runs over the same items can be paired"
                )
    names = _names(folders, results)
    rows = rows_of(results, items)
    page = report_template("compare.html").render(
        title=title(results[0]),
        results=results[0],
        names=names,
        rows=rows,
        gallery=[
            (name, *part)
            for name, other in zip(names[1:], items[1:], strict=True)
            for part in differences(items[0], other, next(iter(results[0]["figures"]), None))
        ],
    )
    write_text(html, page)
    return as_text(title(results[0]), names, rows)


def rows_of(results: Sequence[dict[str, Any]], items: Sequence[list[Record]]) -> list[dict[str, Any]]:
    """For each figure: the runs' own, and for each run but the first the difference, its interval and p."""
    import numpy as np

    from eval.metrics.bootstrap import paired_bootstrap

    benchmark, rows = find(results[0]["benchmark"]), []
    common = [name for name in results[0]["figures"] if all(name in run["figures"] for run in results)]
    for name in common:  # only some runs may have METEOR, SPICE or RefCLIPScore
        row: dict[str, Any] = {"name": name, "figures": [run["figures"][name] for run in results], "tests": []}
        metric = benchmark.of_sums.get(name)
        if metric or name in items[0][0]["scores"]:
            base, *others = ([item["sums"] if metric else item["scores"][name] for item in run] for run in items)
            row["tests"] = [paired_bootstrap(other, base, np.random.default_rng(SEED), metric) for other in others]
        rows.append(row)
    return rows


def differences(base: Sequence[Record], other: Sequence[Record], leading: str | None) -> list[tuple[str, list[Record]]]:
    """The items where the other run gains most, and where it loses most."""
    pairs = [
        {**theirs, "before": ours["prediction"], "change": theirs["scores"][leading] - ours["scores"][leading]}
        for ours, theirs in zip(base, other, strict=True)
        if leading in ours["scores"]
    ]
    pairs.sort(key=lambda pair: -pair["change"])
    gains = [pair for pair in pairs[:EXAMPLES] if pair["change"] > 0]
    losses = [pair for pair in pairs[::-1][:EXAMPLES] if pair["change"] < 0]
    return [
        (what, [{**pair, "thumbnail": thumbnail(pair["image"])} for pair in chosen])
        for what, chosen in (("gains most", gains), ("loses most", losses))
        if chosen
    ]


def as_text(head: str, names: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """The table for a terminal."""
    table = [["figure", *names]]
    for row in rows:
        cells = [row["name"], *map(show_figure, row["figures"])]
        for number, test in enumerate(row["tests"], 2):
            cells[number] += f"  {test.difference:+.1f} [{test.low:+.1f}, {test.high:+.1f}], p {test.p_value:.3f}"
        table.append(cells)
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in table]
    return "\n".join([head, *lines])


def _names(folders: Sequence[Path], results: Sequence[dict[str, Any]]) -> list[str]:
    """The models, or the folders where two runs are of one model."""
    models = [run["model"] for run in results]
    return models if len(set(models)) == len(models) else [folder.name or str(folder) for folder in folders]
