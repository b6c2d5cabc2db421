"""What the denoiser is told: a prompt as token states and as one vector, both made by the base model."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from vlm.encoders.pair import PairEncoders, pair_encoders
from vlm.errors import ArgumentError, ModelError
from vlm.files.atomic import write_text
from vlm.files.bundle import Bundle, load_folder, save_bundle
from vlm.files.hub import FILES, LABEL_FILES, PAIR_FILES
from vlm.image import ImageSource
from vlm.models.config import PAD
from vlm.models.pair import PAD as PAIR_PAD
from vlm.predictor import encoder_ids, pad

States = Literal["pair", "backbone"]
SETTINGS = "text.json"  # beside the files of the base model
MAX_TOKENS = 128  # of a prompt


@dataclass(frozen=True)
class TextStates:
    """Prompts as the denoiser reads them.

    Attributes:
        states: `[batch, tokens, dim]`.
        mask: `bool[batch, tokens]`, True at real tokens.
        pooled: `[batch, pooled dim]`.
    """

    states: Tensor
    mask: Tensor
    pooled: Tensor


class TextEncoder(ModelMixin, ConfigMixin):
    """The base model as the text encoder of a pipeline.

    Args:
        bundle: the base model with its pair of encoders.
        states: token states of the pair's text tower, or the backbone's encoder states of the prompt.
        max_tokens: longest prompt, in tokens.

    Raises:
        ModelError: the base has no pair.
    """

    config_name = SETTINGS

    def __init__(self, bundle: Bundle, states: States = "pair", max_tokens: int = MAX_TOKENS):
        super().__init__()
        if states not in get_args(States):
            raise ModelError(f"states={states!r} is unknown; choose {' or '.join(get_args(States))}")
        self.register_to_config(states=states, max_tokens=max_tokens)
        self.bundle, self.states, self.max_tokens = bundle, states, max_tokens
        self.encoders: PairEncoders = pair_encoders(bundle)
        assert bundle.pair is not None
        self.pair, self.backbone = bundle.pair, bundle.module.backbone

    @property
    def dim(self) -> int:
        """Width of the token states."""
        return self.pair.config.text.dim if self.states == "pair" else self.backbone.config.dim

    @property
    def pooled_dim(self) -> int:
        """Length of the pooled vector."""
        return self.pair.config.dim

    @property
    def limit(self) -> int:
        """Longest prompt, in tokens."""
        pair = self.pair.config.text.max_positions
        return min(self.max_tokens, pair if self.states == "pair" else self.backbone.config.max_source_positions)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if self.states == "backbone":
            return [encoder_ids(ids) for ids in self.bundle.tokenizer.encode_batch([f" {text}" for text in texts])]
        assert self.bundle.pair_tokenizer is not None
        return [encoding.ids for encoding in self.bundle.pair_tokenizer.encode_batch(list(texts))]

    def fits(self, text: str) -> bool:
        """Whether a prompt is short enough."""
        return len(self._ids([text])[0]) <= self.limit

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of prompts, with the tokens that stand around them.

        Raises:
            ArgumentError: a prompt is too long.
        """
        rows, limit = self._ids(texts), self.limit
        for text, row in zip(texts, rows, strict=True):
            if len(row) > limit:
                raise ArgumentError(
                    f"the prompt {text[:40]!r}... takes {len(row)} tokens, of at most {limit}; shorten it"
                )
        return rows

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextStates:
        """Prompts to what the denoiser reads; `""` stands for no text.

        Raises:
            ArgumentError: a prompt is too long.
        """
        rows = self.token_ids(texts)
        pair_ids = self.encoders.tokenize(texts).to(self.device)
        if self.states == "pair":
            ids = pad(rows, PAIR_PAD).to(self.device)
            mask, states = ids != PAIR_PAD, self.pair.text.states(ids)
            pooled = self.pair.project_text(self.pair.text.mean(states, ids))
            return TextStates(states, mask, pooled)
        ids = pad(rows, PAD).to(self.device)
        return TextStates(self.backbone.encode(ids, None).states, ids != PAD, self.pair.encode_text(pair_ids))

    @torch.no_grad()
    def encode_image(self, images: Sequence[ImageSource]) -> Tensor:
        """Photos to what the denoiser reads in place of a pooled text, `[batch, pooled dim]`.

        Raises:
            ImageError: a photo cannot be used.
        """
        return self.encoders.encode_image(images)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:  # pyright: ignore
        """Write the whole base model, so that the folder stands by itself."""
        self.save_base(Path(save_directory))
        self.save_settings(Path(save_directory))

    def save_base(self, folder: Path) -> None:
        """Write the files of the base model alone."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.bundle.folder is None:
            save_bundle(folder, self.bundle)
        else:  # stored matrices are int8: copying keeps them as they are
            for name in (*FILES, *PAIR_FILES, *LABEL_FILES):
                if name not in LABEL_FILES or (self.bundle.folder / name).is_file():
                    shutil.copyfile(self.bundle.folder / name, folder / name)

    def save_settings(self, folder: Path) -> None:
        """Write what is not of the base model."""
        settings = {"_class_name": type(self).__name__, "states": self.states, "max_tokens": self.max_tokens}
        write_text(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> "TextEncoder":
        """Read what `save_pretrained` wrote; of the options of diffusers, `torch_dtype` has an effect.

        Raises:
            ModelError: a file is missing, damaged or of another model.
        """
        folder = Path(pretrained_model_name_or_path)
        if subfolder := options.get("subfolder"):
            folder /= subfolder
        model = cls(load_folder(folder, str(folder), with_pair=True), **read_settings(folder / SETTINGS))
        if isinstance(dtype := options.get("torch_dtype"), torch.dtype):
            torch.nn.Module.to(model, dtype)  # diffusers' own `to` warns for nothing
        return model


def read_settings(file: Path) -> dict[str, Any]:
    """`states` and `max_tokens` of a text encoder, from JSON.

    Raises:
        ModelError: the file is missing or holds something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        settings = {"states": str(found["states"]), "max_tokens": int(found["max_tokens"])}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{str(file)!r} is not the file of a text encoder: {error}") from None
    return settings
