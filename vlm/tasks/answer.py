"""Answer a question about a photo."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from vlm.data.questions import MadeQuestion, questions_about
from vlm.data.shards import Sample
from vlm.decoding.answer import Answer
from vlm.errors import ArgumentError, DataError
from vlm.predictor import Photo, Predictor, Prefix, decoder_prefix
from vlm.tasks.base import OFA_BASE, Task, TrainingExample, choose, patches_of
from vlm.tasks.text import MAX_WORDS, clean_question, distinct

T = TypeVar("T")

PROMPT = " {}"
OBJECTS = " object: {}"  # encoded by itself and put after a question: names of things seen in the photo
MAX_OBJECTS = 30


@dataclass(frozen=True)
class Question:
    """A question about a photo.

    Attributes:
        text: as it was asked.
        answers: one by each person asked, in lower case.
    """

    text: str
    answers: tuple[str, ...]


class AnswerQuestion(Task):
    """A photo and a question to answers, the best first."""

    name = "answer"
    photo = "optional"  # OFA answers questions without a photo, too
    inputs = ("question",)
    does = "answer questions"
    example_model = OFA_BASE
    defaults: ClassVar = {"prompt": PROMPT, "prefix": "none", "beams": 5, "max_tokens": 30, "normalize": False}
    metric = "answers"

    def source(self, photo: Photo | None, *inputs: Any) -> list[int]:
        """Ids of a question and, in a second input, of things seen in the photo, which some of OFA's models read."""
        question, *objects = inputs
        ids = self.tokenizer.encode(self.prompt.format(with_mark(question)))
        names = objects[0] if objects else ()
        return ids + self.tokenizer.encode(OBJECTS.format(" ".join(names[:MAX_OBJECTS]))) if names else ids

    def run(
        self,
        predictor: Predictor,
        photos: Sequence[Photo] | None,
        *columns: Sequence[Any],
        choices: Sequence[str] | None = None,
        score_all: bool = False,
        objects: Sequence[Sequence[str]] | None = None,
        prefix: Prefix | None = None,
        **options: Any,
    ) -> list[list[Answer]]:
        """Answer one question about each photo.

        Args:
            predictor: the model.
            photos: the same photo as often as it is asked about.
            columns: the questions, one for each photo.
            choices: the only answers that may be given; None: any text.
            score_all: score every one of `choices`, not only those that a beam search meets. Their probabilities sum
                to 1.
            objects: names of things seen in each photo, which some models of OFA read after the question.
            prefix: what the decoder is given before it answers; None: as the settings say.
            options: as in `Task.run`.

        Raises:
            ArgumentError: a question contains no words, or options exclude each other.
        """
        names = None if choices is None else distinct("answer", choices)
        columns = columns if objects is None else (*columns, objects)
        if not score_all:
            return super().run(predictor, photos, *columns, choices=names, prefix=prefix, **options)
        if names is None or options:
            raise ArgumentError("score_all scores given answers and searches none: give choices, and no options")
        assert photos is not None
        sources = [self.source(photo, *inputs) for photo, *inputs in zip(photos, *columns, strict=True)]
        return predictor.score(sources, patches_of(photos), names, prefix=prefix or self.prefix)

    @classmethod
    def in_sample(cls, sample: Sample) -> bool:
        return bool(questions(sample))

    @classmethod
    def texts(cls, sample: Sample) -> Iterator[str]:
        questions(sample)  # refuses what is not text
        for item in sample.fields.get("vqa") or ():
            answers = [item["answers"]] if isinstance(item["answers"], str) else item["answers"]
            yield from (" " + text for text in (item["question"], *answers))

    def examples(self, sample: Sample, rng: random.Random, count: int) -> list[TrainingExample]:
        found: list[TrainingExample] = []
        asked, share = self._readable(sample), self.rules.made_questions
        num_made = sum(not asked or rng.random() < share for _ in range(count)) if share else 0
        for source, answer in self._made(sample, num_made, rng):
            found.append(self.example(source, answer))
        for source, answers in choose(asked, count - len(found), rng):
            ids, weight = choose_answer(answers, self.rules.weighted_answers, rng)
            found.append(self.example(source, ids, weight))
        return found if len(found) == count else []

    def unreadable(self, sample: Sample) -> int:
        return len(questions(sample, self.rules.answer_sets)) - len(self._readable(sample))

    def answers(self, sample: Sample) -> Iterable[str]:
        for question in questions(sample, self.rules.answer_sets):
            yield from (text for text, ids in self._answer_ids(question) if len(ids) <= self.rules.max_tokens)

    def checks(self, sample: Sample) -> Iterator[tuple[tuple[Any, ...], Sequence[str]]]:
        for question in questions(sample, self.rules.answer_sets):
            if self._question_ids(question):
                yield (question.text,), question.answers

    def _readable(self, sample: Sample) -> list[tuple[list[int], list[tuple[int, ...]]]]:
        """Ids of the questions that the model can read, each with the answers that it can generate, one a person."""
        found: list[tuple[list[int], list[tuple[int, ...]]]] = []
        for question in questions(sample, self.rules.answer_sets):
            answers = [tuple(ids) for _, ids in self._answer_ids(question) if len(ids) <= self.rules.max_tokens]
            if answers and (source := self._question_ids(question)):
                found.append((source, answers))
        return found

    def _made(self, sample: Sample, count: int, rng: random.Random) -> list[tuple[list[int], list[int]]]:
        """Ids of questions made from what is known of a photo, each kind as likely, and of their answers."""
        if not count:
            return []
        known = sample.fields
        made = questions_about(
            sample.captions, known.get("phrases") or (), known.get("boxes") or (), bool(known.get("boxes_complete"))
        )
        kinds: dict[str, list[MadeQuestion]] = {}
        for question in made:
            kinds.setdefault(question.kind, []).append(question)
        chosen = [rng.choice(kinds[kind]) for kind in choose(list(kinds), count, rng)]
        answers = self.tokenizer.encode_batch([f" {question.answer}" for question in chosen]) if chosen else []
        return [(self.source(None, question.text), ids) for question, ids in zip(chosen, answers, strict=True)]

    def _answer_ids(self, question: Question) -> list[tuple[str, list[int]]]:
        ids = self.tokenizer.encode_batch([f" {answer}" for answer in question.answers])
        return list(zip(question.answers, ids, strict=True))

    def _question_ids(self, question: Question) -> list[int] | None:
        """The instruction of a question; None where it contains no words, or more than the model reads."""
        try:
            ids = self.source(None, question.text)
        except ArgumentError:
            return None
        longest = len(decoder_prefix(ids, self.prefix)) + max(self.rules.max_tokens, self.settings["max_tokens"])
        return ids if len(ids) + 2 <= self.rules.max_source and longest <= self.rules.max_target else None


def with_mark(question: str) -> str:
    """A question cleaned, which ends with its mark in any case.

    Raises:
        ArgumentError: the question contains no words.
    """
    text = clean_question(question, MAX_WORDS)
    if not text.rstrip("?？ "):
        raise ArgumentError(f"the question {question[:40]!r} contains no words; write one")
    return text if text.endswith(("?", "？")) else text + "?"


def questions(sample: Sample, answer_sets: Sequence[str] = ()) -> list[Question]:
    """The questions of a sample's record that somebody answered.

    Args:
        sample: its `vqa` is a list of `question`, `answers` and, where wanted, `source`.
        answer_sets: sources whose several answers are together the one right answer.

    Raises:
        DataError: the record has another form.
    """
    found: list[Question] = []
    for item in sample.fields.get("vqa") or ():
        try:
            text, given = "" + item["question"], item["answers"]  # TypeError: it is not text
            given = [given] if isinstance(given, str) else given
            answers = [clean for answer in given if (clean := " ".join(answer.lower().split()))]
            joined = [", ".join(answers)] if answers and item.get("source") in answer_sets else answers
        except (AttributeError, KeyError, TypeError):
            shown = str(item)[:60]
            raise DataError(f"sample {sample.key!r}: vqa holds {shown}; give objects of question and answers") from None
        if joined:
            found.append(Question(text, tuple(joined)))
    return found


def choose_answer(answers: Sequence[T], weighted: bool, rng: random.Random) -> tuple[T, float]:
    """One of a question's answers and how much it counts.

    Args:
        answers: one by each person asked.
        weighted: take what most people said, weighted as the metric of VQA would (Antol et al., 2015): three of ten
            people make it right. Otherwise take one at random, as often as people gave it.
        rng: the only source of randomness.
    """
    if not weighted:
        return rng.choice(answers), 1.0
    times = [answers.count(answer) for answer in answers]
    return answers[times.index(max(times))], min(1.0, 3 * max(times) / len(answers))
