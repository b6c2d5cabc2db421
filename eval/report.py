"""The files of a finished run: `results.json`, `items.json`, `predictions.json` and `report.html`."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.benchmark import Item, Predictions, Scores
from vlm.errors import DataError
from vlm.files.atomic import write_text
from vlm.files.pages import template, thumbnail

EXAMPLES = 8  # photos in each row of the gallery
BINS = 20
LISTED = 12  # groups of a kind; where there are more, only the report shows them

Record = dict[str, Any]  # one item of `items.json`


def write(out: Path, results: Mapping[str, Any], items: Sequence[Record], submission: Any) -> None:
    """Write all files of a run; `results.json` comes last, so that its presence says that the others are complete."""
    write_text(out / "predictions.json", json.dumps(submission, ensure_ascii=False))
    write_text(out / "items.json", "[" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in items) + "]\n")
    write_text(out / "report.html", render(results, items))
    write_text(out / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def records(items: Sequence[Item], predictions: Predictions, scores: Scores) -> list[Record]:
    """What report and comparison know of each item."""
    return [
        {
            "id": item.id,
            "image": str(item.image.resolve()),
            "question": item.question,
            "premise": item.premise,
            "references": item.references,
            "prediction": shown,
            "box": [x / side for x, side in zip(item.box, item.size * 2, strict=True)] if item.box else None,
            "predicted_box": prediction if item.box else None,
            "scores": {name: values[number] for name, values in scores.items.items()},
            "sums": scores.sums[number] if scores.sums else [],
        }
        for number, (item, prediction, shown) in enumerate(zip(items, predictions, scores.shown, strict=True))
    ]


def read(folder: Path) -> tuple[dict[str, Any], list[Record]]:
    """A finished run's results and items.

    Raises:
        DataError: the folder holds no finished run.
    """
    return read_results(folder), _read(folder / "items.json")


def read_results(folder: Path) -> dict[str, Any]:
    """A finished run's results.

    Raises:
        DataError: the folder holds no finished run.
    """
    return _read(folder / "results.json")


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{str(file)!r} is missing; give the --out folder of a run that has finished") from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{str(file)!r} cannot be read: {error}; run the benchmark again, nothing is predicted twice"
        ) from None


def summary(results: Mapping[str, Any]) -> str:
    """The figures as lines of text."""
    figures = results["figures"]
    width = max(map(len, figures), default=0)
    lines = [f"{name:<{width}}  {show_figure(figure)}" for name, figure in figures.items()]
    for kind, groups in results.get("groups", {}).items():
        if len(groups) <= LISTED:
            wide = max(map(len, groups))
            lines += [
                f"  {kind} {name:<{wide}}  {group['value']:.1f}  (n = {group['n']:,})" for name, group in groups.items()
            ]
    of = "" if results["n"] == results["of"] else f" of {results['of']:,}"
    head = f"{title(results)}, model {results['model']}, n = {results['n']:,}{of}"
    return "\n".join([head, *(lines or ["the answers are private: send predictions.json to the publisher's server"])])


def title(results: Mapping[str, Any]) -> str:
    """What the test set is: as the user said, or benchmark, folder and split."""
    name = f"{results['benchmark']} ({results['data']}, {results['split']})"
    return f"{results['title']}: {results['benchmark']}" if results.get("title") else name


def show_figure(figure: Mapping[str, float]) -> str:
    """A figure with its interval, in points of a hundred."""
    text = f"{figure['value']:.1f}"
    return f"{text} [{figure['low']:.1f}, {figure['high']:.1f}]" if "low" in figure else text


def render(results: Mapping[str, Any], items: Sequence[Record]) -> str:
    """The report of a run, one HTML file that needs nothing else."""
    leading = next(iter(results["figures"]), None)
    values = [item["scores"][leading] for item in items if leading in item["scores"]]
    return report_template("report.html").render(
        results=results,
        title=title(results),
        leading=leading,
        histogram=histogram(values) if values else None,
        gallery=[(name, note, [card(item) for item in chosen]) for name, note, chosen in choose(items, leading)],
    )


def report_template(name: str) -> Any:
    """A template of the harness.

    Raises:
        ArgumentError: jinja2 is not installed.
    """
    return template(name, "eval", figure=show_figure)


def choose(items: Sequence[Record], leading: str | None) -> list[tuple[str, str, Sequence[Record]]]:
    """The rows of the gallery: name, explanation, items."""
    drawn = random.Random(0).sample(list(items), min(EXAMPLES, len(items)))
    rows: list[tuple[str, str, Sequence[Record]]] = [("Random", "drawn with a fixed seed", drawn)]
    if all(leading in item["scores"] for item in items):
        ranked = sorted(items, key=lambda item: -item["scores"][leading])
        rows.insert(0, ("Best", f"highest {leading}", ranked[:EXAMPLES]))
        rows.insert(1, ("Worst", f"lowest {leading}", ranked[::-1][:EXAMPLES]))
    return rows


def card(item: Record) -> Record:
    """An item of the gallery, with its photo."""
    return {**item, "thumbnail": thumbnail(item["image"])}


def histogram(values: Sequence[float]) -> dict[str, Any]:
    """Counts of the values in equal bins from 0 to a multiple of 100: `counts`, `edges` (one more), `top`, `mean`."""
    top = max(100.0, 100.0 * math.ceil(max(values) / 100))
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int(max(value, 0.0) / top * BINS))] += 1
    edges = [top * number / BINS for number in range(BINS + 1)]
    return {"counts": counts, "edges": edges, "top": top, "mean": sum(values) / len(values)}
