"""SNLI-VE: does a sentence follow from a photo, contradict it, or neither."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.benchmark import Benchmark, Item, Predictions, Scores, find_file, inside, layout, shipped
from vlm.errors import DataError

LABELS = ("entailment", "neutral", "contradiction")


def reader(with_premise: bool) -> Callable[[Path, str], list[Item]]:
    """How SNLI-VE is read, with the caption that belongs to the photo or without."""

    def read(folder: Path, split: str) -> list[Item]:
        path = find_file(folder, f"snli_ve_{split}.jsonl", shipped("links on github.com/necla-ml/SNLI-VE"))
        items = []
        with layout(path), path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                record = json.loads(line)
                if record["gold_label"] not in LABELS:
                    label = record["gold_label"]
                    raise DataError(
                        f"{str(path)!r}, line {number}: gold_label {label!r} is none of {', '.join(LABELS)}"
                    )
                items.append(
                    Item(
                        record["pairID"],
                        inside(folder / "flickr30k-images", f"{record['Flickr30K_ID']}.jpg"),
                        (record["gold_label"],),
                        question=record["sentence2"],
                        premise=record["sentence1"] if with_premise else "",
                        groups={"label": record["gold_label"]},
                    )
                )
        return items

    return read


def correct(item: Item, label: str) -> float:
    """Whether the label is the one that people gave, in points."""
    return 100.0 * (label == item.references[0])


def score(items: Sequence[Item], predictions: Predictions) -> Scores:
    """Share of right labels."""
    values = [correct(item, label) for item, label in zip(items, predictions, strict=True)]
    return Scores({"accuracy": sum(values) / len(values)}, {"accuracy": values}, list(predictions))


def submission(items: Sequence[Item], predictions: Predictions) -> list[dict[str, Any]]:
    """There is no server for this set: the label of each pair."""
    return [{"pairID": item.id, "label": label} for item, label in zip(items, predictions, strict=True)]


BENCHMARKS = tuple(
    Benchmark(
        name=name,
        task="entail",
        columns=lambda items: ([item.question for item in items], [item.premise for item in items]),
        needs=f"snli_ve_SPLIT.jsonl and flickr30k-images/; the model reads {reads}",
        card="snli_ve",
        splits=("test", "dev"),
        metrics=("accuracy",),
        read=reader(with_premise),
        score=score,
        submission=submission,
        running=lambda items: correct,
    )
    for name, with_premise, reads in (
        ("snli_ve", False, "photo and sentence"),
        ("snli_ve_premise", True, "photo, its caption and sentence, as OFA does"),
    )
)
