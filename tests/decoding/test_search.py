"""Decoding against brute force and whole prefixes, and under properties (test_search_golden: the original)."""

import importlib.util
import itertools
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlm.decoding.config import GenerationConfig, Hypothesis
from vlm.decoding.search import forbid_repeats, generate
from vlm.decoding.trie import Trie, score_candidates
from vlm.errors import ArgumentError
from vlm.models.config import BOS, EOS, NUM_SPECIALS, PAD, UNK, Seq2SeqConfig
from vlm.models.seq2seq import Encoded, Seq2Seq


def small(seed: int = 0, vocab_size: int = 9) -> Seq2Seq:
    """A random backbone whose distributions are far from uniform."""
    torch.manual_seed(seed)
    config = Seq2SeqConfig(
        vocab_size=vocab_size,
        dim=16,
        ffn_dim=16,
        heads=2,
        encoder_layers=1,
        decoder_layers=2,
        patch_dim=6,
        max_source_positions=12,
        max_target_positions=12,
        token_bucket_size=4,
        image_bucket_size=4,
        code_grid=2,
    )
    backbone = Seq2Seq(config).eval()
    for parameter in backbone.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.4)
    return backbone


def prompts(lengths: list[int], vocab_size: int = 9, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(4, vocab_size, (length,), generator=generator) for length in lengths]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


def streams(seed: int, encoded: Encoded) -> list[torch.Generator]:
    """Random numbers of each sample."""
    return [torch.Generator().manual_seed(seed + sample) for sample in range(len(encoded.states))]


@torch.inference_mode()
def whole(backbone: Seq2Seq, encoded: Encoded, ids: tuple[int, ...], keep: list[int] | None = None) -> list[float]:
    """Log-probability of each token of an answer and of its end, by reading the whole of it at once.

    Args:
        keep: the only ids that may follow, before the softmax; None: all.
    """
    logits = backbone.logits(backbone.decode(torch.tensor([[BOS, *ids]]), encoded))[0]
    if keep is not None:
        logits[:, [i for i in range(logits.shape[1]) if i not in keep]] = -torch.inf
    return logits.log_softmax(-1).gather(1, torch.tensor([*ids, EOS])[:, None])[:, 0].tolist()


def close(actual: list[list[Hypothesis]], expected: list[list[Hypothesis]]) -> None:
    assert [[h.ids for h in hs] for hs in actual] == [[h.ids for h in hs] for hs in expected]
    for hs, es in zip(actual, expected, strict=True):
        for h, e in zip(hs, es, strict=True):
            assert h.score == pytest.approx(e.score, abs=1e-5)
            assert h.token_scores == pytest.approx(e.token_scores, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{}, {"normalize": False}, {"length_penalty": 0.3}, {"min_tokens": 2}])
def test_a_wide_beam_ranks_every_sequence_as_brute_force_does(seed, options):
    backbone = small(seed)
    encoded = backbone.encode(prompts([4]))
    config = GenerationConfig(beams=400, max_tokens=3, **options)
    words = [i for i in range(9) if i not in (PAD, EOS)]
    expected = {}
    for length in range(config.min_tokens, 4):
        for ids in itertools.product(words, repeat=length):
            divisor = (length + 1) ** config.length_penalty if config.normalize else 1
            expected[ids] = sum(whole(backbone, encoded, ids)) / divisor
    (hypotheses,) = generate(backbone, encoded, config)
    assert {h.ids for h in hypotheses} == set(expected)
    assert [h.score for h in hypotheses] == pytest.approx([expected[h.ids] for h in hypotheses], abs=1e-5)
    assert [h.score for h in hypotheses] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-5)


def test_greedy_takes_the_likeliest_token_each_time():
    backbone = small(5)
    encoded = backbone.encode(prompts([3, 5]))
    for i, (hypothesis,) in enumerate(generate(backbone, encoded, GenerationConfig(beams=1, max_tokens=6))):
        alone = encoded.select(torch.tensor([i]))
        for t, token in enumerate([*hypothesis.ids, EOS]):
            previous = torch.tensor([[BOS, *hypothesis.ids[:t]]])
            logits = backbone.logits(backbone.decode(previous, alone))[0, -1]
            logits[[PAD, EOS] if t == 0 else [PAD]] = -torch.inf
            assert token == (EOS if t == 6 else int(logits.argmax()))


@pytest.mark.parametrize("codes", [False, True])
@torch.inference_mode()
def test_cached_steps_equal_whole_prefixes(codes):
    backbone = small(2, vocab_size=30)
    encoded = backbone.encode(prompts([5, 2, 4], 30))  # padded, so that the masks are shuffled too
    ids = torch.randint(4, 30, (3 * 4, 5), generator=torch.Generator().manual_seed(3))
    ids[:, 0] = BOS
    rows, samples = torch.arange(12), torch.arange(3)
    code_rows = torch.ones(1, dtype=torch.bool) if codes else None
    cache = backbone.start(encoded, 4, 5, code_rows)
    assert cache.cross[0][0].shape[0] == 3  # beams share what they attend to
    for t in range(5):
        features = backbone.step(ids[rows, t : t + 1], cache, code_rows)[:, 0]
        expected = backbone.decode(ids[rows, : t + 1], encoded.select(samples), code_rows)[:, -1]
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
        if t == 1:  # beams change places, within their samples
            order = torch.tensor([3, 3, 0, 1, 4, 4, 4, 4, 11, 10, 9, 8])
            cache.reorder(order)
            rows = rows[order]
        if t == 2:  # the first sample is done, and the beams of the others change places again
            samples, order = torch.tensor([1, 2]), torch.tensor([7, 4, 6, 5, 8, 8, 11, 9])
            cache.select(samples, order)
            rows = rows[order]


MODES = {
    "beam": ({"beams": 4, "max_tokens": 7, "no_repeat_ngram": 2}, {}),
    "lengths": ({"beams": 3, "min_tokens": 3, "max_tokens": 3}, {}),
    "range": ({"beams": 3, "max_tokens": 5, "allowed": (6, 12)}, {}),
    "trie": ({"beams": 3, "max_tokens": 5, "normalize": False}, {"trie": True}),
    "prefix": ({"beams": 3, "max_tokens": 6, "min_tokens": 2}, {"prefix": True}),
    "prefix and trie": ({"beams": 3, "max_tokens": 6}, {"trie": True, "prefix": True}),
    "codes": ({"beams": 3, "min_tokens": 4, "max_tokens": 4, "allowed": (8, 15)}, {"codes": True}),
}


@pytest.mark.parametrize("name", MODES)
@torch.inference_mode()
def test_neighbours_never_matter(name):
    options, inputs = MODES[name]
    config = GenerationConfig(**options)
    backbone = small(7, vocab_size=16)
    lengths = [2, 7, 4, 1, 5]
    words = prompts(lengths, 16)
    patches = torch.randn(5, 2, 3, 6, generator=torch.Generator().manual_seed(5))
    has_image = torch.tensor([True, True, False, True, True])
    forced = torch.tensor([[5, 6, 7], [6, PAD, PAD], [7, 4, PAD], [PAD, PAD, PAD], [9, 9, PAD]])
    answers = [[4], [4, 5], [6, 7, 8], [9, 10], [11], [6, 7, 12], [5, 5]]

    def run(rows: list[int]) -> list[list[Hypothesis]]:
        width = max(lengths[row] for row in rows)
        encoded = backbone.encode(words[rows, :width], patches[rows], has_image[rows])
        prefix = forced[rows, : int((forced[rows] != PAD).sum(1).max())] if "prefix" in inputs else None
        trie = Trie(answers) if "trie" in inputs else None
        return generate(backbone, encoded, config, trie=trie, prefix_ids=prefix, codes="codes" in inputs)

    together = run([0, 1, 2, 3, 4])
    assert len({hs[0].score for hs in together}) == 5  # the samples do differ
    close([run([row])[0] for row in range(5)], together)
    close([run([4, 2, 0])[i] for i in (2, 1, 0)], [together[row] for row in (0, 2, 4)])


def test_done_samples_leave_the_batch():
    backbone = small(1)
    rows = []

    class Counting(Seq2Seq):
        def step(self, ids, cache, code_rows=None):
            rows.append(len(ids))
            return super().step(ids, cache, code_rows)

    backbone.__class__ = Counting
    prefix = torch.tensor([[EOS, PAD, PAD], [4, EOS, PAD], [4, 5, 6]])
    encoded = backbone.encode(prompts([3, 3, 3]))
    found = generate(backbone, encoded, GenerationConfig(beams=2, max_tokens=3), prefix_ids=prefix)
    assert rows == [6, 4, 2, 2]
    assert [hs[0].ids for hs in found] == [(), (4,), (4, 5, 6)]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 5),
    beams=st.integers(1, 5),
    low=st.integers(0, 4),
    extra=st.integers(0, 4),
    ngram=st.integers(0, 3),
    penalty=st.floats(0, 2),
    sample=st.booleans(),
)
def test_answers_obey_their_limits(seed, beams, low, extra, ngram, penalty, sample):
    backbone = small(seed)
    config = GenerationConfig(
        beams=beams,
        min_tokens=low,
        max_tokens=low + extra,
        no_repeat_ngram=ngram,
        length_penalty=penalty,
        sample=sample,
    )
    encoded = backbone.encode(prompts([3, 6]))
    for i, hypotheses in enumerate(generate(backbone, encoded, config, streams=streams(seed, encoded))):
        scores = [h.score for h in hypotheses]
        assert len(hypotheses) <= beams and scores == sorted(scores, reverse=True)
        if not sample:
            assert len({h.ids for h in hypotheses}) == len(hypotheses)
        for h in hypotheses:
            assert low <= len(h.ids) <= low + extra and PAD not in h.ids and EOS not in h.ids
            assert h.score == pytest.approx(sum(h.token_scores) / len(h.token_scores) ** penalty, abs=1e-5)
            assert h.token_scores == pytest.approx(whole(backbone, encoded.select(torch.tensor([i])), h.ids), abs=1e-5)
            if ngram:
                read = (BOS, *h.ids)
                ngrams = [read[j : j + ngram] for j in range(len(read) - ngram + 1)]
                assert len(set(ngrams)) == len(ngrams)


def test_repeats_are_forbidden_by_hand():
    tokens = torch.tensor([[0, 4, 5, 4, 5, 4], [0, 4, 5, 6, 7, 8], [5, 5, 5, 5, 5, 5]])
    for n, expected in {1: [{0, 4, 5}, {0, 4, 5, 6, 7, 8}, {5}], 2: [{5}, set(), {5}], 3: [{5}, set(), {5}]}.items():
        log_probs = torch.zeros(3, 9)
        forbid_repeats(log_probs, tokens, n)
        assert [set(row.isinf().nonzero()[:, 0].tolist()) for row in log_probs] == expected


def test_allowed_ids_equal_masked_logits():
    backbone = small(4, vocab_size=14)
    encoded = backbone.encode(prompts([3], 14))
    for allowed in [(4, 9), (6, 11), (10, 14)]:
        keep = [0, 1, 2, 3, *range(*allowed)]
        for h in generate(backbone, encoded, GenerationConfig(beams=4, max_tokens=4, allowed=allowed))[0]:
            assert set(h.ids) <= set(keep)
            assert h.token_scores == pytest.approx(whole(backbone, encoded, h.ids, keep), abs=1e-5)
        config = GenerationConfig(beams=4, max_tokens=4, allowed=allowed, mask_after_softmax=True)
        for h in generate(backbone, encoded, config)[0]:
            assert set(h.ids) <= set(keep)
            assert h.token_scores == pytest.approx(whole(backbone, encoded, h.ids), abs=1e-5)


@pytest.mark.parametrize("allowed", [(7, 9), (4, 6), (5, 7)])
def test_a_prefix_may_hold_what_an_answer_may_not(allowed):
    """Words before locations, or locations before words: they have no score, the answer has its own."""
    backbone, prefix = small(3), (6, 8, 4, 8)
    encoded = backbone.encode(prompts([3]))
    options = GenerationConfig(beams=16, max_tokens=6, min_tokens=6, allowed=allowed, normalize=False, length_penalty=0)
    found = generate(backbone, encoded, options, prefix_ids=torch.tensor([prefix]))[0]
    kept = [*range(NUM_SPECIALS), *range(*allowed)]
    answers = list(itertools.product([BOS, UNK, *range(*allowed)], repeat=2))
    scores = {ids: whole(backbone, encoded, (*prefix, *ids), kept)[-3:] for ids in answers}
    best = sorted(answers, key=lambda ids: -sum(scores[ids]))
    assert [hypothesis.ids for hypothesis in found] == [(*prefix, *ids) for ids in best]
    for hypothesis, ids in zip(found, best, strict=True):
        assert hypothesis.token_scores[-3:] == pytest.approx(scores[ids], abs=1e-5)
        outside = [i for i, token in enumerate(prefix) if not allowed[0] <= token < allowed[1]]
        assert outside and all(hypothesis.token_scores[i] == 0 for i in outside)


def test_a_prefix_may_repeat_itself():
    backbone, prefix = small(3), torch.tensor([[5, 6, 5, 6, 5, 6]])
    options = GenerationConfig(beams=2, max_tokens=8, no_repeat_ngram=2)
    found = generate(backbone, backbone.encode(prompts([3])), options, prefix_ids=prefix)[0]
    assert found and all(hypothesis.ids[:6] == (5, 6, 5, 6, 5, 6) for hypothesis in found)


def test_trie_walks_by_hand():
    trie = Trie([[5, 6], [5], [7, 5, 6], [5, 6]])
    nodes = torch.zeros(4, dtype=torch.long)
    inside = [set(row.nonzero()[:, 0].tolist()) for row in trie.children(nodes, 9)]
    assert inside == [{5, 7}] * 4
    nodes = trie.advance(nodes, torch.tensor([5, 7, 6, 8]))  # the last two leave it
    assert [set(row.nonzero()[:, 0].tolist()) for row in trie.children(nodes, 9)] == [{6, EOS}, {5}, set(), set()]
    nodes = trie.advance(nodes, torch.tensor([EOS, 5, 5, 5]))
    assert [set(row.nonzero()[:, 0].tolist()) for row in trie.children(nodes, 9)] == [set(), {6}, set(), set()]
    assert trie.ids().tolist() == [EOS, 5, 6, 7]


@pytest.mark.parametrize("prefix", [None, torch.tensor([[5, 5], [6, PAD], [4, 8]])])
def test_fewer_answers_than_beams_are_all_found_and_scored(prefix):
    backbone = small(3)
    answers = [[4, 5], [4], [6, 7, 8], [8]]
    encoded = backbone.encode(prompts([3, 6, 2]))
    config = GenerationConfig(beams=6, max_tokens=8, normalize=False)
    found = generate(backbone, encoded, config, trie=Trie(answers), prefix_ids=prefix)
    scores = score_candidates(backbone, encoded, Trie(answers), prefix_ids=prefix, chunk=3)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(3))  # one distribution over the answers
    for i, hypotheses in enumerate(found):
        skip = 0 if prefix is None else int((prefix[i] != PAD).sum())
        by_answer = {h.ids[skip:]: sum(h.token_scores[skip:]) for h in hypotheses}
        assert by_answer == pytest.approx({tuple(a): float(scores[i, j]) for j, a in enumerate(answers)}, abs=1e-5)


def test_answers_longer_than_allowed_are_left_out():
    backbone = small(3)
    encoded = backbone.encode(prompts([3]))
    config = GenerationConfig(beams=2, max_tokens=2)
    assert [h.ids for h in generate(backbone, encoded, config, trie=Trie([[4, 5, 6], [7]]))[0]] == [(7,)]
    assert generate(backbone, encoded, config, trie=Trie([[4, 5, 6]])) == [[]]
    drawn = generate(backbone, encoded, GenerationConfig(beams=20, max_tokens=8, sample=True), trie=Trie([[4, 5], [7]]))
    assert {h.ids for h in drawn[0]} <= {(4, 5), (7,)} and len(drawn[0]) == 20


def first_token(backbone: Seq2Seq, encoded: Encoded) -> Tensor:
    """Distribution of the first word of an answer that may not be empty."""
    logits = backbone.logits(backbone.decode(torch.tensor([[BOS]]), encoded))[0, -1].detach()
    probs = logits.softmax(-1)
    probs[[PAD, EOS]] = 0
    return probs


def draws(backbone: Seq2Seq, encoded: Encoded, seed: int, **options) -> list[int]:
    config = replace(GenerationConfig(beams=4000, max_tokens=1, sample=True), **options)
    return [h.ids[0] for h in generate(backbone, encoded, config, streams=streams(seed, encoded))[0]]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_draws_follow_the_softmax(temperature):
    backbone = small(6, vocab_size=12)
    encoded = backbone.encode(prompts([4], 12))
    probs = first_token(backbone, encoded) ** (1 / temperature)
    probs /= probs.sum()
    counts = torch.bincount(torch.tensor(draws(backbone, encoded, 1, temperature=temperature)), minlength=12)
    assert counts.sum() == 4000 and not counts[probs == 0].any()
    expected = 4000 * probs[probs > 0]
    statistic = float(((counts[probs > 0] - expected) ** 2 / expected).sum())
    assert statistic < 9 + 4 * 18**0.5  # mean and four deviations of chi-squared with nine degrees of freedom


def test_draws_repeat_with_their_seed():
    backbone = small(6, vocab_size=12)
    encoded = backbone.encode(prompts([4, 2], 12))
    config = GenerationConfig(beams=8, max_tokens=10, sample=True)

    def run(seed: int) -> list[list[Hypothesis]]:
        return generate(backbone, encoded, config, streams=streams(seed, encoded))

    assert run(0) == run(0)
    assert run(0) != run(1)


@pytest.mark.parametrize("k", [1, 3, 100])
def test_top_k_draws_from_the_k_likeliest(k):
    backbone = small(6, vocab_size=12)
    encoded = backbone.encode(prompts([4], 12))
    probs = first_token(backbone, encoded)
    likeliest = set(probs.topk(min(k, 10)).indices.tolist())
    assert set(draws(backbone, encoded, 0, top_k=k)) == likeliest


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9])
def test_top_p_draws_from_the_fewest_that_hold_p(p):
    backbone = small(6, vocab_size=12)
    encoded = backbone.encode(prompts([4], 12))
    kept, mass = set(), 0.0
    for prob, token in sorted(zip(first_token(backbone, encoded).tolist(), range(12), strict=True), reverse=True):
        if mass < p and prob > 0:
            kept.add(token)
            mass += prob
    assert set(draws(backbone, encoded, 0, top_p=p)) == kept


def test_an_empty_answer_where_nothing_else_fits():
    backbone = small(0)
    encoded = backbone.encode(prompts([2]))
    (hypothesis,) = generate(backbone, encoded, GenerationConfig(min_tokens=0, max_tokens=0))[0]
    assert hypothesis.ids == () and hypothesis.token_scores == pytest.approx(whole(backbone, encoded, ()), abs=1e-5)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"beams": 0}, "beams=0"),
        ({"min_tokens": -1}, "min_tokens=-1"),
        ({"temperature": 0.0}, "beams=1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 1.5, "sample": True}, "top_p=1.5"),
        ({"top_k": 5}, "sample=True"),
        ({"top_k": 5, "top_p": 0.5, "sample": True}, "exclude each other"),
        ({"allowed": (2, 8)}, "allowed=(2, 8)"),
        ({"allowed": (8, 8)}, "allowed=(8, 8)"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, says):
    with pytest.raises(ArgumentError, match=re.escape(says)) as caught:
        GenerationConfig(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, inputs, says",
    [
        ({"min_tokens": 5, "max_tokens": 4}, {}, "max_tokens=4 leaves no room for the shortest answer, of 5"),
        ({"max_tokens": 12}, {}, "at most 11"),
        ({"max_tokens_per_source": 2.0, "max_tokens": 2}, {"source_words": 5}, "answers of 12 tokens"),
        ({"max_tokens": 5}, {"codes": True}, "at most 4"),
        ({"max_tokens": 4, "allowed": (5, 10)}, {}, "9 ids"),
        ({"max_tokens": 4, "allowed": (5, 8)}, {"prefix_ids": torch.tensor([[9]])}, "prefix_ids holds 9"),
        ({"max_tokens": 4}, {"prefix_ids": torch.tensor([[9]])}, "prefix_ids holds 9"),
        ({"max_tokens": 4}, {"trie": Trie([[9]])}, "id 9"),
    ],
)
def test_requests_beyond_the_model_are_refused(options, inputs, says):
    backbone = small(0)
    with pytest.raises(ArgumentError, match=says) as caught:
        generate(backbone, backbone.encode(prompts([2])), GenerationConfig(**options), **inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sequences", [[], [[5, EOS]], [[4], [PAD]], [[-1]]])
def test_sets_that_hold_no_answers_are_refused(sequences):
    with pytest.raises(ArgumentError):
        Trie(sequences)


def test_the_benchmark_finds_equal_tokens(capsys):
    path = Path(__file__).parents[2] / "benchmarks" / "kv_cache.py"
    spec = importlib.util.spec_from_file_location("kv_cache", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["kv_cache"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    assert module.main(["--batch", "2", "--beams", "2", "--tokens", "3", "--repeats", "1"]) == 0
    torch.set_num_threads(threads)
    assert "same tokens, ratio" in capsys.readouterr().out
