"""Pairs of the open_clip package."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from vlm.encoders.base import Encoders
from vlm.errors import ModelError
from vlm.image import ImageSource


class OpenCLIPEncoders(Encoders):
    """A pair of the open_clip package."""

    def __init__(self, name: str, model: nn.Module, tokenizer: Callable[..., Tensor], image_transform):
        features = model.encode_text(tokenizer([""]))  # pyright: ignore[reportCallIssue]
        super().__init__(name, features.shape[-1], image_transform)
        self.model, self.tokenizer = model, tokenizer

    @property
    def logit_scale(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.model.logit_scale  # pyright: ignore[reportReturnType]

    def image_vectors(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)  # pyright: ignore[reportCallIssue]

    def text_vectors(self, ids: Tensor) -> Tensor:
        return self.model.encode_text(ids)  # pyright: ignore[reportCallIssue]

    def token_ids(self, texts: list[str]) -> Tensor:
        return self.tokenizer(texts)

    def patch_embeddings(self, images: Tensor | Sequence[ImageSource]) -> Tensor:
        visual: Any = self.model.visual
        found = visual.forward_intermediates(
            self.pixels(images), indices=1, normalize_intermediates=True, intermediates_only=True
        )
        return found["image_intermediates"][-1].flatten(2).transpose(1, 2)  # from [batch, channels, height, width]


def load_open_clip(name: str, rest: str) -> Encoders:
    try:
        import open_clip
    except ImportError:
        raise ModelError(f'{name!r} needs open_clip; pip install "vlm-foundation[open-clip]"') from None
    architecture, _, weights = (rest, "", None) if ":" in rest else rest.partition("/")
    if weights == "":
        raise ModelError(f"{name!r} names no weights; give open_clip:ARCHITECTURE/TAG or open_clip:ARCHITECTURE/FILE")
    if ":" not in architecture and architecture not in (known := open_clip.list_models()):
        close = get_close_matches(architecture, known, n=3)
        remedy = f"did you mean {' or '.join(close)}?" if close else "open_clip.list_models() shows them"
        raise ModelError(f"{name!r}: open_clip has no architecture {architecture!r}; {remedy}")
    made: Any = open_clip.create_model_from_pretrained(architecture, pretrained=weights)
    model, transform = made
    return OpenCLIPEncoders(name, model, open_clip.get_tokenizer(architecture), transform)
