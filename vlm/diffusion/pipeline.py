"""Text to pictures as a pipeline of diffusers, with the sampling loop that the denoiser needs."""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor, nn

from vlm.diffusion.inputs import Loop, check_scheduler, mask_latents, noise_of, picture_tensor, to_output
from vlm.diffusion.latents import decode, encode, latent_scale
from vlm.diffusion.prior import Prior
from vlm.diffusion.text import TextEncoder, TextStates
from vlm.errors import ArgumentError
from vlm.image import ImageSource, check_photos
from vlm.models.denoiser import TIMESTEPS, Denoiser

Prompt = str | Sequence[str]
Output = Literal["pil", "np", "pt", "latent"]
MOST = 16  # times the size of training: larger pictures hold nothing but noise, and take hours
KEPT_TEXTS = 1024  # prompts whose states are remembered


class TextToImagePipeline(DiffusionPipeline):
    """Draws pictures of prompts.

    Args:
        denoiser: the network.
        scheduler: a flow-matching scheduler of diffusers: `FlowMatchEulerDiscreteScheduler`, `FlowMatchHeun...`, or
            DPM-Solver or UniPC with `use_flow_sigmas=True` and `prediction_type="flow_prediction"`.
        text_encoder: the base model that reads the prompts.
        vae: an autoencoder of diffusers, for denoisers of latents; None: the denoiser draws pixels.
        prior: from the vector of a text to that of a photo, for denoisers that learned from both; None: they did not.
    """

    _optional_components = ["vae", "prior"]  # noqa: RUF012 - as diffusers declares it
    model_cpu_offload_seq = "text_encoder->prior->denoiser->vae"

    denoiser: Denoiser
    scheduler: Any
    text_encoder: TextEncoder
    vae: Any
    prior: Prior | None

    def __init__(
        self,
        denoiser: Denoiser,
        scheduler: Any,
        text_encoder: TextEncoder,
        vae: nn.Module | None = None,
        prior: Prior | None = None,
    ):
        super().__init__()
        self.register_modules(denoiser=denoiser, scheduler=scheduler, text_encoder=text_encoder, vae=vae, prior=prior)
        self._texts: OrderedDict[str, TextStates] = OrderedDict()
        self._scale: int | None = None  # pixels per latent

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompt = "",
        *,
        negative_prompt: Prompt = "",
        num_inference_steps: int = 30,
        guidance_scale: float = 4.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        image: "ImageSource | None" = None,
        strength: float | None = None,
        mask_image: "ImageSource | None" = None,
        variations_of: "Sequence[ImageSource] | None" = None,
        use_prior: bool = False,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        pictures_at_once: int | None = None,
        output_type: Output = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw.

        With one generator for each picture, a picture is the same to the bit alone and among others on a CPU, where
        pictures go through the network one by one.

        Args:
            prompt: what to draw, or several prompts; "" only beside `variations_of`.
            negative_prompt: what to stay away from, one for all or one for each prompt; "" for nothing.
            num_inference_steps: steps of the scheduler.
            guidance_scale: classifier-free guidance (arXiv:2207.12598); 1 turns it off, larger values follow the prompt
                more closely.
            guidance_interval: shares of noise, lowest and highest, between which there is guidance (arXiv:2404.07724);
                a step outside takes half of the time.
            num_images_per_prompt: pictures of each prompt, which follow each other.
            height: of the pictures, in pixels; None: what the denoiser was trained for.
            width: likewise.
            image: picture to start from, cut to the middle part that has the shape asked for.
            strength: with `image`, how much of it to redraw, above 0 to 1; None: 0.6, or all with `mask_image`.
            mask_image: with `image`, white where to redraw and black where to keep.
            variations_of: photos whose vectors of the pair the denoiser reads in place of the prompts', one for each
                prompt: other pictures of what they show.
            use_prior: read the vector of a photo that the prior expects for the prompt in place of the prompt's own.
            generator: of the random numbers; a list holds one for each picture.
            latents: the noise to start from, `[pictures, channels, height, width]`; None: it is drawn.
            pictures_at_once: how many go through the network together; None: one on a CPU, all elsewhere.
            output_type: "pil" for pictures, "np" for `float32[pictures, height, width, 3]` and "pt" for `float32[
                pictures, 3, height, width]` in [0, 1], "latent" for what the denoiser drew.
            return_dict: whether to return diffusers' `ImagePipelineOutput` instead of a tuple.
            callback_on_step_end: called with the pipeline, the number of the step, its timestep, and `{"latents":
                ..., "clean": ...}`, the second what the denoiser expects in the end; it may return other latents in a
                dictionary.

        Raises:
            ArgumentError: an argument has no meaning, or the pictures hold NaN.
            ImageError: `image`, `mask_image` or one of `variations_of` cannot be used.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negative = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else list(negative_prompt)
        if variations_of is None and not (prompts and all(text.strip() for text in prompts)):
            raise ArgumentError("the prompt is empty; write what to draw")
        self._check(prompts, negative, num_inference_steps, guidance_scale, guidance_interval, num_images_per_prompt)
        vectors = self._vectors(prompts, variations_of, use_prior)
        height, width = self._sizes(height, width)
        loop = Loop.plan(self.scheduler, num_inference_steps, image, mask_image, strength, self._execution_device)
        texts = [
            self.encode_prompt(text) if vector is None else replace(self.encode_prompt(text), pooled=vector)
            for text, vector in zip(prompts, vectors, strict=True)
            for _ in range(num_images_per_prompt)
        ]
        others = [self.encode_prompt(text) for text in negative for _ in range(num_images_per_prompt)]
        cells = height // self.scale, width // self.scale
        shape = (len(texts), self.denoiser.sizes.channels, *cells)
        noise = noise_of(shape, generator, latents).to(self._execution_device)
        start = keep = None
        if image is not None:
            start = encode(self.vae, picture_tensor(image, height, width).to(noise))
            keep = None if mask_image is None else mask_latents(mask_image, *cells).to(noise)
        x: Tensor = loop.start(noise, start)
        share = pictures_at_once or (1 if noise.device.type == "cpu" else len(texts))
        options = {}
        if "generator" in inspect.signature(self.scheduler.step).parameters:
            options["generator"] = generator
        with self.progress_bar(total=len(loop.timesteps)) as bar:  # pyright: ignore[reportCallIssue]
            for step, timestep in enumerate(loop.timesteps):
                now, after = loop.shares[step], loop.shares[step + 1]
                guided = guidance_scale != 1 and guidance_interval[0] <= now <= guidance_interval[1]
                velocity = [
                    self._velocity(
                        x[i : i + share], now, texts[i : i + share], others[i : i + share], guided, guidance_scale
                    )
                    for i in range(0, len(texts), share)
                ]
                before = x
                x = self.scheduler.step(torch.cat(velocity), timestep, x, return_dict=False, **options)[0]
                if keep is not None:
                    assert start is not None
                    x = keep * x + (1 - keep) * ((1 - after) * start + after * noise)
                if callback_on_step_end is not None:
                    clean = before - now * torch.cat(velocity)
                    returned = callback_on_step_end(self, step, timestep, {"latents": x, "clean": clean})
                    x = returned["latents"] if returned and "latents" in returned else x
                bar.update()
        if not x.isfinite().all():
            raise ArgumentError(
                f"the pictures hold NaN or infinite values in {x.dtype}; draw in float32 or bfloat16 (--dtype)"
            )
        images = x if output_type == "latent" else to_output(decode(self.vae, x), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)  # pyright: ignore

    @property
    def scale(self) -> int:
        """Pixels per latent; 1 for a denoiser of pixels."""
        if self._scale is None:
            self._scale = latent_scale(self.vae)
        return self._scale

    def encode_prompt(self, text: str) -> TextStates:
        """States of one prompt, which are remembered."""
        if text not in self._texts:
            self._texts[text] = self.text_encoder.encode([text])
            if len(self._texts) > KEPT_TEXTS:
                self._texts.popitem(last=False)
        return self._texts[text]

    def to(self, *args: Any, **kwargs: Any) -> "TextToImagePipeline":
        self._texts.clear()  # remembered states stay where they were computed
        return super().to(*args, **kwargs)

    def _velocity(
        self,
        x: Tensor,
        share: float,
        texts: Sequence[TextStates],
        others: Sequence[TextStates],
        guided: bool,
        scale: float,
    ) -> Tensor:
        """Velocity with guidance, `[pictures, channels, height, width]`."""
        found = stack([*texts, *others] if guided else texts)
        doubled = torch.cat([x, x]) if guided else x
        velocity = self.denoiser(doubled, share * TIMESTEPS, found.states, found.pooled, found.mask, return_dict=False)[
            0
        ]
        if guided:
            with_text, without = velocity.chunk(2)
            velocity = without + scale * (with_text - without)
        return velocity

    def _vectors(
        self, prompts: Sequence[str], photos: "Sequence[ImageSource] | None", use_prior: bool
    ) -> Sequence[Tensor | None]:
        """For each prompt, the vector `[1, dim]` that stands in place of its own; None for its own.

        Raises:
            ArgumentError: there is not one photo for each prompt, or the denoiser never learned from photos.
        """
        if photos is None and not use_prior:
            return [None] * len(prompts)
        name = "variations_of" if photos is not None else "use_prior"
        if photos is not None and use_prior:
            raise ArgumentError("variations_of and use_prior both replace the prompt's vector; give one of them")
        if self.prior is None:
            raise ArgumentError(f"this denoiser learned from texts alone; leave {name} out")
        if photos is None:
            return [self.prior(self.encode_prompt(text).pooled) for text in prompts]
        check_photos(photos)
        if len(photos) != len(prompts):
            raise ArgumentError(f"{len(photos)} photos for {len(prompts)} prompts; give one for each")
        # one by one, so that a picture is the same to the bit alone and among others
        return [self.text_encoder.encode_image([photo]) for photo in photos]

    def _check(
        self,
        prompts: Sequence[str],
        negative: Sequence[str],
        steps: int,
        scale: float,
        interval: tuple[float, float],
        pictures: int,
    ) -> None:
        if len(negative) != len(prompts):
            raise ArgumentError(
                f"{len(negative)} negative prompts for {len(prompts)} prompts; give one, or one for each"
            )
        self.text_encoder.token_ids([*prompts, *negative])  # says which one is too long
        if steps < 1:
            raise ArgumentError(f"num_inference_steps={steps} is below 1; give 1 or more")
        if pictures < 1:
            raise ArgumentError(f"num_images_per_prompt={pictures} is below 1; give 1 or more")
        if not 0 <= scale < float("inf"):
            raise ArgumentError(f"guidance_scale={scale} is not 0 or more; 1 turns guidance off")
        if not 0 <= interval[0] <= interval[1] <= 1:
            raise ArgumentError(f"guidance_interval={interval} is not two shares of noise from 0 to 1, the lower first")
        check_scheduler(self.scheduler)

    @property
    def unit(self) -> int:
        """Side of a patch, in pixels: sides of pictures are multiples of it."""
        return self.denoiser.sizes.patch_size * self.scale

    def check_size(self, name: str, value: int | None) -> None:
        """Refuse a side of a picture, in pixels, that cannot be drawn; errors begin with `name`.

        Raises:
            ArgumentError: see above.
        """
        default = self.denoiser.sizes.size * self.scale
        if value is not None and (value < self.unit or value % self.unit):
            raise ArgumentError(
                f"{name}{value} is not a multiple of {self.unit} pixels, the side of a patch; try {default}"
            )
        if value is not None and value > MOST * default:
            raise ArgumentError(f"{name}{value} is more than {MOST} times the {default} pixels of training; lower it")

    def _sizes(self, height: int | None, width: int | None) -> tuple[int, int]:
        self.check_size("height=", height)
        self.check_size("width=", width)
        default = self.denoiser.sizes.size * self.scale
        return height or default, width or default


def stack(rows: Sequence[TextStates]) -> TextStates:
    """One after the other, padded to the longest."""
    longest = max(row.mask.shape[1] for row in rows)
    states = [nn.functional.pad(row.states, (0, 0, 0, longest - row.states.shape[1])) for row in rows]
    masks = [nn.functional.pad(row.mask, (0, longest - row.mask.shape[1])) for row in rows]
    return TextStates(torch.cat(states), torch.cat(masks), torch.cat([row.pooled for row in rows]))
