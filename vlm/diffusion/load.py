"""A name to a pipeline: the base model's own head, or any text-to-image pipeline of diffusers."""

import inspect
import json
import os
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from vlm.diffusion.pipeline import TextToImagePipeline
from vlm.diffusion.prior import Prior
from vlm.diffusion.text import SETTINGS, TextEncoder, read_settings
from vlm.errors import ArgumentError, ModelError, reason
from vlm.files import hub
from vlm.files.bundle import Bundle, load_folder
from vlm.models.denoiser import Denoiser

INDEX = "model_index.json"
HEAD = "diffusion"  # folder of the head in a model's folder
OURS = ("vlm.models.denoiser", "vlm.diffusion.text", "vlm.diffusion.prior")  # modules that an index may name
PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model")
NO_HEAD = (
    "{name!r} has no diffusion head; train one with `vlm train tiny_diffusion`, or choose a pipeline of diffusers "
    "(--model FOLDER or OWNER/NAME)"
)


def load_pipeline(
    name: str | Path = "tiny", *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Any:
    """Load a pipeline that draws.

    Args:
        name: a bundled name, a model's folder with a head, a folder of any text-to-image pipeline of diffusers, or an
            id of the Hugging Face hub of one of these.
        device: where it runs.
        dtype: of the weights.

    Returns:
        `TextToImagePipeline`, or the pipeline of diffusers that the folder names.

    Raises:
        ModelError: there is no such pipeline, its files cannot be used, or it does not draw from text.
        ArgumentError: the device cannot be used.
    """
    path = find_folder(name)
    if (path / INDEX).is_file():
        pipeline = load_index(path, dtype)
    elif (path / HEAD).is_dir():
        pipeline = load_head(load_folder(path, str(name), with_pair=True), dtype)
    else:
        raise ModelError(NO_HEAD.format(name=str(name)))
    try:
        return pipeline.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ArgumentError(f"device {str(device)!r} cannot be used: {reason}; try cpu, cuda or mps") from None


def find_folder(name: str | Path) -> Path:
    """The folder of a pipeline; one on the hub is fetched into the hub's cache.

    Raises:
        ModelError: there is none.
    """
    source = hub.resolve(name)
    if source.rest in hub.bundled():
        return source.folder()
    path = Path(os.path.expanduser(source.rest))
    if path.is_dir():
        return path
    if path.exists() or not hub.is_hub_id(source.rest):
        raise ModelError(f"no pipeline {source.name!r}; give a bundled name, a folder or a hub id OWNER/NAME")
    return hub.fetch(source.rest, PATTERNS, ("*.fp16.*", "*.non_ema.*"))


def weight_files(folder: Path) -> list[Path]:
    """The files of weights that a pipeline's pictures depend on: all in its folder but a base model's labels."""
    return sorted(file for file in folder.rglob("*.safetensors") if file.name not in hub.LABEL_FILES)


def load_head(bundle: Bundle, dtype: torch.dtype = torch.float32) -> TextToImagePipeline:
    """The pipeline of a base model that has a head in its folder.

    Raises:
        ModelError: it has none, or a file cannot be used.
    """
    folder = bundle.folder
    if folder is None or not (folder / HEAD).is_dir():
        raise ModelError(NO_HEAD.format(name=bundle.name))
    text = TextEncoder(bundle, **read_settings(folder / HEAD / SETTINGS))
    try:
        denoiser = Denoiser.from_pretrained(
            folder / HEAD / "denoiser", local_files_only=True, torch_dtype=torch.float32
        )
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / HEAD / "scheduler", local_files_only=True)
        prior = None
        if (folder / HEAD / "prior").is_dir():
            prior = Prior.from_pretrained(folder / HEAD / "prior", local_files_only=True, torch_dtype=torch.float32)
    except Exception as error:  # diffusers raises whatever its parts do
        raise ModelError(f"{str(folder / HEAD)!r} is not a diffusion head: {reason(error)}") from None
    _check_widths(denoiser, text, folder / HEAD)
    return TextToImagePipeline(denoiser, scheduler, text, _autoencoder(folder / HEAD / "vae", dtype), prior)


def save_head(folder: Path, pipeline: TextToImagePipeline) -> None:
    """Write the head into a model's folder, for `load_head`: all but the base model, whose folder it is."""
    pipeline.denoiser.save_pretrained(folder / HEAD / "denoiser")
    pipeline.scheduler.save_pretrained(folder / HEAD / "scheduler")
    if pipeline.vae is not None:
        pipeline.vae.save_pretrained(folder / HEAD / "vae")
    if pipeline.prior is not None:
        pipeline.prior.save_pretrained(folder / HEAD / "prior")
    pipeline.text_encoder.save_settings(folder / HEAD)


def load_index(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A pipeline in the layout of diffusers.

    Raises:
        ModelError: it does not draw from text, a file cannot be used, or it names code that is not of diffusers.
    """
    file = folder / INDEX
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        parts = {name: part for name, part in index.items() if not name.startswith("_") and isinstance(part, list)}
        kind = str(index["_class_name"])
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{str(file)!r} is not the index of a pipeline: {error}") from None
    for name, (library, *_) in parts.items():
        if not (library in (None, "diffusers", "transformers", *OURS) or _is_of_diffusers(library)):
            raise ModelError(
                f"{str(file)!r} wants code from {library!r} for {name}; only parts of diffusers are loaded"
            )
    own = kind == TextToImagePipeline.__name__
    try:
        loader = TextToImagePipeline if own else DiffusionPipeline
        # safetensors only: a pickle could run code
        pipeline = _quietly(loader.from_pretrained, folder, use_safetensors=True, torch_dtype=dtype)
    except Exception as error:
        raise ModelError(f"{str(folder)!r} cannot be loaded as {kind}: {reason(error)}") from None
    if "prompt" not in inspect.signature(type(pipeline).__call__).parameters:
        raise ModelError(f"{str(folder)!r} is a {kind}, which does not draw from text; choose a text-to-image pipeline")
    return pipeline


def _quietly(load: Callable[..., Any], folder: Path, **options: Any) -> Any:
    """Load local files without progress bars, and without a warning that `torch_dtype` has a new name."""
    from diffusers.utils import logging

    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch_dtype.* is deprecated", FutureWarning)
        return load(folder, local_files_only=True, **options)


def _is_of_diffusers(library: Any) -> bool:
    return (
        isinstance(library, str) and library.isidentifier() and hasattr(import_module("diffusers.pipelines"), library)
    )


def _autoencoder(folder: Path, dtype: torch.dtype) -> Any:
    """The autoencoder in a folder, of any of diffusers' classes; None if the folder does not exist."""
    if not folder.is_dir():
        return None
    import diffusers

    try:
        kind = str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"])
        assert kind.startswith("Autoencoder") and kind.isidentifier(), f"{kind} is not an autoencoder"
        return _quietly(getattr(diffusers, kind).from_pretrained, folder, torch_dtype=dtype)
    except Exception as error:
        raise ModelError(f"{str(folder)!r} is not an autoencoder of diffusers: {reason(error)}") from None


def _check_widths(denoiser: Denoiser, text: TextEncoder, folder: Path) -> None:
    sizes = denoiser.sizes
    if (sizes.text_dim, sizes.pooled_dim) != (text.dim, text.pooled_dim):
        raise ModelError(
            f"{str(folder)!r} reads text states of {sizes.text_dim} and {sizes.pooled_dim} channels; the base model's "
            f"have {text.dim} and {text.pooled_dim}; take the base that it was trained with"
        )
