"""What every model with a tower does with photos: prepare them, encode them once, ask many of them in batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from vlm.asking import Asker, each_photo
from vlm.errors import ImageError
from vlm.image import MAX_PIXELS, ImageSource, ImageTransform, load_image
from vlm.models.vision_language import VisionLanguageModel
from vlm.tokenizer import Tokenizer

Result = TypeVar("Result")


@dataclass(frozen=True)
class Photo:
    """A photo that was encoded once, to be asked as often as wanted.

    Attributes:
        patches: features of `Model.encode_images`, `[height, width, patch_dim]`.
        size: width and height in pixels.
    """

    patches: Tensor
    size: tuple[int, int]


Picture: TypeAlias = "ImageSource | Photo"


class Looker(Asker):
    """An `Asker` that is asked about photos.

    Attributes:
        transform: a photo to what the tower reads.
    """

    def __init__(
        self,
        module: VisionLanguageModel,
        tokenizer: Tokenizer,
        transform: ImageTransform,
        name: str,
        tasks: Mapping[str, Mapping[str, Any]] | None,
    ):
        super().__init__(module, tokenizer, name, tasks)
        self.transform = transform

    def prepare(self, image: ImageSource, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Tensor:
        """Load one photo for `encode_images`: `float32[3, size, size]`.

        Raises:
            ImageError: the photo cannot be used.
        """
        return self.transform(load_image(image, name=name, max_pixels=max_pixels))

    @torch.inference_mode()
    def encode_images(self, images: Tensor) -> Tensor:
        """Patch features of prepared photos, to be asked as often as wanted.

        Args:
            images: `float32[batch, 3, size, size]`.

        Returns:
            `float32[batch, height, width, patch_dim]`.
        """
        return self.module.tower(images.to(self.device, memory_format=torch.channels_last))

    def look(self, images: Sequence[Picture], *, max_pixels: int = MAX_PIXELS) -> list[Photo]:
        """Encode photos together, the same object once; those that are a `Photo` stay as they are.

        Raises:
            ImageError: a photo cannot be used.
        """
        distinct = {id(image): image for image in images}
        photos = self._encode([self._prepare(image, max_pixels) for image in distinct.values()])
        looked = dict(zip(distinct, photos, strict=True))
        return [looked[id(image)] for image in images]

    def _prepare(self, image: Picture, max_pixels: int) -> Photo | tuple[Tensor, tuple[int, int]]:
        if isinstance(image, Photo):
            return image
        picture = load_image(image, max_pixels=max_pixels)
        return self.transform(picture), picture.size

    def _encode(self, prepared: Sequence[Photo | tuple[Tensor, tuple[int, int]]]) -> list[Photo]:
        new = [item for item in prepared if not isinstance(item, Photo)]
        grids = iter(self.encode_images(torch.stack([pixels for pixels, _ in new])) if new else ())
        return [item if isinstance(item, Photo) else Photo(next(grids), item[1]) for item in prepared]

    def ask_each(
        self,
        images: Sequence[Picture],
        ask: Callable[[list[Photo]], Iterable[Result]],
        *,
        batch_size: int = 16,
        max_pixels: int = MAX_PIXELS,
    ) -> Iterator[Result | ImageError]:
        """Ask many photos; one that cannot be used is lost alone.

        Photos are decoded on threads while the networks read the batch before.

        Args:
            images: paths, bytes, file objects, PIL images, arrays or tensors, of any sizes.
            ask: photos to one result each, such as `lambda photos: model.answers(photos, ["how many?"] * len(photos))`.
            batch_size: photos that go through the networks together; it does not change what is said of them.
            max_pixels: larger photos are refused.

        Yields:
            For each photo, in order, its result, or what is wrong with it.
        """
        yield from each_photo(
            images,
            lambda image: self._prepare(image, max_pixels),
            lambda prepared: ask(self._encode(prepared)),
            batch_size,
        )
