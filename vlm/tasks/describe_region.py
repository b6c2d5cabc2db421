"""Describe a region of a photo."""

from typing import Any, ClassVar

from vlm.predictor import Photo
from vlm.tasks.base import SENTENCE_SEARCH, Task
from vlm.tasks.boxes import LOCATION_PIXELS, box_locations, clip_box

PROMPT = "  what does the region describe? region:"  # the four locations follow


class DescribeRegion(Task):
    """A photo and a box, in pixels of the photo, to sentences, the best first.

    The setting `box_pixels` is that of `vlm.tasks.ground`.
    """

    name = "describe_region"
    inputs = ("box",)
    does = "describe regions"
    defaults: ClassVar = {"prompt": PROMPT, "box_pixels": LOCATION_PIXELS, **SENTENCE_SEARCH}
    extra = ("box_pixels",)

    def source(self, photo: Photo | None, *inputs: Any) -> list[int]:
        assert photo is not None
        (box,) = inputs
        size = self.settings["box_pixels"] or self.image_size
        inside = clip_box(box, *photo.size)
        return self.tokenizer.encode(self.prompt) + box_locations(self.tokenizer, inside, *photo.size, size)
