"""A model's folder: `config.json`, `tokenizer.json`, `model.safetensors`; and a name to such a folder."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from vlm.errors import ModelError
from vlm.image import ImageTransform
from vlm.models.encoders import ContrastivePair, PairConfig
from vlm.models.layers import Seq2SeqConfig
from vlm.models.towers import TimmTower, TowerConfig, build_tower
from vlm.models.vision_language import VisionLanguageModel
from vlm.prompt import TASKS
from vlm.tokenizer import Tokenizer

FORMAT = 1
BUNDLED = Path(__file__).parent / "weights"
FILES = ("config.json", "tokenizer.json", "model.safetensors")
SCALE = "_scale"  # behind the name of an int8 matrix: what its rows are multiplied by
PAIR_FILES = ("pair.json", "pair_tokenizer.json", "pair.safetensors")


def save_model(
    folder: Path,
    model: VisionLanguageModel,
    tokenizer: Tokenizer,
    image: ImageTransform,
    tasks: Mapping[str, Mapping[str, Any]] | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a model's folder.

    Args:
        folder: made where it is missing.
        model: any device.
        tokenizer: what the backbone's ids mean.
        image: how photos are prepared; it travels with the weights.
        tasks: what the model was trained for, keys of `vlm.prompt.TASKS`, each with the settings that differ from the
            ones there; None: captions.
        dtype: of the floating tensors in the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    _write(folder / "model.safetensors", save(tensors, {"format": "pt"}))
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
    if tasks is not None:
        config["tasks"] = {task: dict(settings) for task, settings in tasks.items()}
    _write(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())


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


def has_pair(folder: Path) -> bool:
    """Whether a model's folder holds a contrastive pair, or a part of one."""
    return any((folder / name).is_file() for name in PAIR_FILES)


def save_pair(folder: Path, pair: ContrastivePair, tokenizer: tokenizers.Tokenizer) -> None:
    """Write a contrastive pair beside the model whose tower it reads.

    Matrices are stored as int8 with a scale a row, embeddings and vectors as float16.
    """
    embeddings = {f"{name}.weight" for name, module in pair.named_modules() if isinstance(module, torch.nn.Embedding)}
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in pair.state_dict().items():
        if tensor.ndim == 2 and name not in embeddings:
            scale = (tensor.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
            tensors[name], tensors[name + SCALE] = (tensor / scale).round().to(torch.int8), scale
        else:
            tensors[name] = tensor.half()
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    _write(folder / "pair.safetensors", save(tensors, {"format": "pt"}))
    text = tokenizer.to_str().encode()
    _write(folder / "pair_tokenizer.json", text)
    config = {"format": FORMAT, "pair": asdict(pair.config), "tokenizer_sha256": hashlib.sha256(text).hexdigest()}
    _write(folder / "pair.json", (json.dumps(config, indent=2) + "\n").encode())


def load_pair(folder: Path) -> tuple[ContrastivePair, tokenizers.Tokenizer]:
    """Read the pair of a model's folder: in float32 and evaluation mode, and the tokenizer of its text tower.

    Raises:
        ModelError: the folder holds none, or its files are damaged or of another pair.
    """
    missing = [name for name in PAIR_FILES if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{str(folder)!r} has no text encoder ({', '.join(missing)} missing); choose a model that has, such as "
            "open_clip:ViT-B-32/laion2b_s34b_b79k"
        )
    config = _read_config(folder / "pair.json")
    try:
        digest, sizes = config["tokenizer_sha256"], PairConfig(**config["pair"])
        with torch.device("meta"):
            pair = ContrastivePair(sizes)
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, AssertionError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else f"does not describe a pair: {error}"
        raise ModelError(f"{str(folder / 'pair.json')!r} {reason}".splitlines()[0]) from None
    file = folder / "pair_tokenizer.json"
    if sha256(file) != digest:
        raise ModelError(f"{str(file)!r} is not the tokenizer that these weights were trained with; copy theirs")
    _fill(pair, folder / "pair.safetensors")
    return pair.eval(), tokenizers.Tokenizer.from_file(str(file))


def _write(file: Path, data: bytes) -> None:
    """Replace a file at once; safetensors' own save_file would make it unreadable for other users."""
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, file)


def task_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """What a model was trained for, and for each task the settings that differ from `vlm.prompt.TASKS`.

    Raises:
        ModelError: `config.json` is damaged.
    """
    file = folder / "config.json"
    tasks = _read_config(file).get("tasks", {"caption": {}})
    if not isinstance(tasks, dict) or not tasks:
        raise ModelError(f"{str(file)!r}: tasks={tasks!r} is no object with a name and an object for each task")
    for task, settings in tasks.items():
        if task not in TASKS:
            raise ModelError(f"{str(file)!r}: task {task!r} is unknown; this version knows {', '.join(TASKS)}")
        if not isinstance(settings, dict) or not isinstance(settings.get("prompt", ""), str):
            raise ModelError(f"{str(file)!r}: {task}={settings!r} is no object with a prompt and options")
    return tasks


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{str(file)!r} is not JSON: {error}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else config
        raise ModelError(f"{str(file)!r} has format {found!r}; this version reads {FORMAT}; update vlm-foundation")
    return config


def _fill(model: torch.nn.Module, file: Path) -> None:
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
        scale = tensors.pop(name + SCALE, None)
        if tensor.shape != expected.shape:
            raise ModelError(
                f"{str(file)!r}: {name} has shape {tuple(tensor.shape)}, its config says {tuple(expected.shape)}"
            )
        state[name] = tensor.to(expected.dtype) if scale is None else _widen(file, name, tensor, scale, expected)
    if tensors:
        raise ModelError(f"{str(file)!r} holds {next(iter(tensors))}, which this model does not have")
    model.load_state_dict(state, assign=True)


def _widen(file: Path, name: str, tensor: torch.Tensor, scale: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    if scale.shape != (len(expected), 1) or tensor.dtype != torch.int8:
        raise ModelError(f"{str(file)!r}: {name}{SCALE} has shape {tuple(scale.shape)}, not one scale a row of int8")
    return tensor.to(expected.dtype) * scale.to(expected.dtype)


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
    if name.startswith("ofa:"):
        raise ModelError(
            f"{name!r} is in a foreign format; write it as ours: python -m tasks.convert CHECKPOINT FOLDER"
        )
    path = Path(os.path.expanduser(name))  # unlike Path's, it leaves a user that does not exist alone
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{name!r} is a file; give the folder that holds {', '.join(FILES)}")
    if not is_hub_id(name):
        raise ModelError(f"no model {name!r}; bundled: {', '.join(bundled())}; or give a folder or a hub id OWNER/NAME")
    return fetch(name, [*FILES, *PAIR_FILES])


def is_hub_id(name: str) -> bool:
    """Whether a name can be OWNER/NAME on the Hugging Face hub, rather than a path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def fetch(name: str, patterns: Sequence[str], ignore: Sequence[str] = ()) -> Path:
    """The files of a hub repository that match `patterns`, in the hub's own cache.

    Raises:
        ModelError: the hub has no such repository, or cannot be reached.
    """
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=list(ignore))
        return Path(folder)
    except Exception as error:  # versions differ in the HTTP library whose errors come through
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"{name!r} is no local folder and could not be fetched from the hub: {reason}") from None


def bundled() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(p.parent.name for p in BUNDLED.glob("*/config.json"))
