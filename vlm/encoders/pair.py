"""The project's own pair: the tower that the backbone reads from, and a text tower."""

from collections.abc import Sequence

import tokenizers
import torch
from torch import Tensor

from vlm.encoders.base import Encoders
from vlm.errors import ArgumentError, ModelError
from vlm.files.bundle import Bundle
from vlm.image import ImageSource, ImageTransform
from vlm.models.labels import LabelHead
from vlm.models.pair import ContrastivePair
from vlm.models.towers import Tower


class PairEncoders(Encoders):
    """The project's own pair: the tower that the backbone reads from, and a text tower.

    Attributes:
        labels: the tower's own labels; None: it has none.
    """

    def __init__(
        self,
        name: str,
        tower: Tower,
        pair: ContrastivePair,
        tokenizer: tokenizers.Tokenizer,
        image_transform: ImageTransform,
        labels: LabelHead | None = None,
    ):
        super().__init__(name, pair.config.dim, image_transform)
        self.labels = labels
        self.tower, self.pair, self.tokenizer = tower, pair, tokenizer

    @property
    def logit_scale(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.pair.logit_scale

    def image_vectors(self, pixels: Tensor) -> Tensor:
        patches = self.tower(pixels).flatten(1, 2)
        return self.pair.image(patches.to(self.pair.logit_scale.dtype))  # the tower is the backbone's too

    def text_vectors(self, ids: Tensor) -> Tensor:
        return self.pair.text_proj(self.pair.text(ids))

    @torch.no_grad()
    def own_labels(self, pixels: Tensor) -> Tensor:
        """Log-probabilities of the tower's own labels, `float32[batch, labels]` on the CPU.

        Raises:
            ArgumentError: it has none.
        """
        if self.labels is None:
            raise ArgumentError(f"{self.name!r} knows no labels of its own; give labels to choose from")
        return self.labels.log_probabilities(self.tower.pool(self.tower(self.pixels(pixels))))

    def patch_embeddings(self, images: Tensor | Sequence[ImageSource]) -> Tensor:
        return self.tower(self.pixels(images)).flatten(1, 2)

    def knows(self, text: str) -> bool:
        unknown = self.tokenizer.token_to_id("[UNK]")
        return any(i != unknown for i in self.tokenizer.encode(text, add_special_tokens=False).ids)

    def token_ids(self, texts: list[str]) -> Tensor:
        longest = self.pair.config.text.max_positions
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        rows = [[*row[: longest - 1], row[-1]] if len(row) > longest else row for row in rows]  # the end token stays
        width = max(map(len, rows), default=0)
        return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long)


def pair_encoders(bundle: Bundle) -> PairEncoders:
    """The encoders of a loaded model.

    Raises:
        ModelError: the model has none.
    """
    if bundle.pair is None or bundle.pair_tokenizer is None:
        raise ModelError(
            f"{bundle.name!r} has no text encoder; choose a model that has one, such as tiny or "
            "open_clip:ViT-B-32/laion2b_s34b_b79k"
        )
    return PairEncoders(
        bundle.name, bundle.module.tower, bundle.pair, bundle.pair_tokenizer, bundle.transform, bundle.labels
    )
