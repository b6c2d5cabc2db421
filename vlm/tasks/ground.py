"""Find what a phrase names in a photo."""

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from vlm.data.shards import Sample
from vlm.decoding.answer import Answer
from vlm.predictor import Photo
from vlm.tasks.base import OFA_BASE, Task, TrainingExample, choose
from vlm.tasks.boxes import LOCATION_PIXELS, Box, box_locations, phrases_with_box, read_box
from vlm.tasks.text import clean_input

PROMPT = ' which region does the text " {} " describe?'
NUM_CHECKS = 4  # phrases of a photo that validation asks for
PROMPT_CHINESE = '这段文字" {} "描述的是哪个区域？'


class Ground(Task):
    """A photo and a phrase to a box in pixels of the photo, or None where the model generates none.

    The setting `box_pixels` is the side of the square in whose pixels locations count; None: that of the photo resized
    for the model.
    """

    name = "ground"
    inputs = ("phrase",)
    does = "find what a phrase names"
    example_model = OFA_BASE
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
    metric = "boxes"

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

    @classmethod
    def in_sample(cls, sample: Sample) -> bool:
        return bool(phrases_with_box(sample))

    def examples(self, sample: Sample, rng: random.Random, count: int) -> list[TrainingExample]:
        size = self.settings["box_pixels"] or self.image_size
        return [
            self.example(self.source(None, phrase), box_locations(self.tokenizer, box, 1, 1, size))
            for phrase, box in choose(phrases_with_box(sample), count, rng)
        ]

    def checks(self, sample: Sample) -> Iterator[tuple[tuple[Any, ...], Sequence[str]]]:
        for phrase, box in phrases_with_box(sample)[:NUM_CHECKS]:
            yield (phrase,), [json.dumps(box)]
