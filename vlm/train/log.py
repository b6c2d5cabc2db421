"""What a run writes down: curves for TensorBoard, and what each phase won for its tasks and cost the others."""

import json
from collections.abc import Mapping
from pathlib import Path

from vlm.errors import ArgumentError
from vlm.files.atomic import write_text
from vlm.train.plan import Figures

VALIDATION = "validation"  # name of the files: .json, and a table of the last figures of each phase as .md
START = "start"  # the table's column for the model that the run started from

Noted = Mapping[str, Mapping[str, Mapping[str, float]]]  # by phase, by photos and task, by name of the figure


def tensorboard_writer(out: Path):
    """A writer into the folder `tensorboard` of a run.

    Raises:
        ArgumentError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ArgumentError('training logs need tensorboard; pip install "vlm-foundation[train]"') from None
    return SummaryWriter(str(out / "tensorboard"))


def note_figures(out: Path, phase: str, found: Figures) -> None:
    """Write the figures of a validation into the files of a run, in place of earlier ones of the same phase.

    Args:
        out: folder of the run.
        phase: name of the phase, or `START`.
        found: what the validation found.
    """
    file = out / f"{VALIDATION}.json"
    own = {f"{source} {task}".strip(): figures for (source, task), (figures, _) in found.items()}
    noted = {**(json.loads(file.read_text()) if file.exists() else {}), phase: own}
    write_text(file, json.dumps(noted, indent=2) + "\n")
    write_text(file.with_suffix(".md"), table(noted))


def table(noted: Noted) -> str:
    """Figures by phase, photos and name, as a Markdown table with a column for each phase."""
    rows = {(label, name) for found in noted.values() for label, own in found.items() for name in own}
    lines = [["photos", "figure", *noted], ["---", "---", *["---:"] * len(noted)]]
    for label, name in sorted(rows):
        values = (found.get(label, {}).get(name) for found in noted.values())
        lines.append([label, name, *("" if value is None else f"{value:.2f}" for value in values)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
