"""OFA's tensor names, written down a second time, and small random checkpoints under them."""

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from vlm.tokenizer import Tokenizer

Shapes = dict[str, tuple[int, ...]]


@cache
def read_tokenizer(folder: Path) -> "Tokenizer":
    from vlm.convert.ofa.tokenizer import load_tokenizer

    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def tokenizer(golden) -> "Tokenizer":
    """The original's vocabulary, of which our golden has some pieces."""
    return read_tokenizer(golden / "bpe")


def names(
    dim: int, ffn: int, encoder: int, decoder: int, heads: int, blocks: tuple[int, ...],
    vocab: int = 59457, positions: int = 1024, tokens: int = 256, image: int = 42, hub: bool = False,
) -> Shapes:  # fmt: skip
    """Names and shapes of a whole checkpoint, of fairseq or (`hub`) of the port to transformers."""
    mid, ffn_norm = ("mid_layer_norm", "ffn_layer_norm") if hub else ("ln", "ffn_layernorm")
    cross = "cross_attn" if hub else "encoder_attn"
    out: Shapes = {}

    def linear(name: str, rows: int, columns: int) -> None:
        out.update({f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)})

    def norm(name: str, size: int = dim) -> None:
        out.update({f"{name}.weight": (size,), f"{name}.bias": (size,)})

    def attention(name: str) -> None:
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{name}.{part}", dim, dim)
        out[f"{name}.c_attn"] = (heads,)

    def batch_norm(name: str, size: int) -> None:
        norm(name, size)
        out.update({f"{name}.running_mean": (size,), f"{name}.running_var": (size,), f"{name}.num_batches_tracked": ()})

    for stack, layers in (("encoder", encoder), ("decoder", decoder)):
        if not hub:
            out[f"{stack}.version"] = (1,)
        out[f"{stack}.embed_tokens.weight"] = (vocab, dim)
        out[f"{stack}.embed_positions.weight"] = (positions + 2, dim)
        out[f"{stack}.embed_image_positions.weight"] = (image**2 + 1, dim)
        out[f"{stack}.token_rp_bucket"] = (positions, positions)
        out[f"{stack}.image_rp_bucket"] = (image**2 + 1, image**2 + 1)
        for part in ("layernorm_embedding", "pos_ln", "image_pos_ln", "layer_norm"):
            norm(f"{stack}.{part}")
        for kind in ("",) if stack == "encoder" else ("self_", "cross_"):
            linear(f"{stack}.{kind}pos_q_linear", dim, dim)
            linear(f"{stack}.{kind}pos_k_linear", dim, dim)
        for i in range(layers):
            out[f"{stack}.token_rel_pos_table_list.{i}.weight"] = (2 * tokens - 1, heads)
            out[f"{stack}.image_rel_pos_table_list.{i}.weight"] = ((2 * image - 1) ** 2 + 3, heads)
            layer = f"{stack}.layers.{i}"
            attention(f"{layer}.self_attn")
            norm(f"{layer}.self_attn_layer_norm")
            norm(f"{layer}.attn_ln" if stack == "encoder" and not hub else f"{layer}.self_attn_{mid}")
            if stack == "decoder":
                attention(f"{layer}.{cross}")
                norm(f"{layer}.{cross}_layer_norm")
                norm(f"{layer}.cross_attn_{mid}")
            linear(f"{layer}.fc1", ffn, dim)
            linear(f"{layer}.fc2", dim, ffn)
            norm(f"{layer}.{ffn_norm}", ffn)
            norm(f"{layer}.final_layer_norm")
    out["decoder.output_projection.weight"] = (vocab, dim)
    out["decoder.image_position_idx"] = (1025 if hub else 1026,)
    norm("decoder.code_layernorm_embedding")
    norm("encoder.patch_layernorm_embedding")
    out["encoder.type_embedding.weight"] = (2, dim)
    linear("encoder.image_proj", dim, 1024)

    tower = "encoder.embed_images"
    out[f"{tower}.conv1.weight"] = (64, 3, 7, 7)
    batch_norm(f"{tower}.bn1", 64)
    width = 64
    for stage, count in enumerate(blocks, 1):
        planes = 32 * 2**stage
        for i in range(count):
            block = f"{tower}.layer{stage}.{i}"
            shapes = ((planes, width, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1))
            for j, shape in enumerate(shapes, 1):
                out[f"{block}.conv{j}.weight"] = shape
                batch_norm(f"{block}.bn{j}", shape[0])
            if i == 0:
                out[f"{block}.downsample.0.weight"] = (4 * planes, width, 1, 1)
                batch_norm(f"{block}.downsample.1", 4 * planes)
            width = 4 * planes
    return out


@pytest.fixture(scope="session")
def ofa_names() -> Callable[..., Shapes]:
    return names


SMALL: dict[str, Any] = {
    "dim": 16, "ffn": 24, "encoder": 2, "decoder": 1, "heads": 2, "blocks": (1, 1, 1),
    "vocab": 40, "positions": 12, "tokens": 4, "image": 4,
}  # fmt: skip
SETTINGS: dict[str, Any] = {  # as `cfg.model` has them
    "_name": "ofa_small", "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 24, "encoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_embed_dim": 16, "decoder_ffn_embed_dim": 24, "decoder_layers": 1,
    "decoder_attention_heads": 2, "resnet_type": "small", "max_source_positions": 12, "max_target_positions": 12,
    "token_bucket_size": 4, "image_bucket_size": 4, "code_image_size": 32, "attn_scale_factor": 2.0,
    "activation_fn": "gelu", "no_scale_embedding": True, "layernorm_embedding": True, "share_all_embeddings": True,
    "patch_layernorm_embedding": True, "code_layernorm_embedding": True, "add_type_embedding": True,
    "encoder_normalize_before": True, "decoder_normalize_before": True, "scale_attn": True, "scale_fc": True,
    "scale_heads": True, "scale_resids": False, "disable_entangle": True, "entangle_position_embedding": False,
    "dropout": 0.0, "sync_bn": False,
}  # fmt: skip
HUB_SETTINGS: dict[str, Any] = {  # as `config.json` has them
    "model_type": "ofa", "d_model": 16, "encoder_ffn_dim": 24, "encoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_ffn_dim": 24, "decoder_layers": 1, "decoder_attention_heads": 2, "resnet_type": "small",
    "max_position_embeddings": 12, "token_bucket_size": 4, "image_bucket_size": 4, "code_image_size": 32,
    "attn_scale_factor": 2.0, "activation_function": "gelu", "scale_embedding": False, "normformer": True,
    "encoder_normalize_before": True, "decoder_normalize_before": True, "dropout": 0.0,
}  # fmt: skip


@pytest.fixture
def small(monkeypatch) -> "Small":
    """Small random checkpoints with a tower of one block a stage, which no released model has."""
    from vlm.convert.ofa import config as ofa_config

    monkeypatch.setitem(ofa_config.BLOCKS, "small", (1, 1, 1))
    return Small()


class Small:
    settings, hub_settings = SETTINGS, HUB_SETTINGS

    @staticmethod
    def tensors(hub: bool = False, **changes: Any) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        out: dict[str, torch.Tensor] = {}
        # the same names in both layouts get the same values: order them as fairseq has them
        for name, shape in sorted(names(**{**SMALL, **changes}).items()):
            if name.endswith(("bucket", "_idx", "num_batches_tracked")):
                out[name] = torch.zeros(shape, dtype=torch.long)
            else:
                out[name] = torch.randn(shape, generator=generator) * 0.2 + (len(shape) == 1)
            if name.endswith("running_var"):
                out[name] = out[name].abs() + 0.1
        for name in ("decoder.embed_tokens.weight", "decoder.output_projection.weight"):
            out[name] = out["encoder.embed_tokens.weight"]
        if not hub:
            return out
        renamed = {}
        for name, tensor in out.items():
            if name.endswith(".version"):
                continue
            name = name.replace("encoder_attn", "cross_attn").replace("ffn_layernorm", "ffn_layer_norm")
            name = name.replace(".attn_ln", ".self_attn_mid_layer_norm").replace("attn_ln", "attn_mid_layer_norm")
            renamed[name] = tensor[:-1] if name.endswith("_idx") else tensor
        return renamed

    @classmethod
    def file(cls, path: Path, **content: Any) -> Path:
        """Write a fairseq checkpoint; `content` replaces parts of it."""
        cfg = {"_name": None, "common": {"seed": 1}, "task": {"patch_image_size": 64}, "model": cls.namespace()}
        parts = {
            "args": None, "cfg": cfg, "model": cls.tensors(), "criterion": None, "optimizer_history": [],
            "task_state": {}, "extra_state": {"epoch": 2, "val_loss": 0.5},
        }  # fmt: skip
        torch.save(parts | content, path)
        return path

    @staticmethod
    def namespace(**changes: Any) -> argparse.Namespace:
        return argparse.Namespace(**{**SETTINGS, **changes})
