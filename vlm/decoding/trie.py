"""Closed sets of answers: a prefix tree that constrains decoding, and the score of every answer of the set."""

# the types that torch gives some of its results are unknown
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from collections.abc import Iterable

import torch
from torch import Tensor

from vlm.errors import ArgumentError
from vlm.models.config import BOS, EOS, PAD
from vlm.models.seq2seq import Encoded, Seq2Seq


class Trie:
    """Prefix tree of the answers that may be given, walked by many hypotheses at once.

    All edges lie in one sorted tensor of `node << 32 | id`; nodes are numbered breadth first, so that edge i leads to
    node i + 1. Node 0 is the root, and the number after the last node stands for leaving the tree.

    Attributes:
        sequences: the answers, in the order given, without end token.
        keys: `int64[edges]`.
    """

    def __init__(self, sequences: Iterable[Iterable[int]]):
        self.sequences = [tuple(sequence) for sequence in sequences]
        if not self.sequences:
            raise ArgumentError("no answers to choose from; give at least one sequence of ids")
        if bad := [s for s in self.sequences if any(i < 0 or i in (PAD, EOS) for i in s)]:
            raise ArgumentError(f"answer {bad[0]} holds padding, an end token or a negative id; leave them out")
        paths = [(*sequence, EOS) for sequence in self.sequences]
        nodes = [0] * len(paths)  # where each path stands
        keys: list[int] = []
        for depth in range(max(map(len, paths))):
            open_paths = [i for i, path in enumerate(paths) if depth < len(path)]
            edges = sorted({nodes[i] << 32 | paths[i][depth] for i in open_paths})
            number = {key: len(keys) + 1 + i for i, key in enumerate(edges)}
            for i in open_paths:
                nodes[i] = number[nodes[i] << 32 | paths[i][depth]]
            keys += edges
        self.keys = torch.tensor(keys)

    def ids(self) -> Tensor:
        """Every id on some edge, sorted, `int64[ids]`."""
        return (self.keys & 0xFFFFFFFF).unique()

    def prepare(self, vocab_size: int, device: torch.device) -> None:
        """Move to a device, for a model of `vocab_size` ids.

        Raises:
            ArgumentError: an answer holds an id that the model does not know.
        """
        self.keys = self.keys.to(device)
        if (largest := int(self.ids()[-1])) >= vocab_size:
            raise ArgumentError(
                f"an answer holds id {largest}; this model knows {vocab_size}: encode it by its tokenizer"
            )

    def children(self, nodes: Tensor, vocab_size: int) -> Tensor:
        """What may follow: `int64[rows]` nodes to `bool[rows, vocab]`, True at allowed ids."""
        first = torch.searchsorted(self.keys, nodes << 32)
        counts = torch.searchsorted(self.keys, (nodes + 1) << 32) - first
        rows = torch.arange(len(nodes), device=nodes.device).repeat_interleave(counts)
        # edges of all rows one after the other: each row counts up from its first edge
        steps = torch.arange(len(rows), device=nodes.device) - (counts.cumsum(0) - counts)[rows]
        mask = torch.zeros(len(nodes), vocab_size, dtype=torch.bool, device=nodes.device)
        mask[rows, self.keys[first[rows] + steps] & 0xFFFFFFFF] = True
        return mask

    def advance(self, nodes: Tensor, ids: Tensor) -> Tensor:
        """Follow one edge a row: `int64[rows]` nodes and ids to the `int64[rows]` nodes reached."""
        keys = (nodes << 32) + ids
        edges = torch.searchsorted(self.keys, keys)
        found = self.keys[edges.clamp(max=len(self.keys) - 1)] == keys
        return torch.where(found, edges + 1, len(self.keys) + 1)


@torch.inference_mode()
def score_candidates(
    backbone: Seq2Seq, encoded: Encoded, trie: Trie, *, prefix_ids: Tensor | None = None, chunk: int = 64
) -> Tensor:
    """Log-probability of each answer of a closed set, among the answers of the set.

    At each position the softmax runs over those tokens only that continue some answer of the set, so that the
    probabilities of the answers sum to 1. Lengths do not matter.

    Args:
        backbone: in evaluation mode.
        encoded: from `backbone.encode`, of `batch` samples.
        trie: the answers.
        prefix_ids: `int64[batch, words]`, tokens before the answer that are not scored, padded on the right with 1.
        chunk: answers that are read at once; changes memory, not results.

    Returns:
        `float32[batch, answers]`, in the order of `trie.sequences`.

    Raises:
        ArgumentError: an answer that this backbone cannot write.
    """
    batch, device = encoded.states.shape[0], encoded.states.device
    trie.prepare(backbone.config.vocab_size, device)
    output_ids = trie.ids()
    prefix = torch.empty(batch, 0, dtype=torch.long) if prefix_ids is None else prefix_ids
    prefix = prefix.to(device)
    longest = prefix.shape[1] + max(map(len, trie.sequences)) + 1
    if longest > backbone.config.max_target_positions:
        raise ArgumentError(
            f"an answer takes {longest} tokens; this model writes {backbone.config.max_target_positions}"
        )
    starts = (prefix != PAD).sum(1)[:, None, None]  # position that predicts the first token of the answer
    scores = []
    for first in range(0, len(trie.sequences), chunk):
        answers = trie.sequences[first : first + chunk]
        length = max(map(len, answers)) + 1
        targets = torch.tensor([[*a, EOS, *[PAD] * (length - 1 - len(a))] for a in answers], device=device)
        previous = prefix.new_full((batch, len(answers), prefix.shape[1] + length), PAD)
        previous[:, :, 0] = BOS
        previous[:, :, 1 : prefix.shape[1] + 1] = prefix[:, None]
        where = starts + torch.arange(length, device=device)  # [batch, 1, length]
        where = where.expand(-1, len(answers), -1)
        words = targets[:, :-1].masked_fill(targets[:, :-1] == EOS, PAD).expand(batch, -1, -1)
        previous.scatter_(2, where[..., 1:], words)
        features = backbone.decode(previous.flatten(0, 1), encoded).unflatten(0, (batch, -1))
        features = features.gather(2, where[..., None].expand(-1, -1, -1, features.shape[-1]))
        logits = backbone.logits(features, output_ids).float()  # [batch, answers, length, output_ids]
        nodes = torch.zeros(len(answers), dtype=torch.long, device=device)
        inside = []
        for position in range(length):
            inside.append(trie.children(nodes, backbone.config.vocab_size)[:, output_ids])
            nodes = trie.advance(nodes, targets[:, position])
        log_probs = logits.masked_fill(~torch.stack(inside, 1), -torch.inf).log_softmax(-1)
        column = torch.searchsorted(output_ids, targets).clamp(max=len(output_ids) - 1)
        picked = log_probs.gather(3, column.expand(batch, -1, -1)[..., None])[..., 0]
        scores.append(picked.masked_fill(targets == PAD, 0).sum(-1))
    return torch.cat(scores, 1)
