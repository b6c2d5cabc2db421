"""Importable encoders: photos and sentences to vectors of one space, as ordinary `nn.Module`s.

`tiny`'s own pair, any open_clip pair and any timm image model answer to the same calls.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from vlm.data.stream import ordered_map
from vlm.encoders.folding import fold_batch_norms
from vlm.errors import ArgumentError, ModelError, check_list
from vlm.files.digest import weights_sha256
from vlm.image import ImageSource, check_photos, load_image
from vlm.tokenizer import check_unicode

AT_ONCE = 32  # photos or sentences of a list that go through the network together
FOLDING_TOLERANCE = 1e-4  # on each number of a vector of unit length


class Encoders(nn.Module):
    """An image encoder, and a text encoder where the model has one.

    Attributes:
        name: what it was loaded by.
        dim: length of the vectors.
        image_transform: an RGB picture to `float32[3, height, width]`.
        logit_scale: logarithm of the factor on cosines that the pair was trained with; None without a text encoder.
    """

    logit_scale: Tensor | None

    def __init__(self, name: str, dim: int, image_transform: Callable[[Image.Image], Tensor]):
        super().__init__()
        self.name, self.dim, self.image_transform = name, dim, image_transform
        self._digest: str | None = None  # of the weights as loaded, once they have been changed for speed

    def image_vectors(self, pixels: Tensor) -> Tensor:
        """`float32[batch, 3, height, width]` to `[batch, dim]`, of any length."""
        raise AssertionError("each kind has its own")

    def text_vectors(self, ids: Tensor) -> Tensor:
        """`int64[batch, tokens]` from `tokenize` to `[batch, dim]`, of any length."""
        raise ArgumentError(f"{self.name!r} reads photos only; load a pair such as 'tiny' to encode text")

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Sentences to `int64[batch, tokens]`.

        Raises:
            ArgumentError: the model has no text encoder, `texts` is one string, or one of them is not text.
        """
        check_list("texts", texts)
        return self.token_ids([check_unicode(text) for text in texts])

    def token_ids(self, texts: list[str]) -> Tensor:
        """What `tokenize` makes of texts that were checked."""
        raise ArgumentError(f"{self.name!r} reads photos only; load a pair such as 'tiny' to encode text")

    def knows(self, text: str) -> bool:
        """Whether the tokenizer knows any part of a text, or a sign of its script."""
        return True

    def patch_embeddings(self, images: Tensor | Sequence[ImageSource]) -> Tensor:
        """The features that the backbone reads, `[batch, patches, channels]`."""
        raise AssertionError("each kind has its own")

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def weights_sha256(self) -> str:
        """Digest of the weights by name, type, shape and value, in hexadecimal: equal weights have an equal one.

        `for_inference` leaves it as it was, so that an index goes on knowing its model.
        """
        return self._digest or weights_sha256(self)

    def pixels(self, images: Tensor | Sequence[ImageSource]) -> Tensor:
        """Photos in any form, or a batch that is already prepared, to `float32[batch, 3, height, width]`.

        Raises:
            ImageError: a photo cannot be used.
        """
        if not isinstance(images, Tensor):
            check_photos(images)
            if not len(images):
                raise ArgumentError("there are no photos; give one or more")
            images = torch.stack([self.image_transform(load_image(image)) for image in images])
        elif images.ndim != 4 or images.shape[1] != 3:
            raise ArgumentError(f"prepared photos of shape {tuple(images.shape)}; give [batch, 3, height, width]")
        elif not images.is_floating_point():
            raise ArgumentError(f"prepared photos of {images.dtype}; give float32, as image_transform makes them")
        like = next(self.parameters())
        # the order in memory that convolutions are fastest in, on CPUs as on GPUs
        return images.to(like.device, like.dtype, memory_format=torch.channels_last)

    def encode_image(self, images: Tensor | Sequence[ImageSource]) -> Tensor:
        """Photos to `[batch, dim]`, unit length.

        Under `torch.no_grad()` a list may be of any length. Where gradients are wanted, a list goes through the network
        in parts, whose activations are computed again for the backward pass.

        Args:
            images: `float32[batch, 3, height, width]` made by `image_transform`, or a list of paths, bytes, pictures.

        Raises:
            ImageError: a photo cannot be used.
            ArgumentError: `images` is one photo.
        """
        if isinstance(images, Tensor):
            return self._unit(self.image_vectors(self.pixels(images)))
        check_photos(images)
        images = list(images)
        return self._in_parts(lambda part: self._unit(self.image_vectors(part)), self.pixels, images)

    def encode_text(self, texts: Tensor | Sequence[str]) -> Tensor:
        """Sentences, or what `tokenize` made of them, to `[batch, dim]`, unit length; long lists as in `encode_image`.

        Raises:
            ArgumentError: the model has no text encoder, or `texts` is one string, or holds something else.
        """
        if isinstance(texts, Tensor):
            wrong = texts.ndim != 2 or texts.is_floating_point()
            # an exported or compiled network cannot ask for numbers while it is traced
            if wrong or (not torch.compiler.is_compiling() and (not texts.numel() or bool(texts.min() < 0))):
                raise ArgumentError(
                    f"ids of {texts.dtype} and shape {tuple(texts.shape)}; give int64[batch, tokens] made by tokenize"
                )
            return self._unit(self.text_vectors(texts.to(self.device)))
        check_list("texts", texts)
        texts = list(texts)

        def prepare(part: Sequence[str]) -> Tensor:
            return self.tokenize(part).to(self.device)

        return self._in_parts(lambda ids: self._unit(self.text_vectors(ids)), prepare, texts)

    def _unit(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=-1)

    def _in_parts(
        self, encode: Callable[[Tensor], Tensor], prepare: Callable[[Sequence[Any]], Tensor], inputs: Sequence[Any]
    ) -> Tensor:
        """Encode a list of photos or sentences, so that its length does not decide how much memory it takes."""
        like = next(self.parameters())
        if not len(inputs):
            return torch.zeros(0, self.dim, device=like.device, dtype=like.dtype)
        if self.training or len(inputs) <= AT_ONCE:  # batch norms in training read the whole batch
            return encode(prepare(inputs))
        parts = (prepare(inputs[first : first + AT_ONCE]) for first in range(0, len(inputs), AT_ONCE))
        if torch.is_grad_enabled():
            return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in parts])
        return torch.cat([encode(part) for part in parts])

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Image features, text features and the factor on their cosines, as open_clip's models return them."""
        scale = None if self.logit_scale is None else self.logit_scale.exp()
        return self.encode_image(images), self.encode_text(ids), scale

    @torch.no_grad()
    def for_inference(self) -> "Encoders":
        """Make the image encoder faster, in place: batch norms become part of the convolutions before them.

        Vectors stay the same but for rounding. The weights change their names and are no longer those to train or save.

        Raises:
            ModelError: the vectors change, as where the weights are no longer float32.
        """
        self.eval()
        digest, example = self.weights_sha256(), self.pixels([Image.radial_gradient("L")])
        before = self.encode_image(example)
        fold_batch_norms(self, lambda: self.image_vectors(example))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        change = (self.encode_image(example) - before).abs().max()
        if not change <= FOLDING_TOLERANCE:
            raise ModelError(
                f"{self.name!r} gives other vectors (by {change:.1e}) with its batch norms folded; "
                "load it again, and use it without for_inference or before its weights leave float32"
            )
        self._digest = digest
        return self

    @torch.no_grad()  # not inference_mode: a head may be trained on the features
    def encode(
        self, inputs: Sequence[str] | Sequence[ImageSource], batch_size: int = 32, show_progress_bar: bool = False
    ) -> Tensor:
        """Many sentences or many photos to `float32[inputs, dim]` on the CPU; photos are decoded on threads.

        A `str` is a sentence; a photo on disk is given as a `pathlib.Path`.

        Raises:
            ImageError: a photo cannot be used.
            ArgumentError: `inputs` mixes both, or is not a list.
        """
        if isinstance(inputs, str):
            raise ArgumentError("encode takes a list; put the one sentence or photo that you have into a list")
        check_photos(inputs)
        inputs = list(inputs)
        if not isinstance(batch_size, int):
            raise ArgumentError(f"batch_size={batch_size!r} is not a whole number; give 1 or more")
        if batch_size < 1:
            raise ArgumentError(f"batch_size={batch_size} is below 1; give 1 or more")
        if not inputs:
            return torch.zeros(0, self.dim)
        kinds = {isinstance(item, str) for item in inputs}
        if len(kinds) > 1:
            raise ArgumentError("encode takes sentences (str) or photos (pathlib.Path, bytes), not both at once")
        bar = tqdm(total=len(inputs), disable=not show_progress_bar, unit="text" if True in kinds else "photo")
        found = []
        with bar:
            for part in self._batches(inputs, batch_size, True in kinds):
                features = self.encode_text(part) if True in kinds else self.encode_image(part)
                found.append(features.float().cpu())
                bar.update(len(part))
        return torch.cat(found)

    def _batches(self, inputs: Sequence[Any], size: int, text: bool) -> Iterator[Any]:
        if text:
            yield from (inputs[i : i + size] for i in range(0, len(inputs), size))
            return
        ready = ordered_map(lambda image: self.image_transform(load_image(image)), inputs, ahead=2 * size)
        part: list[Tensor] = []
        for pixels in ready:
            part.append(pixels)
            if len(part) == size:
                yield torch.stack(part)
                part = []
        if part:
            yield torch.stack(part)
