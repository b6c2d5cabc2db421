"""Find what a phrase names in a photo."""

from typing import Any, ClassVar

from vlm.decoding.answer import Answer
from vlm.predictor import Photo
from vlm.tasks.base import Task
from vlm.tasks.boxes import LOCATION_PIXELS, Box, read_box
from vlm.tasks.text import clean_input

PROMPT = ' which region does the text " {} " describe?'
PROMPT_CHINESE = '这段文字" {} "描述的是哪个区域？'


class Ground(Task):
    """A photo and a phrase to a box in pixels of the photo, or None where the model generates none.

    The setting `box_pixels` is the side of the square in whose pixels locations count; None: that of the photo resized
    for the model.
    """

    name = "ground"
    inputs = ("phrase",)
    does = "find what a phrase names"
    defaults: ClassVar = {
        "prompt": PROMPT,
        "box_pixels": LOCATION_PIXELS,
        "beams": 5,
        "min_tokens": 4,
        "max_tokens": 4,
        "no_repeat_ngram": 3,
    }
    extra = ("box_pixels",)
    output = "locations"

    def source(self, photo: Photo | None, *inputs: Any) -> list[int]:
        (phrase,) = inputs
        return self.tokenizer.encode(self.prompt.format(clean_input("phrase", phrase)))

    def read(self, answers: list[Answer], photo: Photo | None) -> Box | None:
        assert photo is not None
        size = self.settings["box_pixels"] or self.image_size
        boxes = (read_box(self.tokenizer, answer.ids, *photo.size, size) for answer in answers)
        return next((box for box in boxes if box), None)

    def prediction(self, found: Box | None, *inputs: Any) -> list[float]:
        """The box; where there is none, an empty one, which is wrong everywhere."""
        return [float(x) for x in found or (0, 0, 0, 0)]
