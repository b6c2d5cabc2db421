"""Samples to batches, by hand."""

import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlm.data.batches import IGNORED, caption_ids, choose_captions, pad, prompt_ids, teacher_forcing
from vlm.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer([" a dog runs", " a cat"], 280)


def test_padding_by_hand():
    assert pad([[5, 6, 7], [8], []]).tolist() == [[5, 6, 7], [8, 1, 1], [1, 1, 1]]
    assert pad([[5, 6], [8]], -100).tolist() == [[5, 6], [8, -100]]
    assert pad([[5]]).dtype == torch.int64


def test_a_prompt_stands_between_start_and_end():
    assert prompt_ids(TOKENIZER, " a dog") == [0, *TOKENIZER.encode(" a dog"), 2]


def test_captions_are_cleaned_and_each_counts_once():
    ids = caption_ids(TOKENIZER, ["A dog .", "a dog", "  A CAT!", "", " . "], 20)
    assert ids == [TOKENIZER.encode(" a dog"), TOKENIZER.encode(" a cat")]


def test_long_captions_are_left_out_while_a_shorter_one_exists():
    short, long = TOKENIZER.encode(" a cat"), TOKENIZER.encode(" a dog runs and barks")
    assert len(short) < 6 < len(long)
    assert caption_ids(TOKENIZER, ["a dog runs and barks", "a cat"], 6) == [short]
    assert caption_ids(TOKENIZER, ["a dog runs and barks"], 6) == [long[:6]]
    assert caption_ids(TOKENIZER, ["a cat"], len(short)) == [short]


@given(st.integers(1, 6), st.integers(0, 20), st.integers())
def test_captions_are_chosen_evenly(captions, count, seed):
    chosen = choose_captions([[i] for i in range(captions)], count, random.Random(seed))
    times = Counter(i for [i] in chosen)
    assert len(chosen) == count
    assert not count or max(times.values()) - min(times[i] for i in range(captions)) <= 1


def test_choice_depends_on_its_seed_alone():
    captions = [[i] for i in range(5)]
    first, second, other = (choose_captions(captions, 5, random.Random(seed)) for seed in (1, 1, 3))
    assert first == second != other


def test_teacher_forcing_by_hand():
    previous, labels = teacher_forcing([[7, 8, 9], [5]])
    assert previous.tolist() == [[0, 7, 8, 9], [0, 5, 1, 1]]
    assert labels.tolist() == [[7, 8, 9, 2], [5, 2, -100, -100]]
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORED


@given(st.lists(st.lists(st.integers(4, 99), min_size=1, max_size=6), min_size=1, max_size=5))
def test_each_position_predicts_the_next_token(captions):
    previous, labels = teacher_forcing(captions)
    for row, ids in enumerate(captions):
        assert previous[row, : len(ids) + 1].tolist() == [0, *ids]
        assert labels[row, : len(ids) + 1].tolist() == [*ids, 2]
        assert (labels[row, len(ids) + 1 :] == IGNORED).all()


def test_nothing_is_lost_in_a_round_trip():
    [ids] = caption_ids(TOKENIZER, ["A dog runs!"], 20)
    assert TOKENIZER.decode(ids) == " a dog runs"
    with pytest.raises(ValueError):
        pad([])
