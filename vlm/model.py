"""The object that `vlm.load` returns: photos in, sentences out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm import hub, prompt
from vlm.errors import ArgumentError, ImageError
from vlm.generation import GenerationConfig, generate
from vlm.image import MAX_PIXELS, ImageSource, ImageTransform, load_image
from vlm.models.vision_language import VisionLanguageModel
from vlm.threads import ordered_map
from vlm.tokenizer import BOS, EOS, Tokenizer


@dataclass(frozen=True)
class Caption:
    """A sentence about a photo.

    Attributes:
        text: the sentence.
        score: mean log-probability of its tokens, divided by the length to the power of the length penalty.
    """

    text: str
    score: float

    def __str__(self) -> str:
        return self.text


class Model:
    """A vision-language model with its tokenizer and image transform.

    Attributes:
        module: the networks, an ordinary `nn.Module` in evaluation mode.
        tokenizer: text to ids.
        transform: a photo to what the tower reads.
        name: what it was loaded by.
        caption_settings: the instruction for captions (`prompt`), and the fields of `GenerationConfig` they are
            searched with.
    """

    def __init__(
        self,
        module: VisionLanguageModel,
        tokenizer: Tokenizer,
        transform: ImageTransform,
        name: str = "",
        caption_settings: Mapping[str, Any] | None = None,
    ):
        self.module, self.tokenizer, self.transform, self.name = module, tokenizer, transform, name
        standard = {"prompt": prompt.CAPTION, **prompt.CAPTION_OPTIONS, "allowed": tokenizer.text_range}
        self.caption_settings: dict[str, Any] = {**standard, **(caption_settings or {})}

    @property
    def device(self) -> torch.device:
        return self.module.backbone.embed.weight.device

    def to(self, device: str | torch.device) -> "Model":
        """Move the networks.

        Raises:
            ArgumentError: torch knows no such device, or it is not there.
        """
        try:
            self.module.to(device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ArgumentError(f"device {str(device)!r} cannot be used: {reason}; try cpu, cuda or mps") from None
        return self

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

    @torch.inference_mode()
    def caption_patches(
        self, patches: Tensor, *, num_captions: int = 1, seed: int | None = None, **options
    ) -> list[list[Caption]]:
        """Describe photos by their patch features.

        Args:
            patches: from `encode_images`.
            num_captions: sentences a photo, the best first.
            seed: of the random numbers, where `sample` is set.
            options: fields of `GenerationConfig` that shall differ from `caption_settings`.

        Raises:
            ArgumentError: options that exclude each other.
        """
        settings = dict(self.caption_settings)
        ids = torch.tensor([BOS, *self.tokenizer.encode(settings.pop("prompt")), EOS], device=self.device)
        config = caption_config(num_captions, settings, **options)
        encoded = self.module.backbone.encode(ids.expand(len(patches), -1), patches)
        generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        found = generate(self.module.backbone, encoded, config, generator=generator)
        return [
            [Caption(self.tokenizer.decode(h.ids).strip(), h.score) for h in hypotheses[:num_captions]]
            for hypotheses in found
        ]

    def caption_each(
        self,
        images: Sequence[ImageSource],
        *,
        num_captions: int = 1,
        batch_size: int = 16,
        max_pixels: int = MAX_PIXELS,
        **options,
    ) -> Iterator[list[Caption] | ImageError]:
        """Describe many photos; one that cannot be used is lost alone.

        Photos are decoded on threads while the networks read the batch before.

        Args:
            images: paths, bytes, file objects, PIL images, arrays or tensors, of any sizes.
            num_captions: sentences a photo.
            batch_size: photos that go through the networks together; it does not change the sentences.
            max_pixels: larger photos are refused.
            options: see `caption_patches`.

        Yields:
            For each photo, in order, its captions, the best first, or what is wrong with it.

        Raises:
            ArgumentError: options that exclude each other.
        """
        if batch_size < 1:
            raise ArgumentError(f"batch_size={batch_size} is below 1; give 1 or more")

        def prepare(image: ImageSource) -> Tensor | ImageError:
            try:
                return self.prepare(image, max_pixels=max_pixels)
            except ImageError as error:
                return error

        prepared = ordered_map(prepare, images, ahead=2 * batch_size)
        while part := list(islice(prepared, batch_size)):
            good = [image for image in part if not isinstance(image, ImageError)]
            found: Iterator[list[Caption]] = iter(())
            if good:
                patches = self.encode_images(torch.stack(good))
                found = iter(self.caption_patches(patches, num_captions=num_captions, **options))
            yield from (image if isinstance(image, ImageError) else next(found) for image in part)

    def captions(self, images: Sequence[ImageSource], **options) -> list[list[Caption]]:
        """Describe photos; arguments as in `caption_each`.

        Raises:
            ImageError: a photo cannot be used.
            ArgumentError: options that exclude each other.
        """
        found: list[list[Caption]] = []
        for captions in self.caption_each(images, **options):
            if isinstance(captions, ImageError):
                raise captions
            found.append(captions)
        return found

    def caption(self, image: ImageSource, **options) -> str:
        """Describe one photo in one sentence; arguments and errors as in `captions`."""
        return self.captions([image], **options)[0][0].text


def caption_config(num_captions: int, settings: Mapping[str, Any], **options) -> GenerationConfig:
    """How captions are searched: a model's `settings`, changed by `options`.

    Raises:
        ArgumentError: an unknown option, or more captions than beams.
    """
    settings = {**settings, **options}
    if settings.get("sample") and "beams" not in options:
        settings["beams"] = num_captions  # each is a draw of its own
    try:
        config = GenerationConfig(**settings)
    except TypeError as error:
        raise ArgumentError(f"captions know no such option: {str(error).split('argument ')[-1]}") from None
    if not 1 <= num_captions <= config.beams:
        raise ArgumentError(
            f"num_captions={num_captions} with beams={config.beams}; give 1 to {config.beams}, or more beams"
        )
    return config


def load(name: str = "tiny", *, device: str | torch.device = "cpu", tokenizer: str | Path | None = None) -> Model:
    """Load a model.

    Args:
        name: a bundled name (`tiny`), a local folder, or an id of the Hugging Face hub. With `ofa:` in front, a
            checkpoint of OFA: fairseq's `.pt` file, a folder of its port to transformers, or a hub id of that.
        device: where it runs.
        tokenizer: of an OFA checkpoint, the folder or hub id of its vocabulary; None: it lies beside the checkpoint.

    Raises:
        ModelError: there is no such model, or its files cannot be used.
        ArgumentError: the device cannot be used, or `tokenizer` is given for a model that has its own.
    """
    if name.startswith("ofa:"):
        from vlm.convert.ofa import caption_settings, load_ofa

        module, words, transform = load_ofa(name.removeprefix("ofa:"), tokenizer=tokenizer)
        return Model(module, words, transform, name, caption_settings(words)).to(device)
    if tokenizer is not None:
        raise ArgumentError(f"tokenizer={str(tokenizer)!r} is for names that begin with ofa:; {name!r} has its own")
    folder = hub.resolve(name)
    return Model(*hub.load_model(folder), name, hub.caption_settings(folder)).to(device)
