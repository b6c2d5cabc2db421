"""Training examples to tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlm.decoding.trie import Trie
from vlm.models.config import PAD
from vlm.predictor import pad
from vlm.tasks import TrainingExample

IGNORED = -100  # label of positions without a loss, as torch's cross entropy has it


def teacher_forcing(examples: Sequence[TrainingExample]) -> tuple[Tensor, Tensor]:
    """Decoder input and labels of examples.

    Returns:
        `int64[rows, tokens]` starting with the start token, and `int64[rows, tokens]` ending with the end token, with
        `IGNORED` before the answers and after them.
    """
    labels = pad([example.target for example in examples])
    return pad([example.previous for example in examples]), labels.masked_fill(labels == PAD, IGNORED)


def allowed_tokens(trie: Trie, labels: Tensor, vocab: int) -> Tensor:
    """What may stand at each labelled position, so that the answer remains one of a closed set.

    Args:
        trie: the answers, on the device of the labels.
        labels: `int64[rows, tokens]` of answers of the set, their end token last; `IGNORED` elsewhere.
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
