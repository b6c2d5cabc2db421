"""Encoders as ONNX files that run without this package: pixels or word ids in, vectors of unit length out.

Beside the files lie `tokenizer.json` (for the tokenizers library) and `encoders.json`, which says how photos become
pixels and sentences ids; each ONNX file carries the same text under the key `encoders`.
"""

import importlib.util
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
from PIL import Image
from torch import Tensor, nn

from vlm.encoders.base import Encoders
from vlm.encoders.open_clip import OpenCLIPEncoders
from vlm.encoders.pair import PairEncoders
from vlm.errors import ArgumentError, ModelError
from vlm.image import ImageTransform

FORMAT = 1
TOLERANCE = 1e-4  # on each number of a vector of unit length
KEY = "encoders"  # of the metadata in an ONNX file
NEEDS = ("onnx", "onnxscript", "onnxruntime")
# of several lengths, with what tokenizers disagree on: case, accents, contractions, digits, spaces, markup
SENTENCES = (
    "a dog in the snow",
    "A cat",
    "They're 12 cafés,\n and  it's raining  on <b>Zürich</b>!",
    "",
    "one photo of a long train of thought " * 80,
)


@dataclass(frozen=True)
class Exported:
    """A file that `export` wrote; `difference` is the largest of its vectors' numbers to those of the encoders."""

    file: Path
    difference: float


def export(encoders: Encoders, folder: str | os.PathLike[str]) -> list[Exported]:
    """Write `image.onnx`, `text.onnx` where there is a text encoder, `tokenizer.json` and `encoders.json`.

    The batch is free, and so is the number of words where the tokenizer does not pad to a fixed one. Every file is run
    by onnxruntime before any gets its place.

    Args:
        encoders: in float32, on the CPU.
        folder: made where it is missing; empty otherwise.

    Raises:
        ArgumentError: the folder cannot be used, or ONNX is not installed.
        ModelError: the model cannot be exported, or its vectors come out otherwise.
    """
    out = Path(os.path.expanduser(folder))
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ArgumentError(f"an export needs {', '.join(missing)}; pip install 'vlm-foundation[export]'")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArgumentError(f"{str(out)!r} exists and is not an empty folder; name another")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".partial-") as partial:
            found = _write(encoders.eval(), Path(partial))
            for file in sorted(Path(partial).iterdir()):
                os.replace(file, out / file.name)
    except OSError as error:
        raise ArgumentError(f"{str(out)!r} cannot be written: {error.strerror}; name another folder") from None
    return [Exported(out / name, difference) for name, difference in found.items()]


def _write(encoders: Encoders, out: Path) -> dict[str, float]:
    """All files into a folder; the largest difference of each ONNX file."""
    pictures = [
        Image.linear_gradient("L"),
        Image.radial_gradient("L"),
        Image.effect_mandelbrot((64, 48), (-2, -1, 1, 1), 9),
    ]
    pixels = encoders.pixels(pictures)  # pyright: ignore[reportArgumentType]
    size = list(pixels.shape[1:])
    about: dict[str, Any] = {
        "format": FORMAT,
        "model": encoders.name,
        "weights_sha256": encoders.weights_sha256(),
        "dim": encoders.dim,
        "image": {
            "file": "image.onnx", "input": "pixels", "type": "float32", "shape": ["batch", *size],
            "output": "image_features", "transform": describe_transform(encoders.image_transform),
        },
    }  # fmt: skip
    jobs: list[tuple[str, nn.Module, list[Tensor], dict[int, str]]] = [
        ("image", _Call(encoders, encoders.encode_image), [pixels[:2], pixels[:1], pixels], {0: "batch"})
    ]
    if encoders.logit_scale is not None:
        batches = [encoders.tokenize(part) for part in (SENTENCES[:2], SENTENCES[1:2], SENTENCES[2:])]
        words = {batch.shape[1] for batch in batches}
        free = len(words) > 1
        about["logit_scale"] = encoders.logit_scale.exp().item()
        about["text"] = {
            "file": "text.onnx", "input": "ids", "type": "int64",
            "shape": ["batch", "words" if free else words.pop()], "output": "text_features",
            "tokenizer": _write_tokenizer(encoders, out / "tokenizer.json"),
        }  # fmt: skip
        if free:
            about["text"]["longest"] = max(batch.shape[1] for batch in batches)
        axes = {0: "batch", 1: "words"} if free else {0: "batch"}
        jobs.append(("text", _Call(encoders, encoders.encode_text), batches, axes))
    text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    (out / "encoders.json").write_text(text, encoding="utf-8")
    differences = {}
    for kind, module, batches, axes in jobs:
        _to_onnx(module, batches[0], axes, out / f"{kind}.onnx", about[kind], text)
        differences[f"{kind}.onnx"] = difference = _check(module, batches, out / f"{kind}.onnx", about[kind])
        if not difference <= TOLERANCE:
            raise ModelError(
                f"{encoders.name!r}: the vectors of {kind}.onnx differ by {difference:.1e}, more than {TOLERANCE:.0e}; "
                "nothing was written; other versions of torch or onnxruntime may do better"
            )
    return differences


class _Call(nn.Module):
    """One of the encoders' calls as a module's."""

    def __init__(self, encoders: Encoders, call: Callable[[Tensor], Tensor]):
        super().__init__()
        self.encoders, self.call = encoders, call

    def forward(self, inputs: Tensor) -> Tensor:
        return self.call(inputs)


def _to_onnx(
    module: nn.Module, example: Tensor, axes: dict[int, str], file: Path, about: dict[str, Any], metadata: str
) -> None:
    """Trace a module on `example`, whose `axes` stay free, and write it."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for a whole layer, which ONNX does not know
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself
            program = torch.onnx.export(
                module,
                (example,),
                input_names=[about["input"]],
                output_names=[about["output"]],
                dynamic_shapes=(axes,),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # whatever a part of torch raises about somebody's model
        cause = error.__cause__ or error  # the exporter's own words are advice on exporting
        reason = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise ModelError(f"{file.name} cannot be made of this model: {reason}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    assert program is not None
    program.model.metadata_props[KEY] = metadata
    program.save(file)


@torch.inference_mode()
def _check(module: nn.Module, batches: Sequence[Tensor], file: Path, about: dict[str, Any]) -> float:
    """The largest difference between a module and its file, on batches of several sizes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    differences = []
    for batch in batches:
        (found,) = session.run([about["output"]], {about["input"]: batch.numpy()})
        differences.append((torch.from_numpy(found) - module(batch)).abs().max())
    return float(torch.stack(differences).max())


def describe_transform(transform: Callable[[Image.Image], Tensor]) -> list[dict[str, Any]]:
    """What is done to an RGB picture, step by step, as plain data; sizes are one side (the shorter) or [height, width].

    A step of a kind that is not known here is named by its text.
    """
    if isinstance(transform, ImageTransform):
        side = [transform.size, transform.size]
        return [
            {"resize": side, "interpolation": transform.interpolation},
            {"divide": 255},
            {"subtract": list(transform.mean), "divide": list(transform.std)},
        ]
    steps = []
    for step in getattr(transform, "transforms", [transform]):
        match type(step).__name__:
            case "Resize":
                steps.append({"resize": _sides(step.size), "interpolation": step.interpolation.value})
            case "CenterCrop":
                steps.append({"center_crop": _sides(step.size)})
            case "ToTensor" | "MaybeToTensor":
                steps.append({"divide": 255})
            case "Normalize":
                mean, std = ([round(float(x), 7) for x in values] for values in (step.mean, step.std))
                steps.append({"subtract": mean, "divide": std})
            case "MaybeConvertMode":
                pass  # to RGB, which it is
            case _ if "convert_to_rgb" not in repr(step):
                steps.append({"other": repr(step)})
    return steps


def _sides(size: int | Sequence[int]) -> int | list[int]:
    return size if isinstance(size, int) else size[0] if len(size) == 1 else list(size)


def _write_tokenizer(encoders: Encoders, file: Path) -> str | None:
    """Write a tokenizer that gives the same ids as `tokenize`; None where there is no such."""
    if isinstance(encoders, PairEncoders):
        made = tokenizers.Tokenizer.from_str(encoders.tokenizer.to_str())
        made.enable_truncation(encoders.pair.config.text.max_positions)
        made.enable_padding()  # id 0, up to the longest
    elif isinstance(encoders, OpenCLIPEncoders) and hasattr(encoders.tokenizer, "bpe_ranks"):
        made = _clip_tokenizer(encoders.tokenizer)
    elif isinstance(encoders, OpenCLIPEncoders) and hasattr(encoders.tokenizer, "tokenizer"):
        made = getattr(encoders.tokenizer.tokenizer, "backend_tokenizer", None)  # pads and cuts as in the last call
    else:
        made = None
    if made is None:
        return None
    for part in (SENTENCES, SENTENCES[1:2]):
        ids = [encoding.ids for encoding in made.encode_batch(list(part))]
        if ids != encoders.tokenize(part).tolist():
            return None
    made.save(str(file))
    return file.name


def _clip_tokenizer(theirs: Any) -> tokenizers.Tokenizer:
    """open_clip's own byte-level BPE, without its repair of broken Unicode and of HTML escapes."""
    from tokenizers import Regex, models, normalizers, pre_tokenizers, processors

    made = tokenizers.Tokenizer(
        models.BPE(dict(theirs.encoder), list(theirs.bpe_ranks), end_of_word_suffix="</w>", unk_token="<end_of_text>")
    )
    lower = [normalizers.Lowercase()] if theirs.clean_fn.__name__ == "_clean_lower" else []
    made.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), *lower])  # pyright: ignore
    words = Regex("(?i)" + re.sub(r"^.*?\|(?='s)", "", theirs.pat.pattern))  # without the special tokens
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(words, "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    (start, first), (end, last) = (
        ("<start_of_text>", theirs.sot_token_id),
        ("<end_of_text>", theirs.eot_token_id),
    )
    made.post_processor = processors.BertProcessing((end, last), (start, first))
    made.enable_truncation(theirs.context_length)
    made.enable_padding(length=theirs.context_length, pad_id=0, pad_token="!")
    return made
