"""Samples to batches: several captions of one photo share one pass of the encoder."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from vlm import prompt
from vlm.asking import pad
from vlm.candidates import Trie
from vlm.data.shards import Sample
from vlm.errors import DataError
from vlm.prompt import Example
from vlm.tokenizer import BOS, EOS, PAD, Tokenizer

T = TypeVar("T")
IGNORED = -100  # label of positions without a loss, as torch's cross entropy has it


@dataclass(frozen=True)
class Lesson:
    """One text to learn.

    Attributes:
        example: as the networks read and write it.
        weight: how much its words count.
    """

    example: Example
    weight: float = 1.0

    @property
    def words(self) -> int:
        """How many words are learned, the end token among them."""
        return len(self.example.target) - len(self.example.prefix) + 1


@dataclass(frozen=True)
class Question:
    """A question about a photo.

    Attributes:
        text: as it was asked.
        answers: one by each person asked, in lower case.
    """

    text: str
    answers: tuple[str, ...]


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """An instruction between start and end token."""
    return [BOS, *tokenizer.encode(text), EOS]


def caption_ids(
    tokenizer: Tokenizer,
    captions: Sequence[str],
    max_tokens: int,
    clean: Callable[[str], str] = prompt.clean_caption,
) -> list[list[int]]:
    """Cleaned captions as ids (no start or end token); too long ones are left out while a shorter one exists."""
    texts = list(dict.fromkeys(filter(None, map(clean, captions))))
    ids = tokenizer.encode_batch([" " + text for text in texts])
    return [row for row in ids if len(row) <= max_tokens] or [row[:max_tokens] for row in ids]


def questions(sample: Sample, answer_sets: Sequence[str] = ()) -> list[Question]:
    """The questions of a sample's record that somebody answered.

    Args:
        sample: its `vqa` is a list of `question`, `answers` and, where wanted, `source`.
        answer_sets: sources whose several answers are together the one right answer.

    Raises:
        DataError: the record has another form.
    """
    found = []
    for item in sample.fields.get("vqa") or ():
        try:
            text, given = item["question"], item["answers"]
            given = [given] if isinstance(given, str) else given
            answers = [clean for answer in given if (clean := " ".join(answer.lower().split()))]
            joined = [", ".join(answers)] if answers and item.get("source") in answer_sets else answers
        except (AttributeError, KeyError, TypeError):
            shown = str(item)[:60]
            raise DataError(f"sample {sample.key!r}: vqa holds {shown}; give objects of question and answers") from None
        if joined:
            found.append(Question(str(text), tuple(joined)))
    return found


def says(sample: Sample, task: str) -> bool:
    """Whether there is something to learn from a sample: captions, or questions with answers."""
    return bool(questions(sample)) if task == "answer" else any(map(prompt.clean_caption, sample.captions))


def choose_captions(captions: Sequence[T], count: int, rng: random.Random) -> list[T]:
    """`count` captions in random order, each as often as the others give or take one."""
    chosen: list[T] = []
    while len(chosen) < count:
        chosen += rng.sample(captions, min(len(captions), count - len(chosen)))
    return chosen


def choose_answer(answers: Sequence[T], weighted: bool, rng: random.Random) -> tuple[T, float]:
    """One of a question's answers and how much it counts.

    Args:
        answers: one by each person asked.
        weighted: take what most people said, weighed as the metric of VQA would (Antol et al., 2015): three of ten
            people make it right. Otherwise take one at random, as often as people gave it.
        rng: the only source of randomness.
    """
    if not weighted:
        return rng.choice(answers), 1.0
    times = [answers.count(answer) for answer in answers]
    return answers[times.index(max(times))], min(1.0, 3 * max(times) / len(answers))


def teacher_forcing(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Decoder input and labels of examples.

    Returns:
        `int64[rows, words]` starting with the start token, and `int64[rows, words]` ending with the end token, with
        `IGNORED` before the answers and behind them.
    """
    labels = pad([example.target for example in examples])
    return pad([example.previous for example in examples]), labels.masked_fill(labels == PAD, IGNORED)


def allowed_words(trie: Trie, labels: Tensor, vocab: int) -> Tensor:
    """What may stand at each labelled position, so that the answer remains one of a closed set.

    Args:
        trie: the answers, on the device of the labels.
        labels: `int64[rows, words]` of answers of the set, their end token last; `IGNORED` elsewhere.
        vocab: ids of the model.

    Returns:
        `bool[labelled, vocab]`, row by row, True at ids that continue an answer.
    """
    nodes = torch.zeros_like(labels[:, 0])
    places = []
    for ids in labels.unbind(1):
        places.append(nodes)
        nodes = torch.where(ids == IGNORED, nodes, trie.advance(nodes, ids.clamp(min=0)))
    return trie.children(torch.stack(places, 1)[labels != IGNORED], vocab)
