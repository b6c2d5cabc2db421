"""RefCOCO, RefCOCO+, RefCOCOg, and a plain `grounding.json`: the box that a phrase names."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.benchmark import (
    Benchmark,
    Item,
    Predictions,
    Scores,
    find_file,
    find_photo,
    inside,
    layout,
    questions,
    read_json,
    shipped,
    texts,
    written,
)
from vlm.errors import DataError

SIDE = 1000  # of all photos whose boxes come in fractions: the overlap of two boxes does not depend on it


class PlainUnpickler(pickle.Unpickler):
    """Reads lists, dictionaries, strings and numbers; a pickle that asks for more is refused before it runs."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")


def read_pickle(path: Path) -> Any:
    """The plain data of a pickle that is not trusted.

    Raises:
        DataError: it is damaged, or holds more than lists, dictionaries, strings and numbers.
    """
    try:
        with path.open("rb") as file:
            return PlainUnpickler(file, encoding="utf-8", errors="replace").load()  # written by Python 2
    except Exception as error:  # a pickle made to harm can fail in any way at all
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{str(path)!r} is not a pickle of plain data: {reason}; take the publisher's file") from None


def reader(name: str, division: str) -> Callable[[Path, str], list[Item]]:
    """How one of the three sets is read, in one of its divisions into splits."""

    def read(folder: Path, split: str) -> list[Item]:
        file, remedy = f"{name}/instances.json", shipped(f"{name}.zip of github.com/lichengunc/refer")
        refs = read_pickle(find_file(folder, f"{name}/refs({division}).p", remedy))
        data = read_json(folder, file, remedy)
        with layout(folder / file):
            images = {record["id"]: record for record in data["images"]}
            boxes = {record["id"]: record["bbox"] for record in data["annotations"]}
        items = []
        with layout(folder / f"{name}/refs({division}).p"):
            for ref in refs:
                if ref["split"] != split:
                    continue
                image = images[ref["image_id"]]
                x, y, width, height = boxes[ref["ann_id"]]
                path = inside(folder / "train2014", image["file_name"])  # all splits take their photos from there
                items += [
                    Item(
                        sentence["sent_id"],
                        path,
                        question=sentence["sent"],
                        box=(x, y, x + width, y + height),
                        size=(image["width"], image["height"]),
                    )
                    for sentence in ref["sentences"]
                ]
        return items

    return read


def read_plain(folder: Path, split: str) -> list[Item]:
    """`grounding.json`, a list of `{"image", "phrase", "box"}` with boxes in fractions, and perhaps `"types"`."""
    form = written("a list of {image, phrase, box} with boxes as fractions of width and height")
    data = read_json(folder, "grounding.json", form)
    with layout(folder / "grounding.json"):
        return [_plain_item(number, record, folder) for number, record in enumerate(data)]


def _plain_item(number: int, record: dict[str, Any], folder: Path) -> Item:
    left, top, right, bottom = (float(x) for x in record["box"])
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(f"box {record['box']} of phrase {record['phrase']!r} is not x1 < x2, y1 < y2 in fractions")
    return Item(
        number,
        find_photo(folder, record["image"]),
        question=record["phrase"],
        box=(SIDE * left, SIDE * top, SIDE * right, SIDE * bottom),
        size=(SIDE, SIDE),
        groups={"type": texts(record["types"])} if record.get("types") else {},
    )


def hit(item: Item, box: Sequence[float]) -> float:
    """Whether a box, in fractions of width and height, overlaps the true one enough; in points."""
    from eval.metrics.grounding import grounding_hits

    assert item.box is not None
    pixels = [x * side for x, side in zip(box, item.size * 2, strict=True)]
    return 100.0 * bool(grounding_hits([pixels], [item.box])[0])


def score(items: Sequence[Item], predictions: Predictions) -> Scores:
    """Share of the phrases whose box is found."""
    values = [hit(item, box) for item, box in zip(items, predictions, strict=True)]
    shown = [", ".join(f"{100 * x:.0f} %" for x in box) for box in predictions]
    return Scores({"accuracy@0.5": sum(values) / len(values)}, {"accuracy@0.5": values}, shown)


def submission(items: Sequence[Item], predictions: Predictions) -> list[dict[str, Any]]:
    """There is no server for these sets: the box of each phrase, in fractions of width and height."""
    return [{"sent_id": item.id, "box": box} for item, box in zip(items, predictions, strict=True)]


BENCHMARKS = tuple(
    Benchmark(
        name=name,
        task="ground",
        columns=questions,
        needs=needs,
        card=card,
        splits=splits,
        metrics=("accuracy@0.5",),
        read=read,
        score=score,
        submission=submission,
        running=lambda items: hit,
    )
    for name, needs, card, splits, read in (
        *(
            (
                name,
                f"{name}/instances.json, {name}/refs({division}).p and train2014/",
                "refcoco",
                splits,
                reader(name, division),
            )
            for name, division, splits in (
                ("refcoco", "unc", ("val", "testA", "testB")),
                ("refcoco+", "unc", ("val", "testA", "testB")),
                ("refcocog", "umd", ("val", "test")),
            )
        ),
        (
            "grounding_json",
            "grounding.json, a list of {image, phrase, box, types}, and the photos that it names",
            "flickr30k_entities",
            ("all",),
            read_plain,
        ),
    )
)
