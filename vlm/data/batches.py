"""Samples to batches: several captions of one photo share one pass of the encoder."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from vlm import prompt
from vlm.tokenizer import BOS, EOS, PAD, Tokenizer

IGNORED = -100  # label of positions without a loss, as torch's cross entropy has it


def pad(rows: Sequence[Sequence[int]], value: int = PAD) -> Tensor:
    """Ragged rows to `int64[rows, longest]`, padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """An instruction between start and end token."""
    return [BOS, *tokenizer.encode(text), EOS]


def caption_ids(tokenizer: Tokenizer, captions: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Cleaned captions as ids (no start or end token); too long ones are left out while a shorter one exists."""
    texts = list(dict.fromkeys(filter(None, map(prompt.clean_caption, captions))))
    ids = tokenizer.encode_batch([" " + text for text in texts])
    return [row for row in ids if len(row) <= max_tokens] or [row[:max_tokens] for row in ids]


def choose_captions(captions: Sequence[list[int]], count: int, rng: random.Random) -> list[list[int]]:
    """`count` captions in random order, each as often as the others give or take one."""
    chosen: list[list[int]] = []
    while len(chosen) < count:
        chosen += rng.sample(captions, min(len(captions), count - len(chosen)))
    return chosen


def teacher_forcing(captions: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Decoder input and labels of captions.

    Returns:
        `int64[rows, words]` starting with the start token, and `int64[rows, words]` ending with the end token, padded
        with `IGNORED`.
    """
    previous = pad([[BOS, *ids] for ids in captions])
    labels = pad([[*ids, EOS] for ids in captions], IGNORED)
    return previous, labels
