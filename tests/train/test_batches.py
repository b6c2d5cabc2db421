"""Training examples to tensors, by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlm.decoding.trie import Trie
from vlm.predictor import encoder_ids, pad
from vlm.tasks import TrainingExample
from vlm.tasks.caption import Caption
from vlm.tokenizer import train_tokenizer
from vlm.train.batches import IGNORED, allowed_tokens, teacher_forcing

TOKENIZER = train_tokenizer([" a dog runs", " a cat"], 280)


def example(source: list[int], answer: list[int], prefix: str = "none") -> TrainingExample:
    return Caption(TOKENIZER, 64, {"prefix": prefix}).example(source, answer)


def test_padding_by_hand():
    assert pad([[5, 6, 7], [8], []]).tolist() == [[5, 6, 7], [8, 1, 1], [1, 1, 1]]
    assert pad([[5, 6], [8]], -100).tolist() == [[5, 6], [8, -100]]
    assert pad([[5]]).dtype == torch.int64


def test_a_prompt_stands_between_start_and_end():
    assert encoder_ids(TOKENIZER.encode(" a dog")) == [0, *TOKENIZER.encode(" a dog"), 2]


def test_teacher_forcing_by_hand():
    previous, labels = teacher_forcing([example([4], ids) for ids in ([7, 8, 9], [5])])
    assert previous.tolist() == [[0, 7, 8, 9], [0, 5, 1, 1]]
    assert labels.tolist() == [[7, 8, 9, 2], [5, 2, -100, -100]]
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORED


def test_nothing_is_learned_before_the_answer():
    asked = [example([7, 8], [9], "source"), example([6], [4, 5], "source")]
    previous, labels = teacher_forcing(asked)
    assert previous.tolist() == [[0, 7, 8, 9], [0, 6, 4, 5]]
    assert labels.tolist() == [[-100, -100, 9, 2], [-100, 4, 5, 2]]
    assert [item.num_tokens for item in asked] == [2, 3] == (labels != IGNORED).sum(1).tolist()


@given(st.lists(st.lists(st.integers(4, 99), min_size=1, max_size=6), min_size=1, max_size=5))
def test_each_position_predicts_the_next_token(captions):
    previous, labels = teacher_forcing([example([4, 5], ids) for ids in captions])
    for row, ids in enumerate(captions):
        assert previous[row, : len(ids) + 1].tolist() == [0, *ids]
        assert labels[row, : len(ids) + 1].tolist() == [*ids, 2]
        assert (labels[row, len(ids) + 1 :] == IGNORED).all()


def test_no_rows_cannot_be_padded():
    with pytest.raises(ValueError):
        pad([])


def test_what_may_be_written_follows_the_answers_by_hand():
    trie = Trie([[10, 20], [10, 21, 22], [30]])
    labels = torch.tensor([[-100, 10, 20, 2], [30, 2, -100, -100]])
    found = [row.nonzero().flatten().tolist() for row in allowed_tokens(trie, labels, 40)]
    assert found == [[10, 30], [20, 21], [2], [10, 30], [2]]


@given(st.lists(st.lists(st.integers(4, 9), min_size=1, max_size=4), min_size=1, max_size=6), st.integers(0, 3))
def test_every_answer_of_the_set_is_allowed(answers, before):
    _, labels = teacher_forcing([example([5] * before, ids, "source") for ids in answers])
    allowed = allowed_tokens(Trie(answers), labels, 12)
    words = labels[labels != IGNORED]
    assert allowed.shape == (len(words), 12) and bool(allowed.gather(1, words[:, None]).all())
    first = {ids[0] for ids in answers}
    starts = torch.tensor([len(ids) + 1 for ids in answers]).cumsum(0).roll(1)
    starts[0] = 0
    assert all({*row.nonzero().flatten().tolist()} == first for row in allowed[starts])
