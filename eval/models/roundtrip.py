"""A base model that draws and captions: texts to pictures and back, and photos to texts and back."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from eval.benchmark import Item
from eval.models import VLMModel, pack
from eval.models.drawing import DrawingModel, seeded

if TYPE_CHECKING:
    from torch import Tensor


class Prepared(NamedTuple):
    """A photo before it is looked at, `float32[3, height, width]` each.

    Attributes:
        read: what the model reads.
        judged: what the judge's encoders read.
    """

    read: "Tensor"
    judged: "Tensor"


class RoundTripModel:
    """One set of weights in both directions.

    Args:
        name: of a model with a diffusion head.
        device: where it runs.

    Raises:
        ModelError: there is no such model.
        ArgumentError: it does not caption.
    """

    def __init__(self, name: str, device: str):
        self.drawing, self.reading = DrawingModel(name, device), VLMModel(name, device)
        self.name, self.weights, self.weights_of = name, self.drawing.weights, self.drawing.weights_of
        self.reading.model.task("caption")

    def prepare(self, image: Any) -> Prepared:
        from vlm.image import load_image

        photo = load_image(image)
        return Prepared(self.reading.prepare(photo), self.drawing.judge.image_transform(photo))

    def settings(self, task: str) -> dict[str, Any]:
        return self.drawing.settings("draw") | {"caption": self.reading.settings("caption")}

    def roundtrip_items(self, items: Sequence[Item], photos: Sequence[Prepared]) -> list[dict[str, str]]:
        """Draw what each item's question says and caption the drawing; caption the photo and draw the caption.

        Args:
            items: with a caption in `question`.
            photos: of the items, prepared.

        Returns:
            `recaption`, of the drawing; `caption`, of the photo; and the judge's vectors: `photo`, and `redrawn` of the
            picture that was drawn from `caption`.
        """
        captions: list[str] = self.reading.run("caption", [photo.read for photo in photos])
        drawn = self.drawing.pictures([item.question for item in items], seeded(items))
        recaptions: list[str] = self.reading.run("caption", [self.reading.prepare(picture) for picture in drawn])
        redrawn = [self.prepare(picture) for picture in self.drawing.pictures(captions, seeded(items))]
        vectors = [self._vectors(pictures) for pictures in (photos, redrawn)]
        return [
            {"caption": caption, "recaption": recaption, "photo": photo, "redrawn": picture}
            for caption, recaption, photo, picture in zip(captions, recaptions, *vectors, strict=True)
        ]

    def _vectors(self, pictures: Sequence[Prepared]) -> list[str]:
        import torch

        with torch.inference_mode():
            found = self.drawing.judge.encode_image(torch.stack([picture.judged for picture in pictures]))
        return [pack(row) for row in found.cpu().numpy()]
