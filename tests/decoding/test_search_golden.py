"""Decoding and candidate scores against the hypotheses that the original OFA code found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm.decoding.config import GenerationConfig
from vlm.decoding.search import generate
from vlm.decoding.trie import Trie, score_candidates
from vlm.models.config import EOS, PAD

OPTIONS = {  # the original's names to ours
    "beam_size": "beams",
    "max_len_a": "max_tokens_per_source",
    "max_len_b": "max_tokens",
    "min_len": "min_tokens",
    "len_penalty": "length_penalty",
    "normalize_scores": "normalize",
    "no_repeat_ngram_size": "no_repeat_ngram",
    "temperature": "temperature",
    "unk_penalty": "unk_penalty",
    "zero_shot": "mask_after_softmax",
}


def cases(section: str) -> Callable[[Path], dict[str, Any]]:
    return lambda golden: {
        name: case | {"name": name}
        for name, case in json.loads((golden / "nano_golden.json").read_text())[section].items()
    }


@pytest.fixture(scope="module")
def nano_generation(nano, arrays):
    """The nano model with another end token's embedding, so that hypotheses end at different lengths."""
    model = nano()
    data = arrays("nano/gen_inputs")
    with torch.no_grad():
        model.backbone.embed.weight[EOS] = data["eos_row"]
    return model.backbone, model.tower, data


@pytest.mark.cases(find=cases("generation"))
@torch.inference_mode()
def test_hypotheses_equal_the_original(nano_generation, case):
    backbone, tower, data = nano_generation
    options = dict(case["options"])
    codes = options.pop("gen_code", False)
    allowed = options.pop("constraint_range", None)
    settings: dict[str, Any] = {OPTIONS[k]: v for k, v in options.items()}
    if allowed:
        settings["allowed"] = tuple(map(int, allowed.split(",")))
    if case["name"] == "code_topk1":
        settings |= {"sample": True, "top_k": 1}
    config = GenerationConfig(**settings)
    if codes:
        source = data["src_tokens_code"]
        encoded = backbone.encode(source)
    else:
        rows = case["inputs"]["rows"]
        source = data["src_tokens"][rows]
        source = source[:, : int((source != PAD).sum(1).max())]
        encoded = backbone.encode(source, tower(data["patch_images"][rows]), data["patch_masks"][rows])
    prefix = case.get("prefix_tokens")
    results = generate(
        backbone,
        encoded,
        config,
        source_words=source.shape[1],
        trie=Trie(case["trie_sequences"]) if "trie_sequences" in case else None,
        prefix_ids=None if prefix is None else torch.tensor(prefix),
        codes=codes,
    )
    assert len(results) == len(case["hypotheses"])
    for hypotheses, expected in zip(results, case["hypotheses"], strict=True):
        assert [[*h.ids, EOS] for h in hypotheses] == [e["tokens"] for e in expected]
        for h, e in zip(hypotheses, expected, strict=True):
            assert h.score == pytest.approx(e["score"], abs=1e-4)
            assert h.token_scores == pytest.approx(e["positional_scores"], abs=1e-4)


@pytest.mark.cases(find=cases("vqa_all_candidate"))
@pytest.mark.parametrize("chunk", [3, 64])
@torch.inference_mode()
def test_candidate_scores_equal_the_original(nano, arrays, case, chunk):
    model = nano()
    backbone, tower = model.backbone, model.tower
    data = arrays("nano/loss_inputs")
    encoded = backbone.encode(data["src_tokens"], tower(data["patch_images"]), data["patch_masks"])
    prompts = [torch.tensor(p[1:], dtype=torch.long) for p in case["decoder_prompts"]]
    prefix = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_value=PAD)
    scores = score_candidates(backbone, encoded, Trie(case["candidate_ids"]), prefix_ids=prefix, chunk=chunk)
    torch.testing.assert_close(scores, torch.tensor(case["scores"]), atol=1e-4, rtol=0)
    assert [case["candidates"][i] for i in scores.argmax(1)] == case["answers"]
