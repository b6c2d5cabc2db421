"""Draw a picture of a text, as codes of the VQGAN that the model was trained with (OFA's text-to-image)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlm.decoding.answer import Answer
from vlm.errors import ArgumentError
from vlm.predictor import Photo, Predictor
from vlm.tasks.base import OFA_BASE, Task

PROMPT = " what is the complete image? caption: {}"
MAX_WORDS = 64  # of the text of a picture


class GenerateImage(Task):
    """A text to pictures, `int64[pictures, side, side]`: codes from 0 on, which `vlm.convert.vqgan` makes pixels of."""

    name = "generate_image"
    count_name = "num_images"
    does = "generate images from text"
    example_model = OFA_BASE
    defaults: ClassVar = {"prompt": PROMPT, "sample": True, "top_k": 256}
    photo = "none"
    inputs = ("text",)
    output = "codes"

    def source(self, photo: Photo | None, *inputs: Any) -> list[int]:
        """Ids of the instruction; text after the first 64 words is ignored.

        Raises:
            ArgumentError: the text contains no words.
        """
        (text,) = inputs
        read = text.split()[:MAX_WORDS]
        if not read:
            raise ArgumentError("there is nothing to draw; write some words")
        return self.tokenizer.encode(self.prompt.format(" ".join(read)))

    def run(
        self,
        predictor: Predictor,
        photos: Sequence[Photo] | None,
        *columns: Sequence[Any],
        num_images: int = 1,
        **options: Any,
    ) -> list[Tensor]:
        """Draw pictures of texts.

        Args:
            predictor: the model.
            photos: None.
            columns: the texts.
            num_images: pictures of each.
            options: as in `Task.run`.

        Raises:
            ArgumentError: a text without words, or options that exclude each other.
        """
        if not self.tokenizer.num_codes:
            raise ArgumentError(f"{predictor.name!r} has no image codes and cannot draw; load a model that has, of OFA")
        if num_images < 1:
            raise ArgumentError(f"num_images={num_images} is below 1; give 1 or more")
        cells = predictor.module.backbone.config.code_grid**2
        options = {**options, "min_tokens": cells, "max_tokens": cells}
        return super().run(predictor, photos, *columns, count=num_images, **options)

    def read(self, answers: list[Answer], photo: Photo | None) -> Tensor:
        codes = torch.tensor([answer.ids for answer in answers]) - self.tokenizer.code_start
        side = round(codes.shape[1] ** 0.5)
        return codes.view(-1, side, side)
