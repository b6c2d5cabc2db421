"""A loaded model as one record, and the folder that it is read from and written to.

The folder holds `config.json`, `tokenizer.json` and `model.safetensors`; beside them, where the model has a contrastive
pair, `pair.json`, `pair_tokenizer.json` and `pair.safetensors`, and where its tower knows labels of its own,
`labels.json` and `labels.safetensors`.
"""

# the types that torch and safetensors give some of their results are unknown
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from vlm.errors import ArgumentError, ModelError
from vlm.files.atomic import write_bytes
from vlm.files.digest import files_sha256, weights_sha256
from vlm.files.hub import FILES, LABEL_FILES, PAIR_FILES, ModelName, resolve
from vlm.files.int8 import SCALE, from_int8, to_int8
from vlm.image import ImageTransform
from vlm.models.config import PairConfig, Seq2SeqConfig, TowerConfig
from vlm.models.labels import LabelHead
from vlm.models.pair import ContrastivePair
from vlm.models.towers import TimmTower, build_tower
from vlm.models.vision_language import VisionLanguageModel
from vlm.tokenizer import Tokenizer

FORMAT = 1
Tasks = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Bundle:
    """Everything that belongs to one set of weights.

    Attributes:
        module: the networks.
        tokenizer: what the backbone's ids mean.
        transform: how photos are prepared; it travels with the weights.
        tasks: what the model was trained for, names of `vlm.tasks`, each with the settings that differ from the task's
            own.
        name: what the model was loaded by.
        folder: where it was loaded from; None: from files of another format, or it was built here.
        pair: the contrastive pair on the module's tower, if there is one and it was asked for.
        pair_tokenizer: of the pair's text tower.
        labels: the tower's own labels, if there are any and the pair was asked for.
    """

    module: VisionLanguageModel
    tokenizer: Tokenizer
    transform: ImageTransform
    tasks: Tasks = field(default_factory=lambda: {"caption": {}})
    name: str = ""
    folder: Path | None = None
    pair: ContrastivePair | None = None
    pair_tokenizer: tokenizers.Tokenizer | None = None
    labels: LabelHead | None = None

    def sha256(self) -> str:
        """Digest of the weights, in hexadecimal: of the file, or, where there is none, by name and value."""
        if self.folder is not None:
            return files_sha256([self.folder / "model.safetensors"])
        return weights_sha256(self.module)


def load_bundle(
    name: str | Path | ModelName, *, tokenizer: str | Path | None = None, with_pair: bool = False
) -> Bundle:
    """Load a model by name: in float32 and evaluation mode.

    Args:
        name: a name of the project's own models, or `ofa:` and a checkpoint of OFA, see `vlm.files.hub`.
        tokenizer: of an OFA checkpoint, the folder or hub id of its vocabulary; None: beside the checkpoint.
        with_pair: load the contrastive pair and the head of labels too, where there are any.

    Raises:
        ModelError: there is no such model, or a file is missing, damaged or of another model; tensors are missing,
            unexpected or misshapen.
        ArgumentError: `tokenizer` is given for a model that has its own.
    """
    source = name if isinstance(name, ModelName) else resolve(name, ("model", "ofa"))
    if source.kind == "ofa":
        from vlm.convert.ofa.checkpoint import load_ofa  # converted while it is loaded

        return load_ofa(source.rest, tokenizer=tokenizer)
    if tokenizer is not None:
        raise ArgumentError(
            f"tokenizer={str(tokenizer)!r} is for names that begin with ofa:; {source.name!r} has its own"
        )
    return load_folder(source.folder(), source.name, with_pair)


def load_folder(folder: Path, name: str = "", with_pair: bool = False) -> Bundle:
    """Load a model's folder; arguments and errors as in `load_bundle`."""
    missing = [file for file in FILES if not (folder / file).is_file()]
    if missing:
        raise ModelError(f"{str(folder)!r} is not a model's folder: {', '.join(missing)} missing")
    config = _read_config(folder / "config.json")
    try:
        tower, backbone = TowerConfig(**config["tower"]), Seq2SeqConfig(**config["backbone"])
        transform = ImageTransform(**config["image"])
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
    if files_sha256([file]) != digest or tokenizer.vocab_size != backbone.vocab_size:
        raise ModelError(f"{str(file)!r} is not the tokenizer that these weights were trained with; copy theirs")
    tasks = config.get("tasks", {"caption": {}})
    if not isinstance(tasks, dict) or not tasks or not all(isinstance(own, dict) for own in tasks.values()):
        raise ModelError(f"{str(folder / 'config.json')!r}: tasks={tasks!r} must hold an object for each task")
    _fill(model, folder / "model.safetensors")
    pair, pair_tokenizer = load_pair(folder) if with_pair and has_pair(folder) else (None, None)
    labels = load_labels(folder, model.tower.dim) if with_pair and has_labels(folder) else None
    return Bundle(model.eval(), tokenizer, transform, tasks, name, folder, pair, pair_tokenizer, labels)


def save_bundle(folder: Path, bundle: Bundle, dtype: torch.dtype = torch.float16) -> None:
    """Write a model's folder, made where it is missing.

    Args:
        folder: where.
        bundle: on any device; where it has a pair, the pair is written too.
        dtype: of the backbone's and the tower's floating tensors in the file. Of the pair, matrices are stored as int8
            with a scale a row, embeddings and vectors as float16.
    """
    model = bundle.module
    tensors = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    write_bytes(folder / "model.safetensors", save(tensors, {"format": "pt"}))
    bundle.tokenizer.save(folder / "tokenizer.json")
    config = {
        "format": FORMAT,
        "backbone": asdict(model.backbone.config),
        "tower": asdict(model.tower_config),
        "image": asdict(bundle.transform),
        "tokenizer": {
            "num_codes": bundle.tokenizer.num_codes,
            "num_bins": bundle.tokenizer.num_bins,
            "sha256": files_sha256([folder / "tokenizer.json"]),
        },
        "tasks": {task: dict(settings) for task, settings in bundle.tasks.items()},
    }
    write_bytes(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    if bundle.pair is not None and bundle.pair_tokenizer is not None:
        _save_pair(folder, bundle.pair, bundle.pair_tokenizer)


def has_pair(folder: Path) -> bool:
    """Whether a model's folder holds a contrastive pair, or a part of one."""
    return any((folder / name).is_file() for name in PAIR_FILES)


def _save_pair(folder: Path, pair: ContrastivePair, tokenizer: tokenizers.Tokenizer) -> None:
    embeddings = {f"{name}.weight" for name, module in pair.named_modules() if isinstance(module, torch.nn.Embedding)}
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in pair.state_dict().items():
        if tensor.ndim == 2 and name not in embeddings:
            tensors[name], tensors[name + SCALE] = to_int8(tensor)
        else:
            tensors[name] = tensor.half()
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(folder / "pair.safetensors", save(tensors, {"format": "pt"}))
    write_bytes(folder / "pair_tokenizer.json", tokenizer.to_str().encode())
    config = {
        "format": FORMAT,
        "pair": asdict(pair.config),
        "tokenizer_sha256": files_sha256([folder / "pair_tokenizer.json"]),
    }
    write_bytes(folder / "pair.json", (json.dumps(config, indent=2) + "\n").encode())


def load_pair(folder: Path) -> tuple[ContrastivePair, tokenizers.Tokenizer]:
    """Read the pair of a model's folder: in float32 and evaluation mode, and the tokenizer of its text tower.

    Raises:
        ModelError: a file is missing, damaged or of another pair.
    """
    missing = [name for name in PAIR_FILES if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{str(folder)!r} has an incomplete pair of encoders: {', '.join(missing)} missing")
    config = _read_config(folder / "pair.json")
    try:
        digest, sizes = config["tokenizer_sha256"], PairConfig(**config["pair"])
        with torch.device("meta"):
            pair = ContrastivePair(sizes)
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, AssertionError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else f"does not describe a pair: {error}"
        raise ModelError(f"{str(folder / 'pair.json')!r} {reason}".splitlines()[0]) from None
    file = folder / "pair_tokenizer.json"
    if files_sha256([file]) != digest:
        raise ModelError(f"{str(file)!r} is not the tokenizer that these weights were trained with; copy theirs")
    _fill(pair, folder / "pair.safetensors")
    return pair.eval(), tokenizers.Tokenizer.from_file(str(file))


def has_labels(folder: Path) -> bool:
    """Whether a model's folder holds a head of labels, or a part of one."""
    return any((folder / name).is_file() for name in LABEL_FILES)


def save_labels(folder: Path, head: LabelHead) -> None:
    """Write a head of labels into a model's folder, its weights as int8 with a scale a row."""
    weight, scale = to_int8(head.weight)
    tensors = {"weight": weight, f"weight{SCALE}": scale, "bias": head.bias.contiguous()}
    write_bytes(folder / "labels.safetensors", save(tensors, {"format": "pt"}))
    config = {"format": FORMAT, "labels": list(head.names)}
    write_bytes(folder / "labels.json", (json.dumps(config, indent=1, ensure_ascii=False) + "\n").encode())


def load_labels(folder: Path, dim: int) -> LabelHead:
    """Read what `save_labels` wrote, for a tower with features of `dim` channels.

    Raises:
        ModelError: a file is missing, damaged or of another tower.
    """
    if missing := [name for name in LABEL_FILES if not (folder / name).is_file()]:
        raise ModelError(f"{str(folder)!r} has an incomplete head of labels: {', '.join(missing)} missing")
    names = _read_config(folder / "labels.json").get("labels")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ModelError(f"{str(folder / 'labels.json')!r} does not name labels; take the whole folder again")
    with torch.device("meta"):
        head = torch.nn.Linear(dim, len(names))
    _fill(head, folder / "labels.safetensors")
    return LabelHead(tuple(names), head.weight.detach(), head.bias.detach())


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{str(file)!r} is not JSON: {error}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else config
        remedy = "update vlm-foundation" if isinstance(found, int) and found > FORMAT else "take the whole folder again"
        raise ModelError(f"{str(file)!r} has format {found!r}; this version reads {FORMAT}; {remedy}")
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
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ModelError(
                f"{str(file)!r}: {name} holds NaN or infinite values, as where a training diverged; take other weights"
            )
        try:
            state[name] = tensor.to(expected.dtype) if scale is None else from_int8(tensor, scale, expected.dtype)
        except ValueError as error:
            raise ModelError(f"{str(file)!r}: {name} {error}") from None
    if tensors:
        raise ModelError(f"{str(file)!r} holds {next(iter(tensors))}, which this model does not have")
    model.load_state_dict(state, assign=True)
