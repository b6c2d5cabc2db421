"""OFA's released checkpoints as our model: tensor names of fairseq and of the port to transformers, and the loader."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.convert.ofa.config import BATCH_NORM_EPS
from vlm.convert.ofa.files import HUB_FILES, Checkpoint, read_checkpoint
from vlm.convert.ofa.tokenizer import FILES as VOCABULARY_FILES
from vlm.convert.ofa.tokenizer import is_chinese, load_tokenizer
from vlm.errors import ModelError
from vlm.files import hub
from vlm.files.bundle import Bundle
from vlm.models.vision_language import VisionLanguageModel
from vlm.predictor import Prefix
from vlm.tasks import caption, ground, summarize
from vlm.tasks.answer import AnswerQuestion
from vlm.tasks.caption import Caption
from vlm.tasks.classify import Classify
from vlm.tasks.complete import Complete
from vlm.tasks.describe_region import DescribeRegion
from vlm.tasks.entail import Entail
from vlm.tasks.generate_image import GenerateImage
from vlm.tasks.ground import Ground
from vlm.tasks.summarize import Summarize
from vlm.tokenizer import Tokenizer

_STACK = (
    (r"layernorm_embedding", "embed_norm"),
    (r"patch_layernorm_embedding", "patch_norm"),
    (r"code_layernorm_embedding", "code_embed_norm"),
    (r"image_proj", "patch_proj"),
    (r"embed_positions", "text_positions"),
    (r"embed_image_positions", "image_positions"),
    (r"pos_ln", "text_position_norm"),
    (r"image_pos_ln", "image_position_norm"),
    (r"(?:self_)?pos_([qk])_linear", r"self_bias.\1_proj"),
    (r"cross_pos_([qk])_linear", r"cross_bias.\1_proj"),
    (r"token_rel_pos_table_list\.(\d+)", r"relative.\1.text"),
    (r"image_rel_pos_table_list\.(\d+)", r"relative.\1.image"),
    (r"layer_norm", "norm"),
    (r"type_embedding", "type_embedding"),
)
_LAYER = (  # fairseq's names and, where transformers has another, that one
    (r"self_attn\.c_attn", "self_attn.head_scale"),
    (r"(?:encoder|cross)_attn\.c_attn", "cross_attn.head_scale"),
    (r"self_attn\.(\w+)", r"self_attn.\1"),
    (r"(?:encoder|cross)_attn\.(\w+)", r"cross_attn.\1"),
    (r"self_attn_layer_norm", "self_attn_norm"),
    (r"(?:encoder|cross)_attn_layer_norm", "cross_attn_norm"),
    (r"(?:self_)?attn_ln|self_attn_mid_layer_norm", "self_attn_out_norm"),
    (r"cross_attn_ln|cross_attn_mid_layer_norm", "cross_attn_out_norm"),
    (r"(fc[12])", r"ffn.\1"),
    (r"ffn_layer_?norm", "ffn.norm"),
    (r"final_layer_norm", "ffn_norm"),
    (r"w_resid", "ffn_resid"),
)
_TOWER = (
    (r"conv1", "chain.0.0"),
    (r"bn1", "chain.0.1"),
    (r"layer(\d)\.(.+)", r"chain.\1.\2"),
)
EMBEDDING = "encoder.embed_tokens.weight"
COPIES = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
# tables that we compute, and heads that the tasks do not use
_IGNORED = re.compile(
    r"(encoder|decoder)\.(version|token_rp_bucket|image_rp_bucket|image_position_idx)|classification_heads\..+"
)


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    stem, dot, leaf = name.rpartition(".")
    if leaf not in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        stem, dot, leaf = name, "", ""
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, stem)
        if match:
            return match.expand(replacement) + dot + leaf
    return None


def rename(name: str) -> str | None:
    """Our name of one of OFA's tensors, with the part of the model in front: `backbone.` or `tower.`.

    Returns:
        None for buffers that this code computes, for the copies of the tied embedding, and for classification heads.

    Raises:
        KeyError: the name belongs to no part of the model.
    """
    if name in COPIES or _IGNORED.fullmatch(name):
        return None
    if name == EMBEDDING:
        return "backbone.embed.weight"
    stack, _, rest = name.partition(".")
    new = None
    if stack in ("encoder", "decoder"):
        if rest.startswith("embed_images."):
            new = _rename(rest.removeprefix("embed_images."), _TOWER)
            return f"tower.{new}" if new else _unknown(name)
        if match := re.match(r"(layers\.\d+)\.(.+)", rest):
            new = _rename(match[2], _LAYER)
            new = f"{match[1]}.{new}" if new else None
        else:
            new = _rename(rest, _STACK)
    return f"backbone.{stack}.{new}" if new else _unknown(name)


def _unknown(name: str) -> str:
    raise KeyError(name)


def load_ofa(
    name: str | Path, *, tokenizer: str | Path | None = None, ema: bool = False, image_size: int | None = None
) -> Bundle:
    """Load an OFA checkpoint with its vocabulary, its image transform and how it is asked (`task_settings`).

    Args:
        name: a fairseq `.pt` file, a folder of the port to transformers, or a repository of the Hugging Face hub.
        tokenizer: where the vocabulary is, see `vlm.convert.ofa.tokenizer`; None: beside the checkpoint.
        ema: take the averaged weights, with which the original evaluates VQA.
        image_size: side of the square that photos are resized to; None: what the checkpoint says.

    Raises:
        ModelError: a file is missing, damaged, or not OFA's.
        ArgumentError: an impossible image size.
    """
    path = Path(os.path.expanduser(name))
    if not path.exists():
        if not hub.is_hub_id(str(name)):
            raise ModelError(f"no OFA checkpoint at {str(name)!r}; give a fairseq .pt file, a folder, or OWNER/NAME")
        path = hub.fetch(str(name), [*HUB_FILES, *VOCABULARY_FILES])
    checkpoint = read_checkpoint(path, ema)  # first: a file of another kind has no vocabulary either
    vocabulary = load_tokenizer(tokenizer if tokenizer is not None else path if path.is_dir() else path.parent)
    model = load_checkpoint(checkpoint, vocabulary)
    image = checkpoint.settings.image
    image = image if image_size is None else replace(image, size=image_size)
    return Bundle(model, vocabulary, image, task_settings(vocabulary, checkpoint.settings.prefix), f"ofa:{name}")


def task_settings(tokenizer: Tokenizer, prefix: Prefix) -> dict[str, dict[str, Any]]:
    """What the original asks, and how: over the whole vocabulary, boxes in pixels; Chinese models in Chinese.

    A checkpoint that was tuned for one task can still be asked anything.

    Args:
        tokenizer: the model's.
        prefix: what the decoder is given before answers, see `Settings`.
    """
    tasks: dict[str, dict[str, Any]] = {
        Caption.name: {"allowed": None, "max_tokens": 16},
        AnswerQuestion.name: {"allowed": None, "prefix": prefix},
        Ground.name: {"allowed": None, "box_pixels": None},
        DescribeRegion.name: {"allowed": None, "box_pixels": None, "max_tokens": 16},
        Entail.name: {"allowed": None, "prefix": prefix},
        Classify.name: {"allowed": None},
        Summarize.name: {"allowed": None},
        Complete.name: {"allowed": None},
        GenerateImage.name: {},
    }
    if is_chinese(tokenizer):
        tasks[Caption.name]["prompt"] = tasks[Classify.name]["prompt"] = caption.PROMPT_CHINESE
        tasks[Ground.name]["prompt"] = ground.PROMPT_CHINESE
        tasks[Summarize.name]["prompt"] = summarize.PROMPT_CHINESE
    return tasks


def load_checkpoint(checkpoint: Checkpoint, tokenizer: Tokenizer | None = None) -> VisionLanguageModel:
    """Build the model of a checkpoint, in float32 and evaluation mode.

    Args:
        checkpoint: from `read_checkpoint`.
        tokenizer: the model's vocabulary. Where the file has fewer ids, random rows are appended to the embedding, as
            the original does; None: those of the file.

    Raises:
        ModelError: tensors are missing, unexpected or misshapen (it names the first), or the vocabulary is of another
            model.
    """
    file = repr(str(checkpoint.file))
    embedding = _embedding(checkpoint, tokenizer)
    try:
        with torch.device("meta"):
            config = replace(checkpoint.settings.backbone, vocab_size=len(embedding))
            model = VisionLanguageModel(checkpoint.settings.tower, config)
    except (TypeError, ValueError, RuntimeError) as error:  # impossible sizes fail anywhere inside torch
        raise ModelError(f"{file} has settings of no model: {error}".splitlines()[0]) from None
    expected = model.state_dict()
    state = _standard_values(expected)
    missing = dict.fromkeys(name for name in expected if name not in state)
    for name, tensor in checkpoint.tensors.items():
        new = _known_name(name, file)
        if new is None:
            continue
        if new not in expected:
            raise ModelError(f"{file} holds {name}, which a model of its settings does not have")
        tensor = embedding if name == EMBEDDING else tensor
        if tensor.shape != expected[new].shape:
            shapes = f"{tuple(tensor.shape)}, its settings say {tuple(expected[new].shape)}"
            raise ModelError(f"{file}: {name} has shape {shapes}; it is damaged or of another model")
        if tensor.is_floating_point() and not tensor.is_meta and not tensor.isfinite().all():
            raise ModelError(f"{file}: {name} holds NaN or infinite values; take other weights")
        state[new] = tensor.to(expected[new].dtype)
        missing.pop(new, None)
    for name in [name for name in missing if "code_embed_norm" in name]:
        # without a norm of their own, codes have that of the words
        if (words := name.replace("code_embed_norm", "embed_norm")) in state:
            state[name] = state[words].clone()
            del missing[name]
    if missing:
        becomes = next(iter(missing))
        raise ModelError(f"{file} lacks the tensor that becomes {becomes}; it is damaged or of another model")
    # the tower here has the ordinary epsilon; what the file's has more is as good as variance
    if more := checkpoint.settings.batch_norm_eps - BATCH_NORM_EPS:
        state |= {name: value + more for name, value in state.items() if name.endswith("running_var")}
    model.load_state_dict(state, assign=True)
    return model.eval()


def _known_name(name: str, file: str) -> str | None:
    try:
        return rename(name)
    except KeyError:
        raise ModelError(f"{file} holds {name}, which no OFA model has; give an OFA checkpoint") from None


def _standard_values(expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Buffers that files may leave out: counts of batches, and statistics of frozen batch norms, which do nothing."""
    values = {"num_batches_tracked": 0.0, "running_mean": 0.0, "running_var": 1 - BATCH_NORM_EPS}
    return {
        name: torch.full(tensor.shape, value, dtype=tensor.dtype)
        for name, tensor in expected.items()
        for ending, value in values.items()
        if name.endswith(ending)
    }


def _embedding(checkpoint: Checkpoint, tokenizer: Tokenizer | None) -> Tensor:
    """The tied table of words, with a row for every id: `[vocab, dim]`."""
    file, dim = repr(str(checkpoint.file)), checkpoint.settings.backbone.dim
    table = checkpoint.tensors.get(EMBEDDING)
    if table is None:
        raise ModelError(f"{file} lacks {EMBEDDING}; give an OFA checkpoint")
    if table.shape[1:] != (dim,):
        shapes = f"{tuple(table.shape)}, its settings say (vocabulary, {dim})"
        raise ModelError(f"{file}: {EMBEDDING} has shape {shapes}; it is damaged or of another model")
    for name in COPIES:
        copy = checkpoint.tensors.get(name, table)
        same = copy.dtype == table.dtype and (copy.data_ptr() == table.data_ptr() or torch.equal(copy, table))
        if not same:
            raise ModelError(f"{file}: {name} differs from {EMBEDDING}; every OFA model shares them")
    if tokenizer is None or len(table) == tokenizer.vocab_size:
        return table
    if not tokenizer.mask_id < len(table) < tokenizer.vocab_size:
        raise ModelError(
            f"{file} has {len(table)} ids, the vocabulary {tokenizer.vocab_size}, {tokenizer.mask_id} of them words; "
            "give tokenizer= the vocabulary of this checkpoint"
        )
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(tokenizer.vocab_size - len(table), dim, generator=generator) * dim**-0.5
    return torch.cat([table.float(), rows])
