"""A model's folder: `config.json`, `tokenizer.json`, `model.safetensors`; and a name to such a folder."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from vlm.errors import ModelError
from vlm.image import ImageTransform
from vlm.models.layers import Seq2SeqConfig
from vlm.models.towers import TimmTower, TowerConfig, build_tower
from vlm.models.vision_language import VisionLanguageModel
from vlm.tokenizer import Tokenizer

FORMAT = 1
BUNDLED = Path(__file__).parent / "weights"
FILES = ("config.json", "tokenizer.json", "model.safetensors")


def save_model(folder: Path, model: VisionLanguageModel, tokenizer: Tokenizer, image: ImageTransform) -> None:
    """Write a model's folder; floating tensors are stored as float16.

    Args:
        folder: made where it is missing.
        model: any device.
        tokenizer: what the backbone's ids mean.
        image: how photos are prepared; it travels with the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    partial = folder / "model.safetensors.partial"
    partial.write_bytes(save(tensors, {"format": "pt"}))  # save_file would make it unreadable for other users
    os.replace(partial, folder / "model.safetensors")
    tokenizer.save(folder / "tokenizer.json")
    config = {
        "format": FORMAT,
        "backbone": asdict(model.backbone.config),
        "tower": asdict(model.tower_config),
        "image": asdict(image),
        "tokenizer": {
            "num_codes": tokenizer.num_codes,
            "num_bins": tokenizer.num_bins,
            "sha256": sha256(folder / "tokenizer.json"),
        },
    }
    partial = folder / "config.json.partial"
    partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / "config.json")


def load_model(folder: Path) -> tuple[VisionLanguageModel, Tokenizer, ImageTransform]:
    """Read a model's folder: the model in float32 and evaluation mode, its tokenizer, its image transform.

    Raises:
        ModelError: a file is missing, damaged or of another model; tensors are missing, unexpected or misshapen.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{str(folder)!r} is not a model's folder: {', '.join(missing)} missing")
    config = _read_config(folder / "config.json")
    try:
        tower, backbone = TowerConfig(**config["tower"]), Seq2SeqConfig(**config["backbone"])
        image = ImageTransform(**config["image"])
        layout = config["tokenizer"]
        codes, bins, digest = int(layout["num_codes"]), int(layout["num_bins"]), layout["sha256"]
        with torch.device("meta"):
            model = VisionLanguageModel(tower, backbone)
        if isinstance(model.tower, TimmTower):  # such a tower may hold tables that it computes and no file keeps
            model.tower = build_tower(tower)
    except Exception as error:  # impossible values fail anywhere inside torch and timm
        reason = f"lacks {error}" if isinstance(error, KeyError) else f"does not describe a model: {error}"
        raise ModelError(f"{str(folder / 'config.json')!r} {reason}".splitlines()[0]) from None
    file = folder / "tokenizer.json"
    tokenizer = Tokenizer.load(file, codes, bins)
    if sha256(file) != digest or tokenizer.vocab_size != backbone.vocab_size:
        raise ModelError(f"{str(file)!r} is not the tokenizer that these weights were trained with; copy theirs")
    _fill(model, folder / "model.safetensors")
    return model.eval(), tokenizer, image


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{str(file)!r} is not JSON: {error}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else config
        raise ModelError(f"{str(file)!r} has format {found!r}; this version reads {FORMAT}; update vlm-foundation")
    return config


def _fill(model: VisionLanguageModel, file: Path) -> None:
    """Give a model without memory (on the meta device) the tensors of a file."""
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{str(file)!r} cannot be read: {error}; copy or download it again") from None
    state: dict[str, torch.Tensor] = {}
    for name, expected in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.long)
            continue
        tensor = tensors.pop(name, None)
        if tensor is None:
            raise ModelError(f"{str(file)!r} lacks the tensor {name}")
        if tensor.shape != expected.shape:
            raise ModelError(
                f"{str(file)!r}: {name} has shape {tuple(tensor.shape)}, config.json says {tuple(expected.shape)}"
            )
        state[name] = tensor.to(expected.dtype)
    if tensors:
        raise ModelError(f"{str(file)!r} holds {next(iter(tensors))}, which this model does not have")
    model.load_state_dict(state, assign=True)


def sha256(file: Path) -> str:
    """Digest of a file's bytes, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def resolve(name: str) -> Path:
    """The folder of a model: a bundled name, a local folder, or a repository id of the Hugging Face hub.

    Raises:
        ModelError: there is no such model.
    """
    if name in bundled():
        return BUNDLED / name
    path = Path(os.path.expanduser(name))  # unlike Path's, it leaves a user that does not exist alone
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{name!r} is a file; give the folder that holds {', '.join(FILES)}")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(f"no model {name!r}; bundled: {', '.join(bundled())}; or give a folder or a hub id OWNER/NAME")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # versions differ in the HTTP library whose errors come through
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"{name!r} is no local folder and could not be fetched from the hub: {reason}") from None


def bundled() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(p.parent.name for p in BUNDLED.glob("*/config.json"))
