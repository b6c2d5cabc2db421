"""Scenes that the project draws itself: a controlled test that needs no data. Training never sees its seeds."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.benchmark import Benchmark, Item, Predictions, Scores, questions
from eval.benchmarks import grounding, vqa

if TYPE_CHECKING:
    import numpy as np

    from vlm.data.scenes import Scene

SCENES = 500
SIZE = 260  # pixels
KINDS = ("count", "colour", "relation", "shape", "presence")  # as in vlm.data.scenes, which is imported late
NEEDS = "no files: the pictures are drawn, into --data where it is given, otherwise into runs/drawn"


def draw(folder: Path, split: str) -> Iterator[tuple[str, Path, "Scene"]]:
    """The scenes of a split, each with its name and the file that it was drawn into."""
    from vlm.data.scenes import make_scene
    from vlm.files.atomic import write_bytes

    for number in range(SCENES):
        scene = make_scene(f"{split}/{number}", SIZE)
        name, data = f"{split}-{number:03d}", scene.encoded()
        path = folder / f"{name}.png"
        if not path.is_file() or path.read_bytes() != data:  # an older version may have drawn it otherwise
            write_bytes(path, data)
        yield name, path, scene


def read_questions(folder: Path, split: str) -> list[Item]:
    """One question of each kind about each scene, where there is one: a single thing has no relation."""
    items = []
    for name, path, scene in draw(folder, split):
        for kind in KINDS:
            asked = next((question for question in scene.questions if question.kind == kind), None)
            if asked:
                about = {"kind": kind, "things": str(len(scene.things))}
                items.append(Item(f"{name}-{kind}", path, (asked.answer,), asked.text, groups=about))
    return items


def read_phrases(folder: Path, split: str) -> list[Item]:
    """One phrase for each thing that can be named; two red circles that lie near each other cannot."""
    items = []
    for name, path, scene in draw(folder, split):
        named = {phrase.box: phrase.text for phrase in reversed(scene.phrases)}  # the first of each thing
        for number, (box, text) in enumerate(named.items()):
            x1, y1, x2, y2 = (x * SIZE for x in box)
            about = {"things": str(len(scene.things))}
            item = Item(f"{name}-{number}", path, question=text, box=(x1, y1, x2, y2), size=(SIZE, SIZE), groups=about)
            items.append(item)
    return items


def score(items: Sequence[Item], predictions: Predictions) -> Scores:
    """Share of right answers, of all questions and of each kind."""
    values = [vqa.accuracy(item, answer) for item, answer in zip(items, predictions, strict=True)]
    kinds = [item.groups["kind"] for item in items]
    # for each kind, the points of an item and whether it counts
    sums = [
        [number for kind in KINDS for number in ((value, 1.0) if kind == own else (0.0, 0.0))]
        for value, own in zip(values, kinds, strict=True)
    ]
    figures = {"accuracy": sum(values) / len(values)}
    for kind in KINDS:
        if kind in kinds:
            of_kind = [value for value, own in zip(values, kinds, strict=True) if own == kind]
            figures[f"{kind} accuracy"] = sum(of_kind) / len(of_kind)
    return Scores(figures, {"accuracy": values}, list(predictions), sums)


def share(number: int) -> Callable[["np.ndarray"], "np.ndarray"]:
    """The accuracy of a kind of questions from the sums of a draw; 0 where the draw holds none of the kind."""

    def of_sums(sums: "np.ndarray") -> "np.ndarray":
        return sums[:, 2 * number] / sums[:, 2 * number + 1].clip(min=1)

    return of_sums


BENCHMARKS = (
    Benchmark(
        name="scenes",
        task="answer",
        columns=questions,
        needs=NEEDS,
        card="scenes",
        splits=("test", "val"),
        metrics=("accuracy", *(f"{kind} accuracy" for kind in KINDS)),
        read=read_questions,
        score=score,
        submission=vqa.submission,
        of_sums={f"{kind} accuracy": share(number) for number, kind in enumerate(KINDS)},
        running=lambda items: vqa.accuracy,
        drawn=True,
    ),
    Benchmark(
        name="scenes_grounding",
        task="ground",
        columns=questions,
        needs=NEEDS,
        card="scenes",
        splits=("test", "val"),
        metrics=("accuracy@0.5",),
        read=read_phrases,
        score=grounding.score,
        submission=grounding.submission,
        running=lambda items: grounding.hit,
        drawn=True,
    ),
)
