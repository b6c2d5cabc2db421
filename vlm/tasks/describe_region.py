"""Describe a region of a photo."""

import random
from typing import Any, ClassVar

import torch

from vlm.data.shards import Sample
from vlm.predictor import Photo
from vlm.tasks.base import OFA_BASE, SENTENCE_SEARCH, Task, TrainingExample, choose
from vlm.tasks.boxes import LOCATION_PIXELS, box_locations, clip_box, phrases_with_box

PROMPT = "  what does the region describe? region:"  # the four locations follow


class DescribeRegion(Task):
    """A photo and a box, in pixels of the photo, to sentences, the best first.

    The setting `box_pixels` is that of `vlm.tasks.ground`.
    """

    name = "describe_region"
    inputs = ("box",)
    does = "describe regions"
    example_model = OFA_BASE
    defaults: ClassVar = {"prompt": PROMPT, "box_pixels": LOCATION_PIXELS, **SENTENCE_SEARCH}
    extra = ("box_pixels",)

    def source(self, photo: Photo | None, *inputs: Any) -> list[int]:
        assert photo is not None
        (box,) = inputs
        size = self.settings["box_pixels"] or self.image_size
        inside = clip_box(box, *photo.size)
        return self.tokenizer.encode(self.prompt) + box_locations(self.tokenizer, inside, *photo.size, size)

    @classmethod
    def in_sample(cls, sample: Sample) -> bool:
        return bool(phrases_with_box(sample))

    def examples(self, sample: Sample, rng: random.Random, count: int) -> list[TrainingExample]:
        unit = Photo(torch.empty(0), (1, 1))  # boxes are fractions
        chosen = choose(phrases_with_box(sample), count, rng)
        texts = self.tokenizer.encode_batch([f" {text}" for text, _ in chosen]) if chosen else []
        return [
            self.example(self.source(unit, box), ids[: self.rules.max_tokens])
            for (_, box), ids in zip(chosen, texts, strict=True)
        ]
