"""A text-to-image pipeline as the harness asks it: pictures of prompts, seen by the encoders of `tiny`."""

import inspect
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from eval.benchmark import Item
from eval.models import pack
from vlm.errors import ArgumentError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

JUDGE = "tiny"
BEST = 8  # pictures of which the best is kept, where that is measured
LEVELS = 4  # of red, green and blue each that colours are told apart by
WHITE = 236  # from here on in all three, a pixel is white ground


class Prepared(NamedTuple):
    """A picture before it is looked at.

    Attributes:
        pixels: what the judge's networks read, `float32[3, height, width]`.
        colours: see `colours_of`.
    """

    pixels: "Tensor"
    colours: "np.ndarray"


class Seen(NamedTuple):
    """Pictures as the judge sees them.

    Attributes:
        features: means of the tower's patch features, `float32[pictures, channels]`.
        vectors: the pair's, `float32[pictures, dim]`, unit length.
        colours: `float32[pictures, LEVELS ** 3]`, see `colours_of`.
    """

    features: "Tensor"
    vectors: "Tensor"
    colours: "np.ndarray"

    def packed(self, row: int) -> dict[str, str]:
        """One picture as JSON."""
        features, vector = self.features[row].numpy(), self.vectors[row].numpy()
        return {"features": pack(features), "vector": pack(vector), "colours": pack(self.colours[row])}


class DrawingModel:
    """A pipeline of `vlm.load_pipeline`, with the solver, steps and guidance that it draws with by default.

    Args:
        name: of the pipeline.
        device: where it runs.
    """

    def __init__(self, name: str, device: str):
        import vlm
        from vlm.diffusion.load import find_folder, weight_files
        from vlm.encoders.pair import PairEncoders
        from vlm.files.digest import files_sha256

        self.name, self.device = name, device
        self.pipeline = vlm.load_pipeline(name, device=device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.weights = files_sha256(weight_files(find_folder(name)))
        self.weights_of = "all *.safetensors but labels"
        judge = vlm.load_encoders(JUDGE, device=device)
        assert isinstance(judge, PairEncoders)
        self.judge = judge.eval()
        denoiser = getattr(self.pipeline, "denoiser", None)
        self.size = None if denoiser is None else denoiser.sizes.size

    def prepare(self, image: Any) -> Prepared:
        """A real photo, made as small as the drawn pictures are."""
        from PIL import ImageOps

        from vlm.image import load_image

        photo = load_image(image)
        side = min(photo.size) if self.size is None else self.size
        return self._prepared(ImageOps.fit(photo, (side, side)))

    def settings(self, task: str) -> dict[str, Any]:
        known = inspect.signature(type(self.pipeline).__call__).parameters
        steps = {name: known[name].default for name in ("num_inference_steps", "guidance_scale") if name in known}
        scheduler = {"scheduler": type(self.pipeline.scheduler).__name__, "size": self.size}
        return steps | scheduler | {"judge": JUDGE, "judge_sha256": self.judge.weights_sha256()}

    def draw_best_items(self, items: Sequence[Item], photos: Sequence[Prepared]) -> list[dict[str, Any]]:
        """As `draw_items`, of `BEST` pictures of each prompt the one whose vector is nearest to the prompt's."""
        return self.draw_items(items, photos, BEST)

    @torch.inference_mode()
    def draw_items(self, items: Sequence[Item], photos: Sequence[Prepared], best_of: int = 1) -> list[dict[str, Any]]:
        """Draw the question of each item that has one, with a seed that follows from its id, and look at all pictures.

        Args:
            items: with a prompt in `question`, or "" where only the photo counts.
            photos: the real photo of each, prepared.
            best_of: pictures of each prompt, of which one is kept.

        Returns:
            `real`, and where there is a prompt `drawn`, each as `Seen.packed`; `text`, the vector of the prompt; and
            `shapes`, see `eval.metrics.shapes.Found`, of the drawn picture.

        Raises:
            ArgumentError: the pipeline cannot draw a prompt.
        """
        from eval.metrics.shapes import find_shapes

        real = self._see(photos)
        found: list[dict[str, Any]] = [{"real": real.packed(row)} for row in range(len(items))]
        asked = [row for row, item in enumerate(items) if item.question]
        if not asked:
            return found
        prompts = [items[row].question for row in asked]
        texts = self.judge.encode_text(prompts).cpu()
        pictures = self._best(prompts, [items[row] for row in asked], texts, best_of)
        drawn = self._see([self._prepared(picture) for picture in pictures])
        for place, row in enumerate(asked):
            found[row] |= {"drawn": drawn.packed(place), "text": pack(texts[place].numpy())}
            found[row]["shapes"] = [asdict(thing) for thing in find_shapes(pictures[place])]
        return found

    def _best(
        self, prompts: Sequence[str], items: Sequence[Item], texts: "Tensor", best_of: int
    ) -> list["Image.Image"]:
        """A picture of each prompt, the best of several where these are wanted; `texts` are the prompts' vectors."""
        rounds = [self.pictures(prompts, seeded(items, number)) for number in range(best_of)]
        if best_of == 1:
            return rounds[0]
        vectors = torch.stack([self._see([self._prepared(one) for one in pictures]).vectors for pictures in rounds])
        chosen = (vectors * texts).sum(-1).argmax(0).tolist()  # of [rounds, prompts]
        return [rounds[number][row] for row, number in enumerate(chosen)]

    def pictures(self, prompts: Sequence[str], generators: "Sequence[torch.Generator]") -> list["Image.Image"]:
        """One picture for each prompt.

        Raises:
            ArgumentError: the pipeline cannot draw a prompt.
        """
        try:
            return self.pipeline(list(prompts), generator=list(generators)).images
        except (ValueError, RuntimeError, TypeError) as error:  # what pipelines of diffusers raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ArgumentError(f"model {self.name!r} cannot draw {prompts[0]!r}: {reason}") from None

    def _prepared(self, picture: "Image.Image") -> Prepared:
        return Prepared(self.judge.image_transform(picture), colours_of(picture))

    def _see(self, pictures: Sequence[Prepared]) -> Seen:
        pixels = self.judge.pixels(torch.stack([picture.pixels for picture in pictures]))
        grid = self.judge.tower(pixels)  # [batch, rows, columns, channels]
        vectors = torch.nn.functional.normalize(self.judge.pair.image(grid.flatten(1, 2)), dim=-1)
        colours = np.stack([picture.colours for picture in pictures])
        return Seen(self.judge.tower.pool(grid).float().cpu(), vectors.float().cpu(), colours)


def seeded(items: Sequence[Item], number: int = 0) -> "list[torch.Generator]":
    """A generator for each item, whose seed follows from the item's id, and from the number of the picture."""
    return [torch.Generator().manual_seed(zlib.crc32(str(item.id).encode()) + number) for item in items]


def colours_of(picture: "Image.Image") -> "np.ndarray":
    """How much of a picture has which colour, white ground left out: `float32[LEVELS ** 3]`, unit length.

    Roots of the shares of the pixels, so that the inner product of two is their Bhattacharyya coefficient.
    """
    pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    pixels = pixels[pixels.min(1) < WHITE]
    places = (pixels // (256 // LEVELS)) @ np.array([LEVELS**2, LEVELS, 1])
    counts = np.bincount(places, minlength=LEVELS**3)
    if not len(pixels):
        counts[-1] = 1  # all is white
    return np.sqrt(counts / counts.sum()).astype(np.float32)
