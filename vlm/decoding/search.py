"""Beam search, sampling and constrained decoding on top of the backbone's key-value cache.

The rules and their order are those of OFA's sequence generator (Wang et al., 2022, arXiv:2202.03052, after fairseq's):
a hypothesis finishes where the end token is among the first `beams` continuations of its sample, a sample is done when
it has `beams` finished hypotheses, and scores are divided by `length ** length_penalty`.
"""

# the types that torch gives some of its results are unknown
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from collections.abc import Sequence

import torch
from torch import Tensor

from vlm.decoding.config import GenerationConfig, Hypothesis
from vlm.decoding.trie import Trie
from vlm.errors import ArgumentError
from vlm.models.config import BOS, EOS, NUM_SPECIALS, PAD, UNK
from vlm.models.seq2seq import Encoded, Seq2Seq


@torch.inference_mode()
def generate(
    backbone: Seq2Seq,
    encoded: Encoded,
    config: GenerationConfig,
    *,
    source_words: int = 0,
    trie: Trie | None = None,
    prefix_ids: Tensor | None = None,
    codes: bool = False,
    streams: Sequence[torch.Generator] | None = None,
) -> list[list[Hypothesis]]:
    """Write answers to every encoded sample.

    A sample's answers depend on nothing but itself and, where tokens are drawn, on its own random numbers.

    Args:
        backbone: in evaluation mode.
        encoded: from `backbone.encode`, of `batch` samples.
        config: how to search.
        source_words: padded length of the prompts, for `max_tokens_per_source`.
        trie: answers that may be given; None: any text.
        prefix_ids: `int64[batch, words]`, tokens that an answer must begin with, padded on the right with 1. They count
            in scores and lengths; a trie begins after them (with `mask_after_softmax`, before).
        codes: write image codes, one for each cell of the grid.
        streams: random numbers of each sample for `config.sample`, on the CPU; None: torch's own.

    Returns:
        For each sample its finished answers, best first: `beams` of them, fewer where a trie or the other limits allow
        fewer.

    Raises:
        ArgumentError: limits that exclude each other, or that this backbone cannot hold.
    """
    return _Search(backbone, encoded, config, source_words, trie, prefix_ids, codes, streams).run()


class _Search:
    """State of one call of `generate`; its rows are `beams` hypotheses of each sample that is not done.

    Inside, a token is a column of the computed logits: the ids themselves, or, with `allowed`, the special ids and the
    range after them, without a gap.

    Attributes:
        samples: number of each sample that is not done.
        tokens: `int64[rows, limit + 2]`, start token first.
        sums: `float32[rows, limit + 2]`, score of the first i tokens after the start.
        nodes: `int64[rows]`, where each hypothesis stands in the trie.
        prefix: `int64[rows, words]`, tokens to begin with, padded on the right.
    """

    def __init__(
        self,
        backbone: Seq2Seq,
        encoded: Encoded,
        config: GenerationConfig,
        source_words: int,
        trie: Trie | None,
        prefix_ids: Tensor | None,
        codes: bool,
        streams: Sequence[torch.Generator] | None,
    ):
        batch, device = encoded.states.shape[0], encoded.states.device
        rows = batch * config.beams
        self.backbone, self.config, self.codes, self.streams = backbone, config, codes, streams
        self.limit = config.token_limit(source_words)
        self._check_sizes()
        self.start, self.end = config.allowed or (NUM_SPECIALS, backbone.config.vocab_size)
        prefix = torch.empty(batch, 0, dtype=torch.long) if prefix_ids is None else prefix_ids
        # where the prefix holds ids that an answer may not, every id has a column
        self.foreign = self._has_foreign(prefix) and config.allowed is not None
        whole = config.mask_after_softmax or self.foreign
        self.gap = 0 if whole else self.start - NUM_SPECIALS  # ids without a column
        self.trie = trie
        if trie is not None:
            trie.prepare(backbone.config.vocab_size, device)
        self.code_rows = torch.ones(1, dtype=torch.bool, device=device) if codes else None
        self.cache = backbone.start(encoded, config.beams, self.limit + 1, self.code_rows)
        self.samples = list(range(batch))
        self.finished: list[list[Hypothesis]] = [[] for _ in range(batch)]
        self.tokens = torch.full((rows, self.limit + 2), BOS, device=device)
        self.sums = torch.zeros(rows, self.limit + 2, device=device)
        self.nodes = torch.zeros(rows, dtype=torch.long, device=device)
        columns = torch.where(prefix < NUM_SPECIALS, prefix, prefix - self.gap)
        self.prefix = columns.to(device).repeat_interleave(config.beams, 0)

    def _check_sizes(self) -> None:
        sizes = self.backbone.config
        longest = sizes.code_grid**2 if self.codes else sizes.max_target_positions - 1
        if self.limit > longest:
            raise ArgumentError(
                f"max_tokens={self.config.max_tokens} allows answers of {self.limit} tokens; this model writes at most "
                f"{longest}: lower it"
            )
        if self.config.allowed and self.config.allowed[1] > sizes.vocab_size:
            raise ArgumentError(f"allowed={self.config.allowed} goes beyond the {sizes.vocab_size} ids of this model")

    def _has_foreign(self, prefix: Tensor) -> bool:
        size = self.backbone.config.vocab_size
        if bool((unknown := (prefix < 0) | (prefix >= size)).any()):
            raise ArgumentError(f"prefix_ids holds {int(prefix[unknown][0])}; this model has the ids 0 to {size - 1}")
        return bool(((prefix >= NUM_SPECIALS) & ((prefix < self.start) | (prefix >= self.end))).any())

    def to_ids(self, columns: Tensor) -> Tensor:
        return columns + self.gap * (columns >= NUM_SPECIALS) if self.gap else columns

    def run(self) -> list[list[Hypothesis]]:
        for step in range(self.limit + 1):
            log_probs = self.log_probs(step)
            self.advance(step, *(self.draw if self.config.sample else self.best)(step, log_probs))
            if not self.samples:
                break
        return [sorted(hypotheses, key=lambda h: -h.score) for hypotheses in self.finished]

    def logits(self, step: int) -> Tensor:
        """Read the newest token of every row: `float32[rows, columns]`."""
        ids = self.to_ids(self.tokens[:, step : step + 1])
        features = self.backbone.step(ids, self.cache, self.code_rows)[:, -1]
        if self.foreign and not self.config.mask_after_softmax:
            logits = self.backbone.logits(features).float()
            logits[:, NUM_SPECIALS : self.start] = -torch.inf
            logits[:, self.end :] = -torch.inf
            return logits
        if self.config.allowed is None or self.config.mask_after_softmax:
            return self.backbone.logits(features).float()
        if not self.gap:
            return self.backbone.logits(features, slice(0, self.end)).float()
        parts = slice(0, NUM_SPECIALS), slice(self.start, self.end)
        return torch.cat([self.backbone.logits(features, part) for part in parts], 1).float()

    def log_probs(self, step: int) -> Tensor:
        """Score of every continuation of every row, -inf where a rule forbids it: `float32[rows, columns]`."""
        config = self.config
        logits = self.logits(step)
        if config.temperature != 1:
            logits /= config.temperature
        forbidden = None if self.trie is None else self._outside_trie(step, self.trie)
        if forbidden is not None and not config.mask_after_softmax:
            logits.masked_fill_(forbidden, -torch.inf)
        log_probs = logits.log_softmax(-1)
        if config.mask_after_softmax:
            if forbidden is not None:
                log_probs.masked_fill_(forbidden, -torch.inf)
            log_probs[:, NUM_SPECIALS : self.start] = -torch.inf
            log_probs[:, self.end :] = -torch.inf
        # a row that has left the trie has no allowed token: its softmax is NaN everywhere
        if bool((broken := log_probs[:, EOS].isnan()).any()):
            log_probs[broken] = -torch.inf
        if step < min(self.prefix.shape[1], self.limit):
            log_probs = self._force_prefix(step, log_probs)
        elif step < config.min_tokens:
            log_probs[:, EOS] = -torch.inf
        log_probs[:, PAD] = -torch.inf
        if config.unk_penalty:
            log_probs[:, UNK] -= config.unk_penalty
        if self.codes and step < self.limit:
            log_probs[:, :NUM_SPECIALS] = -torch.inf
        if step == self.limit:
            last = log_probs[:, EOS].clone()
            log_probs.fill_(-torch.inf)[:, EOS] = last
        if 0 < config.no_repeat_ngram <= step + 1:
            token = self.prefix[:, step : step + 1]
            kept = log_probs.gather(1, token)
            forbid_repeats(log_probs, self.tokens[:, : step + 1], config.no_repeat_ngram)
            log_probs.scatter_(1, token, kept)  # a prefix may repeat itself
        return log_probs

    def _outside_trie(self, step: int, trie: Trie) -> Tensor:
        inside = trie.children(self.nodes, self.backbone.config.vocab_size)
        if self.config.allowed and not self.config.mask_after_softmax and not self.foreign:
            inside = torch.cat([inside[:, :NUM_SPECIALS], inside[:, self.start : self.end]], 1)
        return ~inside & self._in_trie(step)[:, None]

    def _in_trie(self, step: int) -> Tensor:
        """`bool[rows]`, True where token `step` belongs to an answer of the trie, False where to the prefix."""
        if self.config.mask_after_softmax:
            return torch.ones_like(self.nodes, dtype=torch.bool)
        return (self.prefix != PAD).sum(1) <= step

    def _force_prefix(self, step: int, log_probs: Tensor) -> Tensor:
        """Leave the rows that still have a prefix its next token only; the others may end where they are long enough.

        The original lets short answers end while the longest prefix of the batch lasts; then neighbours would matter.
        """
        token = self.prefix[:, step : step + 1]
        forced = token != PAD
        kept = log_probs.gather(1, token)
        kept.masked_fill_(kept.isinf(), 0)  # what an answer may not hold has no score
        log_probs.masked_fill_(forced, -torch.inf).scatter_(1, token, kept)
        if step < self.config.min_tokens:
            log_probs[:, EOS].masked_fill_(~forced[:, 0], -torch.inf)
        if bool((ended := token[:, 0] == EOS).any()):  # all beams become the first
            row = torch.arange(len(token), device=token.device)
            source = torch.where(ended, row - row % self.config.beams, row)
            self.tokens, self.sums, log_probs = self.tokens[source], self.sums[source], log_probs[source]
        return log_probs

    def best(self, step: int, log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The continuations with the highest sums.

        Returns:
            Sum, beam and column of each, `[samples, 2 * beams]`, best first: twice as many as there are beams, because
            up to half of them may end.
        """
        beams, columns = self.config.beams, log_probs.shape[1]
        if step == 0:  # all beams are equal
            sums = log_probs.view(-1, beams, columns)[:, 0]
        else:
            sums = log_probs.add_(self.sums[:, step, None]).view(-1, beams * columns)
        count = min(2 * beams, sums.shape[1])
        sums, index = sums.topk(count)
        if count < 2 * beams:
            sums = torch.nn.functional.pad(sums, (0, 2 * beams - count), value=-torch.inf)
            index = torch.nn.functional.pad(index, (0, 2 * beams - count), value=PAD)
        return sums, index // columns, index % columns

    def draw(self, step: int, log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One random continuation of every row, in the form of `best`, `[samples, beams]`."""
        config = self.config
        kept, columns = log_probs, None
        if config.top_k:
            kept, columns = log_probs.topk(min(config.top_k, log_probs.shape[1]))
        elif config.top_p:
            kept, columns = log_probs.sort(descending=True)
            probs = kept.exp()
            # the token that crosses p is in: what lies before it is still below p
            kept = kept.masked_fill(probs.cumsum(1) - probs >= config.top_p, -torch.inf)
        probs = kept.softmax(-1)
        # a row without any allowed token draws what it likes: its sum is -inf
        probs = torch.where(probs[:, :1].isnan(), 1.0, probs)
        # the first token at which the cumulated probability exceeds a uniform number; float64: many small numbers
        total = probs.double().cumsum(1)
        choice = torch.searchsorted(total, self._uniform().to(total) * total[:, -1:], right=True)
        column = choice if columns is None else columns.gather(1, choice)
        sums = self.sums[:, step : step + 1] + log_probs.gather(1, column)
        beams = torch.arange(config.beams, device=column.device).expand(len(self.samples), -1)
        return sums.view(-1, config.beams), beams, column.view(-1, config.beams)

    def _uniform(self) -> Tensor:
        """Random numbers in [0, 1), `float32[rows, 1]`; those of a sample come from its own stream."""
        if self.streams is None:
            return torch.rand(len(self.samples) * self.config.beams, 1, dtype=torch.float32)
        beams, streams = self.config.beams, self.streams  # float32: whatever the default type, the same numbers
        drawn = [torch.rand(beams, generator=streams[sample], dtype=torch.float32) for sample in self.samples]
        return torch.cat(drawn)[:, None]

    def advance(self, step: int, sums: Tensor, beams: Tensor, columns: Tensor) -> None:
        """Take note of the continuations that end, and make the best others the next hypotheses.

        Args:
            step: tokens before this one.
            sums: of each continuation, `[samples, candidates]`.
            beams: which hypothesis of the sample it continues.
            columns: its new token.
        """
        width = self.config.beams
        rows = beams + torch.arange(0, len(self.samples) * width, width, device=beams.device)[:, None]
        ends = columns == EOS
        ending = (ends & (sums > -torch.inf))[:, :width]
        if bool(ending.any()):
            self._finish(step, ending, sums[:, :width], rows[:, :width])
        if self.config.sample:
            sums = sums.masked_fill(ends, -torch.inf)  # the row stays, and can never end again
        else:
            order = ends.int().argsort(dim=1, stable=True)[:, :width]
            sums, rows, columns = sums.gather(1, order), rows.gather(1, order), columns.gather(1, order)
        alive = (sums > -torch.inf).any(1).tolist()
        keep = [i for i, s in enumerate(self.samples) if alive[i] and len(self.finished[s]) < width]
        if step == self.limit or not keep:
            self.samples = []
            return
        if len(keep) < len(self.samples):
            kept = torch.tensor(keep, device=sums.device)
            sums, rows, columns = sums[kept], rows[kept], columns[kept]
            self.samples = [self.samples[i] for i in keep]
            self.cache.select(kept, rows.flatten())
        elif step and not self.config.sample and width > 1:
            self.cache.reorder(rows.flatten())
        self._take(step, rows.flatten(), columns.flatten(), sums.flatten())

    def _take(self, step: int, rows: Tensor, columns: Tensor, sums: Tensor) -> None:
        """Continue the hypotheses `rows` by one token each."""
        self.tokens, self.sums, self.prefix = self.tokens[rows], self.sums[rows], self.prefix[rows]
        self.tokens[:, step + 1], self.sums[:, step + 1] = columns, sums
        if self.trie is not None:
            reached = self.trie.advance(self.nodes[rows], self.to_ids(columns))
            self.nodes = torch.where(self._in_trie(step), reached, 0)

    def _finish(self, step: int, ending: Tensor, sums: Tensor, rows: Tensor) -> None:
        """Store the continuations `bool[samples, beams]` that end, in their order, up to `beams` a sample."""
        rows = rows[ending]
        ids = self.to_ids(self.tokens[rows, 1 : step + 1]).tolist()
        totals = sums[ending]
        scores = torch.cat([self.sums[rows, : step + 1], totals[:, None]], 1).diff(dim=1).tolist()
        length = (step + 1) ** self.config.length_penalty if self.config.normalize else 1.0
        for i, (sample, total) in enumerate(zip(ending.nonzero()[:, 0].tolist(), totals.tolist(), strict=True)):
            hypotheses = self.finished[self.samples[sample]]
            if len(hypotheses) < self.config.beams:
                hypotheses.append(Hypothesis(tuple(ids[i]), total / length, tuple(scores[i])))


def forbid_repeats(log_probs: Tensor, tokens: Tensor, n: int) -> None:
    """Set to -inf, in place, every token that would complete an n-gram which its row already holds.

    Args:
        log_probs: `[rows, columns]`.
        tokens: `int64[rows, words]`, at least n - 1 of them.
        n: length of the n-grams.
    """
    ngrams = tokens.unfold(1, n, 1)  # [rows, words - n + 1, n]
    newest = tokens[:, None, tokens.shape[1] - n + 1 :]
    repeats = (ngrams[..., :-1] == newest).all(-1)
    penalty = log_probs.new_zeros(repeats.shape).masked_fill_(repeats, -torch.inf)
    # adding, unlike writing, gives the same for an id that stands there twice
    log_probs.scatter_add_(1, ngrams[..., -1], penalty)
