"""What the sampling loop starts from: schedulers, noise, pictures and masks; and what it ends with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vlm.errors import ArgumentError
from vlm.image import ImageSource, load_image

STRENGTH = 0.6  # of a picture to start from


def check_scheduler(scheduler: Any) -> None:
    """Refuse schedulers of other noise than rectified flow's.

    Raises:
        ArgumentError: see above.
    """
    if type(scheduler).__name__.startswith("FlowMatch"):
        return
    config = scheduler.config
    if not config.get("use_flow_sigmas") or config.get("prediction_type") != "flow_prediction":
        raise ArgumentError(
            f"the scheduler {type(scheduler).__name__} is not set up for flow matching; use FlowMatchEulerDiscrete"
            "Scheduler, or from_config(..., use_flow_sigmas=True, prediction_type='flow_prediction')"
        )


@dataclass(frozen=True)
class Loop:
    """The steps of one drawing.

    Attributes:
        timesteps: as the scheduler takes them.
        shares: of noise before each step, and after the last.
    """

    timesteps: Tensor
    shares: list[float]

    @classmethod
    def plan(
        cls,
        scheduler: Any,
        steps: int,
        image: "ImageSource | None",
        mask: "ImageSource | None",
        strength: float | None,
        device: torch.device,
    ) -> "Loop":
        """Set the scheduler up; a picture to start from leaves out the first steps.

        Raises:
            ArgumentError: `strength` or `mask` has no meaning.
        """
        if image is None and (mask is not None or strength is not None):
            raise ArgumentError(
                f"{'mask_image' if mask is not None else 'strength'} is for a picture to start from; give image"
            )
        if strength is None:
            strength = 1.0 if image is None or mask is not None else STRENGTH
        if not 0 < strength <= 1:
            raise ArgumentError(f"strength={strength} is not a share; give above 0 to 1")
        scheduler.set_timesteps(steps, device=device)
        # solvers that look twice have more timesteps than steps
        first = len(scheduler.timesteps) - max(1, round(len(scheduler.timesteps) * strength))
        order = getattr(scheduler, "order", 1)
        first -= first % order
        scheduler.set_begin_index(first)
        shares = scheduler.sigmas[first:].tolist()
        return cls(scheduler.timesteps[first:], shares)

    def start(self, noise: Tensor, picture: Tensor | None) -> Tensor:
        """Noise, or a picture `[1, channels, height, width]` with the noise of the first step."""
        if picture is None:
            return noise
        return (1 - self.shares[0]) * picture + self.shares[0] * noise


def noise_of(
    shape: tuple[int, ...], generator: torch.Generator | Sequence[torch.Generator] | None, given: Tensor | None
) -> Tensor:
    """The noise to start from: given, or drawn, by one generator for each picture where there is a list.

    Raises:
        ArgumentError: the noise or the list does not fit the pictures.
    """
    if given is not None:
        if given.shape != shape:
            raise ArgumentError(f"latents have shape {tuple(given.shape)}; these pictures need {shape}")
        return given
    if generator is None or isinstance(generator, torch.Generator):
        # picture by picture, so that the first of several are those of a smaller number
        device = "cpu" if generator is None else generator.device
        return torch.stack([torch.randn(shape[1:], generator=generator, device=device) for _ in range(shape[0])])
    if len(generator) != shape[0]:
        raise ArgumentError(f"{len(generator)} generators for {shape[0]} pictures; give one, or one for each")
    return torch.stack([torch.randn(shape[1:], generator=one, device=one.device).cpu() for one in generator])


def picture_tensor(image: ImageSource, height: int, width: int) -> Tensor:
    """The middle of a picture, resized: `float32[1, 3, height, width]` in [-1, 1].

    Raises:
        ImageError: it cannot be used.
    """
    fitted = ImageOps.fit(load_image(image), (width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)[None].float() / 127.5 - 1


def mask_latents(mask: ImageSource, height: int, width: int) -> Tensor:
    """1 where to redraw and 0 where to keep, `float32[1, 1, height, width]`; half white is white.

    Raises:
        ImageError: it cannot be used.
    """
    fitted = ImageOps.fit(load_image(mask).convert("L"), (width, height), Image.Resampling.BOX)
    return (torch.from_numpy(np.array(fitted))[None, None] >= 128).float()


def to_output(pixels: Tensor, kind: str) -> Any:
    """Pixels around [-1, 1], `[pictures, 3, height, width]`, in the form that a caller of diffusers asks for.

    Raises:
        ArgumentError: there is no such form.
    """
    pixels = (pixels.float() / 2 + 0.5).clamp(0, 1).cpu()
    if kind == "pt":
        return pixels
    array = pixels.permute(0, 2, 3, 1).numpy()
    if kind == "np":
        return array
    if kind == "pil":
        return [Image.fromarray(one) for one in (array * 255).round().astype(np.uint8)]
    raise ArgumentError(f"output_type={kind!r} is unknown; choose pil, np, pt or latent")


def generators(seed: int, count: int) -> list[torch.Generator]:
    """One for each picture, of the seeds from `seed` on, so that each picture can be drawn again alone."""
    return [torch.Generator().manual_seed((seed + number) % 2**63) for number in range(count)]
