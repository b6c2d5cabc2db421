"""Files of VQGANs (Esser et al., 2021, arXiv:2012.09841), whose decoding half turns image codes into pictures.

OFA's decoder writes codes of a VQGAN that was trained apart, with 8,192 codes of 8 x 8 pixels. Its file, a checkpoint
of the taming-transformers repository, is read here, and so is any folder of diffusers' `VQModel`; the networks are
those of diffusers.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm.convert.ofa.files import torch_load
from vlm.errors import ArgumentError, ModelError
from vlm.models.vqgan import VQDecoder

_PART = (
    (r"mid\.block_([12])\.(.+)", lambda m, top: f"mid_block.resnets.{int(m[1]) - 1}.{m[2]}"),
    (r"mid\.attn_1\.(.+)", lambda m, top: f"mid_block.attentions.0.{m[1]}"),
    (r"up\.(\d+)\.block\.(.+)", lambda m, top: f"up_blocks.{top - int(m[1])}.resnets.{m[2]}"),
    (r"up\.(\d+)\.attn\.(.+)", lambda m, top: f"up_blocks.{top - int(m[1])}.attentions.{m[2]}"),
    (r"up\.(\d+)\.upsample\.(.+)", lambda m, top: f"up_blocks.{top - int(m[1])}.upsamplers.0.{m[2]}"),
    (r"norm_out\.(.+)", lambda m, top: f"conv_norm_out.{m[1]}"),
    (r"(conv_(?:in|out)\..+)", lambda m, top: m[1]),
)
_LAYER = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}  # of attention
_CODEBOOKS = ("quantize.embed.weight", "quantize.embedding.weight")  # trained with Gumbel noise, and without


def load_vqgan(name: str | Path) -> VQDecoder:
    """Read a checkpoint of taming-transformers (OFA's `last.ckpt`), or a folder of diffusers' `VQModel`.

    The sizes are read off the tensors; the configuration that lies beside the original's checkpoints is not needed.

    Raises:
        ModelError: there is none, it is damaged, or it is not a VQGAN.
        ArgumentError: diffusers is not installed.
    """
    try:
        from diffusers.models.autoencoders.vq_model import VQModel
    except ImportError:
        raise ArgumentError('pictures need diffusers; pip install "vlm-foundation[diffusion]"') from None
    path = Path(name).expanduser()
    if path.is_dir():
        try:
            model = VQModel.from_pretrained(path, local_files_only=True)
        except Exception as error:  # diffusers raises whatever its parts do
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ModelError(f"{str(path)!r} is not a folder of diffusers' VQModel: {reason}") from None
        if model.config["norm_type"] != "group":
            raise ModelError(f"{str(path)!r} has norm_type={model.config['norm_type']!r}; only 'group' is supported")
        found = VQDecoder(model.quantize.embedding, model.post_quant_conv, model.decoder)
        return found.eval()
    if not path.is_file():
        raise ModelError(f"no VQGAN at {str(path)!r}; give a .ckpt file of taming-transformers or a diffusers folder")
    content = torch_load(path, unread="pytorch_lightning.")
    tensors = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {key: value for key, value in tensors.items() if isinstance(key, str) and isinstance(value, Tensor)}
    return _from_taming(tensors, path)


def _from_taming(tensors: Mapping[str, Tensor], file: Path) -> VQDecoder:
    from diffusers.models.autoencoders.vae import Decoder

    codebook = next((tensors[key] for key in _CODEBOOKS if key in tensors), None)
    needed = ("post_quant_conv.weight", "decoder.conv_in.weight", "decoder.conv_out.weight")
    if codebook is None or any(key not in tensors for key in needed):
        missing = next((key for key in needed if key not in tensors), _CODEBOOKS[0])
        raise ModelError(f"{str(file)!r} is not a VQGAN of taming-transformers: it lacks {missing}")
    levels: dict[int, list[str]] = {}
    for key in tensors:
        if match := re.match(r"decoder\.up\.(\d+)\.", key):
            levels.setdefault(int(match[1]), []).append(key)
    top = max(levels, default=0)
    try:
        config: dict[str, Any] = {
            "in_channels": tensors["decoder.conv_in.weight"].shape[1],
            "out_channels": tensors["decoder.conv_out.weight"].shape[0],
            "block_out_channels": [len(tensors[f"decoder.up.{i}.block.0.conv1.bias"]) for i in range(top + 1)],
            "up_block_types": [
                f"{'Attn' if any('.attn.' in key for key in levels[i]) else ''}UpDecoderBlock2D"
                for i in reversed(range(top + 1))
            ],
            "layers_per_block": len({key.split(".")[4] for key in levels[top] if ".block." in key}) - 1,
        }
        conv = tensors["post_quant_conv.weight"]
        with torch.device("meta"):
            found = VQDecoder(
                nn.Embedding(len(codebook), codebook.shape[1]),
                nn.Conv2d(conv.shape[1], conv.shape[0], 1),
                Decoder(**config),
            )
    except (KeyError, IndexError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else f"has impossible sizes: {error}"
        raise ModelError(f"{str(file)!r} {reason}".splitlines()[0]) from None
    renamed = {"codebook.weight": codebook}
    expected = found.state_dict()
    for key, tensor in tensors.items():
        if (new := _rename(key, top)) is None:
            continue
        if new in expected and tensor.shape != expected[new].shape and tensor[..., 0, 0].shape == expected[new].shape:
            tensor = tensor[..., 0, 0]  # diffusers' attention has linear layers where the original's has 1 x 1 filters
        if new not in expected or tensor.shape != expected[new].shape:
            raise ModelError(f"{str(file)!r} is not a VQGAN of taming-transformers: {key} has the wrong shape or place")
        renamed[new] = tensor
    if missing := next((name for name in expected if name not in renamed), None):
        raise ModelError(f"{str(file)!r} is not a complete VQGAN: it lacks {missing}; download it again")
    found.load_state_dict({name: tensor.float() for name, tensor in renamed.items()}, assign=True)
    return found.eval()


def _rename(key: str, top: int) -> str | None:
    """diffusers' name of one of the original's tensors; None for those that do not decode."""
    if key.startswith("post_quant_conv."):
        return key
    if not key.startswith("decoder."):
        return None
    for pattern, name in _PART:
        if match := re.fullmatch(pattern, key.removeprefix("decoder.")):
            new = "decoder." + name(match, top).replace("nin_shortcut", "conv_shortcut")
            if ".attentions." in new:
                *front, layer, leaf = new.split(".")
                new = ".".join([*front, _LAYER.get(layer, layer), leaf])
            return new
    return key
