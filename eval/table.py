"""The table of results in README.md and the model cards, made from `results.json` files and nothing else."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.benchmark import OF_REAL
from eval.report import read_results, show_figure, title
from vlm.errors import ArgumentError, DataError
from vlm.files.atomic import write_text

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
FIGURES = 2  # of each run, the leading ones, each beside that of real photos; recalls are shown all
CARD = "MODEL_CARD.md"  # vlm/weights/NAME/MODEL_CARD.md gets the runs of the model NAME


def update_files(runs: Sequence[Path], into: Sequence[Path]) -> list[Path]:
    """Write the table between its two marks.

    Args:
        runs: folders of finished runs, or folders that hold such folders.
        into: Markdown files; if empty, those of the repository that one stands in.

    Returns:
        The files.

    Raises:
        ArgumentError: there are no runs.
        DataError: a folder without a finished run, no such file, or one without the marks.
    """
    if not runs:
        raise ArgumentError("there are no runs to put into the table; give their folders")
    results = [read_results(folder) for folder in find_runs(runs)]
    files = list(into) or [Path("README.md"), *sorted(Path("vlm/weights").glob(f"*/{CARD}"))]
    texts = {}
    for path in files:  # all are checked before one is written
        own = [run for run in results if path.name != CARD or run["model"] == path.resolve().parent.name]
        texts[path] = replace_table(path, markdown(own))
    for path, text in texts.items():
        write_text(path, text)
    return files


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The folders of finished runs in or below these folders.

    Raises:
        DataError: a folder with none.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        inside = sorted(path.parent for path in folder.rglob("results.json"))
        if not inside:
            raise DataError(f"{str(folder)!r} holds no results.json; give folders of runs that have finished")
        found |= dict.fromkeys(inside)
    return list(found)


def replace_table(path: Path, table: str) -> str:
    """The text of a Markdown file with another table between the marks.

    Raises:
        DataError: the file or the marks are missing.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}; name a Markdown file with --into") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{str(path)!r} lacks the lines {BEGIN} and {END}; add them where the table should go")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """A row for each figure, a column for each model, then the commands; of two equal runs the later one counts."""
    results = [run for run in results if run["figures"]]  # those whose answers are private have none
    if not results:
        return "No results yet."
    runs: dict[tuple[str, str, str, int, str], dict[str, dict[str, Any]]] = {}
    for run in sorted(results, key=lambda run: run["finished"]):
        key = (run["benchmark"], run["data"], run["split"], run["n"], run.get("title") or "")
        runs.setdefault(key, {})[model_name(run)] = run
    models = sorted({model for row in runs.values() for model in row})
    lines = [
        "| test set | n | figure | " + " | ".join(map(cell, models)) + " |",
        "|---|---:|---|" + "---:|" * len(models),
    ]
    for key in sorted(runs):
        row = runs[key]
        some = next(iter(row.values()))
        of = "" if some["n"] == some["of"] else f" of {some['of']:,}"
        recalls = [figure for figure in some["figures"] if "recall@" in figure]
        leading = recalls or [figure for figure in some["figures"] if not figure.endswith(OF_REAL)][:FIGURES]
        beside = [name for figure in leading for name in (figure, figure + OF_REAL) if name in some["figures"]]
        for number, figure in enumerate(beside):
            first = [cell(title(some)), f"{some['n']:,}{of}"] if number == 0 else ["", ""]
            values = [
                show_figure(row[model]["figures"][figure]) if figure in row.get(model, {}).get("figures", {}) else ""
                for model in models
            ]
            lines.append("| " + " | ".join([*first, cell(figure), *values]) + " |")
    last = [row[model] for _, row in sorted(runs.items()) for model in models if model in row]
    hashes = sorted(
        {f"{cell(model_name(run))} ({run.get('weights_of', 'weights')}) `{run['weights_sha256'][:12]}`" for run in last}
    )
    lines += [
        "",
        "Points of a hundred, with 95 % bootstrap intervals over the items in brackets. Weights (SHA-256): "
        + ", ".join(hashes)
        + ". Made by:",
        "",
        "```",
        *map(command, last),
        "```",
    ]
    return "\n".join(lines)


def model_name(run: dict[str, Any]) -> str:
    """A model as others know it: of a folder on somebody's machine the last part."""
    return Path(run["model"]).name if Path(run["model"]).is_absolute() else run["model"]


def command(run: dict[str, Any]) -> str:
    """The command that makes a run again, with the data in a folder `data`."""
    parts = ["python -m eval", run["benchmark"], f"--data data/{run['data']}", f"--model {model_name(run)}"]
    parts.append(f"--split {run['split']}")
    if run.get("title"):
        parts.append(f"--title {shlex.quote(run['title'])}")
    if run["settings"]["limit"] is not None:
        parts.append(f"--limit {run['settings']['limit']}")
    return " ".join(parts)


def cell(text: str) -> str:
    """Text that cannot end its cell."""
    return text.replace("|", "\\|").replace("\n", " ")
