"""How much faster `vqa_scores` is than the official VQA evaluation's loop, transcribed step by step.

Both score the same generated questions, each with ten human answers and a prediction, in blocks and in turns; their
figures must be the same. Answers are drawn as in VQAv2: few make up most, and a long tail occurs once. The memory of
normalised answers is empty at the start and grows over the blocks, as over the questions of one evaluation. Prints
seconds and ratio.
"""

import argparse
import copy
import random
import re
import time
from collections.abc import Sequence

from eval.metrics.vqa import CONTRACTIONS, normalize_answer, vqa_scores

GOAL = 5.0

MARKS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]
DIGITS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
DIGITS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
ARTICLES = ["a", "an", "the"]
DOT = re.compile(r"(?!<=\d)(\.)(?!\d)")
DIGIT_GROUP = re.compile(r"(\d)(,)(\d)")

WORDS = [
    "red",
    "blue",
    "white",
    "man",
    "woman",
    "dog",
    "cat",
    "tennis",
    "racket",
    "street",
    "table",
    "left",
    "right",
    "grass",
]
WORDS += [*DIGITS, *CONTRACTIONS, "a", "the", "on", "of", "in", "playing", "wii", "12", "1,000", "3.50", "10:30"]


def official_punctuation(text: str) -> str:
    out = text
    for mark in MARKS:
        if (mark + " " in text or " " + mark in text) or re.search(DIGIT_GROUP, text) is not None:
            out = out.replace(mark, "")
        else:
            out = out.replace(mark, " ")
    return DOT.sub("", out, count=int(re.UNICODE))


def official_words(text: str) -> str:
    words = []
    for word in text.lower().split():
        word = DIGITS.setdefault(word, word)
        if word not in ARTICLES:
            words.append(word)
    for i, word in enumerate(words):
        if word in CONTRACTIONS:
            words[i] = CONTRACTIONS[word]
    return " ".join(words)


def official_loop(predictions: dict[int | str, str], annotations: list[dict]) -> list[float]:
    """Score of each question; overwrites the human answers, as the official script does."""
    scores = []
    for question in annotations:
        people = question["answers"]
        for person in people:
            person["answer"] = person["answer"].replace("\n", " ").replace("\t", " ").strip()
        prediction = predictions[question["question_id"]].replace("\n", " ").replace("\t", " ").strip()
        if len({person["answer"] for person in people}) > 1:
            for person in people:
                person["answer"] = official_words(official_punctuation(person["answer"]))
            prediction = official_words(official_punctuation(prediction))
        turns = []
        for left_out in people:
            others = [person for person in people if person != left_out]
            matching = [person for person in others if person["answer"] == prediction]
            turns.append(min(1, float(len(matching)) / 3))
        scores.append(float(sum(turns)) / len(turns))
    return scores


def make_answer(rng: random.Random) -> str:
    """The rank of an answer follows a power law; rank and number of words grow together."""
    rank = int(rng.paretovariate(0.3))
    if rank <= 3000:
        words = random.Random(rank).choices(WORDS, k=1 + rank % 3)
    else:
        words = [*rng.choices(WORDS, k=rng.randint(2, 5)), str(rank % 10**6)]
    return rng.choice([" ", " ", " ", "-", ", ", "/"]).join(words)


def make_block(rng: random.Random, first: int, questions: int) -> tuple[dict[int | str, str], list[dict]]:
    predictions, annotations = {}, []
    for question in range(first, first + questions):
        candidates = [make_answer(rng) for _ in range(rng.choice([1, 2, 3, 5]))]
        people = [{"answer_id": i + 1, "answer": rng.choice(candidates)} for i in range(10)]
        for person in people:
            person["answer_confidence"] = rng.choice(["yes", "maybe"])
        annotations.append(
            {
                "question_id": question,
                "question_type": rng.choice(["what is", "how many", "is the"]),
                "answer_type": rng.choice(["yes/no", "number", "other"]),
                "answers": people,
            }
        )
        predictions[question] = rng.choice([*candidates, make_answer(rng)])
    return predictions, annotations


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=200_000, help="predictions to score")
    parser.add_argument("--block", type=int, default=10_000, help="questions generated and scored together")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rng = random.Random(args.seed)
    normalize_answer.cache_clear()
    ours = official = 0.0
    total = 0.0
    for first in range(0, args.questions, args.block):
        predictions, annotations = make_block(rng, first, min(args.block, args.questions - first))
        originals = copy.deepcopy(annotations)
        start = time.perf_counter()
        scores = vqa_scores(predictions, annotations)
        ours += time.perf_counter() - start
        start = time.perf_counter()
        expected = official_loop(predictions, originals)
        official += time.perf_counter() - start
        if scores.per_question.tolist() != expected:
            print(f"questions {first} to {first + args.block}: the two differ")
            return 1
        total += sum(expected)
    distinct = normalize_answer.cache_info().currsize
    print(
        f"{args.questions} predictions, {distinct} distinct answers, accuracy {total / args.questions:.4f} twice: "
        f"official loop {official:.1f} s, vqa_scores {ours:.2f} s, ratio {official / ours:.1f} (goal {GOAL:g})"
    )
    return 0 if official / ours >= GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main())
