"""OFA's files: what is in them, read without running any code that they might carry."""

import argparse
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vlm.convert.ofa.config import Settings, from_fairseq, from_transformers
from vlm.errors import ModelError

# one folder of the port to transformers
HUB_FILES = ("config.json", "model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Checkpoint:
    """An OFA checkpoint as it lies on the disk.

    Attributes:
        file: where the tensors come from, for errors.
        tensors: by the names of the file.
        settings: what the file says of itself.
    """

    file: Path
    tensors: Mapping[str, Any]
    settings: Settings


def read_checkpoint(path: Path, ema: bool = False) -> Checkpoint:
    """Read a fairseq checkpoint (`.pt`), or a folder of the port to transformers.

    Args:
        path: the file or the folder.
        ema: take the averaged weights, with which the original evaluates VQA.

    Raises:
        ModelError: there is no such file, it is damaged, or it is not an OFA checkpoint.
    """
    if path.is_dir():
        if ema:
            raise ModelError(f"{str(path)!r} holds no averaged weights; only fairseq's .pt files may; leave ema out")
        return _read_folder(path)
    if not path.is_file():
        raise ModelError(f"no OFA checkpoint at {str(path)!r}; give a fairseq .pt file or a folder of transformers")
    content = torch_load(path)
    if not isinstance(content, dict) or "model" not in content:
        found = ", ".join(map(str, list(content)[:3])) if isinstance(content, dict) else type(content).__name__
        raise ModelError(
            f"{str(path)!r} is no fairseq checkpoint: it lacks 'model' and holds {found or 'nothing'}; "
            "give an OFA .pt file, or the folder in which a pytorch_model.bin lies beside its config.json"
        )
    tensors = content["model"]
    if ema:
        state = content.get("extra_state")
        tensors = state.get("ema") if isinstance(state, dict) else None
        if tensors is None:
            raise ModelError(f"{str(path)!r} holds no averaged weights (extra_state.ema); leave ema out")
    # the flat arguments of old files win over the configuration, as in the original
    args, cfg = content.get("args"), content.get("cfg")
    values = _flat(args) if args is not None else {**_flat(_flat(cfg).get("task")), **_flat(_flat(cfg).get("model"))}
    return Checkpoint(path, _mapping(tensors, path), _settings(from_fairseq, values, path))


def _read_folder(folder: Path) -> Checkpoint:
    file = next((folder / name for name in HUB_FILES[1:] if (folder / name).is_file()), None)
    config = folder / "config.json"
    if file is None or not config.is_file():
        raise ModelError(
            f"{str(folder)!r} is not an OFA checkpoint: needs config.json and pytorch_model.bin or .safetensors"
        )
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{str(config)!r} is not JSON: {error}; copy or download it again") from None
    settings = _settings(from_transformers, values if isinstance(values, dict) else {}, config)
    if file.suffix == ".bin":
        return Checkpoint(file, _mapping(torch_load(file), file), settings)
    try:
        return Checkpoint(file, load_file(file), settings)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{str(file)!r} cannot be read: {error}; copy or download it again") from None


class _Unread:
    """Stands for a value that nobody reads, such as a NumPy number among the statistics of a training."""

    def __init__(self, *arguments: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_UNREAD = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


def torch_load(file: Path, unread: str | None = None) -> Any:
    """`torch.load` of tensors, plain values and `argparse.Namespace`, nothing else.

    Members of fairseq's enumerations, which some files hold among the settings, come as their plain values.

    Args:
        file: written by `torch.save`.
        unread: beginning of the names of Python objects that the file may hold; they are not made, something empty
            stands for them.

    Raises:
        ModelError: it cannot be read, or holds another object.
    """
    allowed: list[Any] = [argparse.Namespace, *((_Unread, name) for name in _UNREAD)]
    is_zip = zipfile.is_zipfile(file)  # what is older than torch 1.6, and what is cut off, is none
    try:
        if is_zip:
            found = torch.serialization.get_unsafe_globals_in_checkpoint(file)
            allowed += [(str, name) for name in found if name.startswith("fairseq.dataclass.constants.")]
            allowed += [(_Unread, name) for name in found if unread and name.startswith(unread)]
        with torch.serialization.safe_globals(allowed):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # torch raises nearly anything on files that are not checkpoints
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        refused = next((line for line in lines if "GLOBAL" in line), None)
        if refused:
            name = refused.partition("GLOBAL ")[2].split(" ")[0]
            raise ModelError(
                f"{str(file)!r} holds the Python object {name}, which is not loaded: it could run code; "
                "save 'model' and 'cfg' of it alone, with the program that it comes from"
            ) from None
        # torch's advice, to load without weights_only, would run whatever code the file holds
        reason = "it is damaged, or no file of tensors" if lines[0].startswith("Weights only load") else lines[0]
        raise ModelError(f"{str(file)!r} cannot be read: {reason}; take the checkpoint again") from None


def _flat(values: Any) -> dict[str, Any]:
    """A section of settings, which fairseq keeps as a namespace or as a dictionary."""
    if isinstance(values, argparse.Namespace):
        return vars(values)
    return dict(values) if isinstance(values, dict) else {}


def _mapping(tensors: Any, file: Path) -> Mapping[str, Tensor]:
    if not isinstance(tensors, dict):
        raise ModelError(f"{str(file)!r} is not an OFA checkpoint: its weights are a {type(tensors).__name__}")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ModelError(
                f"{str(file)!r}: {name} is a {type(tensor).__name__}, not a tensor; it is not an OFA checkpoint"
            )
    return tensors


def _settings(read: Any, values: dict[str, Any], file: Path) -> Settings:
    try:
        return read(values)
    except KeyError as error:
        raise ModelError(f"{str(file)!r} is not an OFA checkpoint: its settings lack {error}") from None
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ModelError(f"{str(file)!r}: {error}") from None
