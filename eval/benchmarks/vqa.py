"""Questions with short answers: VQAv2, OK-VQA, GQA, and the plain layouts of smaller sets."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.benchmark import (
    Benchmark,
    Item,
    Predictions,
    Scores,
    inside,
    layout,
    questions,
    read_json,
    shipped,
    texts,
    written,
)


def read_vqav2(folder: Path, split: str) -> list[Item]:
    """`val` with its answers; `test-dev` and `test`, whose answers are private."""
    subset = {"val": "val2014", "test-dev": "test-dev2015", "test": "test2015"}[split]
    annotations = {"val": "v2_mscoco_val2014_annotations.json"}.get(split)
    return read_vqa(
        folder, f"v2_OpenEnded_mscoco_{subset}_questions.json", annotations, "v2_{}_mscoco.zip of visualqa.org"
    )


def read_okvqa(folder: Path, split: str) -> list[Item]:
    """The 5,046 test questions; the publisher's files call them val2014."""
    questions, annotations = "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"
    return read_vqa(folder, questions, annotations, "the {} archive of okvqa.allenai.org")


def read_vqa(folder: Path, questions: str, annotations: str | None, ships: str) -> list[Item]:
    """The format of VQA: a file of questions and one of answers.

    Args:
        folder: given by the user; holds COCO's folders of photos as well.
        questions: file of the questions.
        annotations: file of the answers, if they are public.
        ships: where the publisher has the files, with a place for their kind.
    """
    asked = read_json(folder, questions, shipped(ships.format("Questions")))
    answered: dict[int, dict[str, Any]] = {}
    if annotations:
        data = read_json(folder, annotations, shipped(ships.format("Annotations")))
        with layout(folder / annotations):
            answered = {record["question_id"]: record for record in data["annotations"]}
    items = []
    with layout(folder / questions):
        # the photos of test-dev2015 are those of test2015
        photos = asked["data_subtype"].replace("-dev", "")
        for record in asked["questions"]:
            image = inside(folder / photos, f"COCO_{photos}_{record['image_id']:012d}.jpg")
            items.append(Item(record["question_id"], image, question=record["question"]))
    if not annotations:
        return items
    with layout(folder / annotations):
        return [_with_answers(item, answered[item.id]) for item in items]  # KeyError: a question without answers


def _with_answers(item: Item, record: dict[str, Any]) -> Item:
    answers = tuple(answer["answer"] for answer in record["answers"])
    groups = {"answer type": record["answer_type"], "question type": record["question_type"]}
    return Item(item.id, item.image, answers, question=item.question, groups=groups)


def read_gqa(folder: Path, split: str) -> list[Item]:
    """The balanced questions of a split."""
    file = f"{split}_balanced_questions.json"
    data = read_json(folder, file, shipped("questions1.2.zip of cs.stanford.edu/people/dorarad/gqa"))
    with layout(folder / file):
        return [
            Item(
                id,
                inside(folder / "images", f"{record['imageId']}.jpg"),
                () if record.get("answer") is None else (record["answer"],),
                question=record["question"],
                groups={"type": record["types"]["structural"]} if "types" in record else {},
            )
            for id, record in data.items()
        ]


def read_plain(folder: Path, split: str) -> list[Item]:
    """`vqa.json` or `cocoqa.json`: a list of questions, or of photos with several questions each.

    A question has `image`, `question` and either `answers`, one by each person asked, or one `answer`. A photo has
    `file` and `vqa`, a list of `question` and `answers`, which together are the one right answer (DAQUAR).
    """
    file = f"{split}.json"
    data = read_json(folder, file, written("a list of {image, question, answers} or {file, vqa}"))
    items = []
    with layout(folder / file):
        for number, record in enumerate(data):
            if "vqa" in record:
                image = inside(folder, record["file"])
                for place, asked in enumerate(record["vqa"]):
                    answer = ", ".join(texts(asked["answers"]))
                    items.append(Item(f"{record['file']}#{place}", image, (answer,), question=asked["question"]))
                continue
            answers = texts(record["answers"] if "answers" in record else record["answer"])
            items.append(
                Item(
                    record.get("question_id", number),
                    inside(folder, record["image"]),
                    answers,
                    question=record["question"],
                    groups={"source": record["source"]} if "source" in record else {},
                )
            )
    return items


def read_daquar(folder: Path, split: str) -> list[Item]:
    """`vqa.json` in photos, told apart by whether the answer is one thing or several."""
    return [
        replace(item, groups={"answer": "several" if "," in item.references[0] else "one"})
        for item in read_plain(folder, "vqa")
    ]


def accuracy(item: Item, answer: str) -> float:
    """The official VQA accuracy against several people, or equality with the one right answer, as a set."""
    from eval.metrics.vqa import normalize_answer, vqa_accuracy

    right, *others = item.references
    if others:
        return 100 * vqa_accuracy(answer, item.references)
    return 100.0 * ({*map(normalize_answer, answer.split(","))} == {*map(normalize_answer, right.split(","))})


def equality(item: Item, answer: str) -> float:
    """GQA's: the very same string, as its official script compares them."""
    return 100.0 * (answer == item.references[0])


def scorer(one: Callable[[Item, str], float]) -> Callable[[Sequence[Item], Predictions], Scores]:
    """Mean of a score over all questions."""

    def score(items: Sequence[Item], predictions: Predictions) -> Scores:
        shown = list(predictions)
        if not all(item.references for item in items):
            return Scores({}, {}, shown)
        values = [one(item, answer) for item, answer in zip(items, predictions, strict=True)]
        return Scores({"accuracy": sum(values) / len(values)}, {"accuracy": values}, shown)

    return score


def submission(items: Sequence[Item], predictions: Predictions) -> list[dict[str, Any]]:
    """What VQA's server takes."""
    return [{"question_id": item.id, "answer": text} for item, text in zip(items, predictions, strict=True)]


def gqa_submission(items: Sequence[Item], predictions: Predictions) -> list[dict[str, Any]]:
    """What GQA's server takes."""
    return [{"questionId": item.id, "prediction": text} for item, text in zip(items, predictions, strict=True)]


BENCHMARKS = (
    Benchmark(
        name="vqav2",
        task="answer",
        columns=questions,
        needs="v2_OpenEnded_mscoco_*_questions.json, v2_mscoco_val2014_annotations.json, val2014/ or test2015/",
        card="vqav2",
        splits=("val", "test-dev", "test"),
        metrics=("accuracy",),
        read=read_vqav2,
        score=scorer(accuracy),
        submission=submission,
        running=lambda items: accuracy,
    ),
    Benchmark(
        name="okvqa",
        task="answer",
        columns=questions,
        needs="OpenEnded_mscoco_val2014_questions.json, mscoco_val2014_annotations.json and val2014/",
        card="okvqa",
        splits=("test",),
        metrics=("accuracy",),
        read=read_okvqa,
        score=scorer(accuracy),
        submission=submission,
        running=lambda items: accuracy,
    ),
    Benchmark(
        name="gqa",
        task="answer",
        columns=questions,
        needs="SPLIT_balanced_questions.json and images/",
        card="gqa",
        splits=("testdev", "val", "test"),
        metrics=("accuracy",),
        read=read_gqa,
        score=scorer(equality),
        submission=gqa_submission,
        running=lambda items: equality,
    ),
    Benchmark(
        name="vqa_json",
        task="answer",
        columns=questions,
        needs="SPLIT.json, a list of {image, question, answers} or {file, vqa}, and the photos that it names",
        card="vqav2",
        splits=("vqa", "cocoqa"),
        metrics=("accuracy",),
        read=read_plain,
        score=scorer(accuracy),
        submission=submission,
        running=lambda items: accuracy,
    ),
    Benchmark(
        name="daquar",
        task="answer",
        columns=questions,
        needs="vqa.json, a list of {file, vqa: [{question, answers}]}, and the photos that it names",
        card="daquar",
        splits=("test",),
        metrics=("accuracy",),
        read=read_daquar,
        score=scorer(accuracy),
        submission=submission,
        running=lambda items: accuracy,
    ),
)
