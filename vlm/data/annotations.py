"""Annotations that lie beside shards, joined to their samples by key; and how those with boxes follow a view.

A file of annotations is JSON Lines, plain or gzip: one object a line, whose `key` is that of a sample and whose other
fields are added to the sample's record. `datasets/training_mix/README.md` describes the fields.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm.data.augment import View
from vlm.data.shards import Sample
from vlm.errors import DataError

MIN_VISIBLE = 0.5  # share of a box that a view must show, or what is said about the box is left out


def read_annotations(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The keys of a file of annotations, each with the fields to add.

    Raises:
        DataError: the file cannot be read, or a line is not a JSON object with a key.
    """
    file = Path(path)
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    fields = json.loads(line)
                    key = fields.pop("key")
                except (ValueError, KeyError, AttributeError, TypeError):
                    raise DataError(
                        f"{str(file)!r} line {number} is not a JSON object with a key; fix the line"
                    ) from None
                yield str(key), fields
    except (OSError, EOFError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"annotations {str(file)!r} cannot be read: {reason}; check the path") from None


def join_annotations(samples: Iterable[Sample], paths: str | Path | Sequence[str | Path]) -> list[Sample]:
    """Samples with the fields that files of annotations add to their records; fields of later files win.

    Raises:
        DataError: a file cannot be read, or names none of the samples.
    """
    samples = list(samples)
    keys = {sample.key for sample in samples}
    added: dict[str, dict[str, Any]] = {}
    for path in [paths] if isinstance(paths, str | Path) else paths:
        found = 0
        for key, fields in read_annotations(path):
            if key in keys:
                found += 1
                added.setdefault(key, {}).update(fields)
        if not found:
            raise DataError(f"annotations {str(path)!r} name none of the {len(keys)} photos; give the file of these")
    return [
        replace(sample, fields={**sample.fields, **added[sample.key]}) if sample.key in added else sample
        for sample in samples
    ]


def in_view(sample: Sample, view: View) -> Sample:
    """A sample whose boxes lie where a view of its photo shows them.

    A phrase or box of which the view shows less than half is left out. Where a part of such a box remains visible, the
    boxes are not complete any more.
    """
    phrases, boxes = sample.fields.get("phrases"), sample.fields.get("boxes")
    if view == View() or not (phrases or boxes):
        return sample
    fields = dict(sample.fields)
    if phrases:
        kept = []
        for phrase in phrases:
            placed = [view.place(box) for box in phrase.get("boxes") or ()]
            if all(share >= MIN_VISIBLE for _, share in placed):
                kept.append({**phrase, "boxes": [list(box) for box, _ in placed]})
        fields["phrases"] = kept
    if boxes:
        placed = [(item, *view.place(item["box"])) for item in boxes]
        fields["boxes"] = [{**item, "box": list(box)} for item, box, share in placed if share >= MIN_VISIBLE]
        if any(0 < share < MIN_VISIBLE for _, _, share in placed):
            fields["boxes_complete"] = False
    return replace(sample, fields=fields)
