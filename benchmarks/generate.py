"""How fast our pipeline draws, against diffusers' own loop around the same denoiser, and against itself in a hurry.

Three parts, in turns, of which the median counts:

- our pipeline and `StableDiffusion3Pipeline` of diffusers, whose transformer is our denoiser behind its names: the same
  embeddings, noise, scheduler, steps and guidance, and pictures that must agree;
- our pipeline with fewer steps of another solver and guidance in the middle of the time only, with the CLIPScore of
  both, by the pair of the model itself;
- one picture by the command's defaults, from the prompt to the pixels, in seconds.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor, nn

import vlm
from eval.metrics.bootstrap import bootstrap_mean
from eval.metrics.clip_score import clip_scores
from vlm.diffusion.inputs import generators
from vlm.diffusion.pipeline import TextToImagePipeline
from vlm.models.denoiser import Denoiser

PROMPT, NEGATIVE = "a red shoe", "a blue bag"  # of the same number of tokens: diffusers' loop hides no padding
PROMPTS = Path(__file__).parents[1] / "docs/images/prompts.txt"
STEPS, SCALE = 30, 4.0
FEW, INTERVAL = 12, (0.2, 0.9)


class AsTransformer(nn.Module):
    """Our denoiser with the arguments and settings that `StableDiffusion3Pipeline` expects of its transformer."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.denoiser = denoiser
        sizes = denoiser.sizes
        self.config: Any = type("Config", (), {})()
        self.config.in_channels, self.config.sample_size, self.config.patch_size = sizes.channels, sizes.size, 1

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        **_: Any,
    ) -> tuple[Tensor]:
        found = self.denoiser(hidden_states, timestep, encoder_hidden_states, pooled_projections, return_dict=False)
        return cast("tuple[Tensor]", found)


def timed(runs: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each, run in turns after one that does not count."""
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(repeats + 1):
        for run, own in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run()
            if turn:
                own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in seconds]


def against_diffusers(pipe: TextToImagePipeline, pictures: int, repeats: int) -> None:
    size = pipe.denoiser.sizes.size
    noise = torch.randn(pictures, 3, size, size, generator=torch.Generator().manual_seed(0))
    kind: Any = StableDiffusion3Pipeline
    theirs: Any = kind(
        AsTransformer(pipe.denoiser), pipe.scheduler, None, None, None, None, None, None, None
    )  # no autoencoder and no text encoders
    theirs.set_progress_bar_config(disable=True)
    text, other = pipe.encode_prompt(PROMPT), pipe.encode_prompt(NEGATIVE)
    assert text.states.shape == other.states.shape

    def ours() -> Tensor:
        return pipe(
            [PROMPT] * pictures,
            negative_prompt=NEGATIVE,
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            latents=noise,
            pictures_at_once=pictures,  # as diffusers' loop; by default, pictures go one by one on a CPU
            output_type="latent",
        ).images  # pyright: ignore

    def diffusers() -> Tensor:
        return theirs(
            prompt_embeds=text.states.expand(pictures, -1, -1),
            pooled_prompt_embeds=text.pooled.expand(pictures, -1),
            negative_prompt_embeds=other.states.expand(pictures, -1, -1),
            negative_pooled_prompt_embeds=other.pooled.expand(pictures, -1),
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            latents=noise,
            height=8 * size,  # in pixels of the autoencoder that there is not
            width=8 * size,
            output_type="latent",
        ).images

    difference = (ours() - diffusers()).abs().max().item()
    assert difference < 1e-2, f"the pictures differ by {difference:.1e}"
    mine, other_time = timed((ours, diffusers), repeats)
    print(
        f"{pictures} pictures, {STEPS} steps: ours {pictures / mine:.2f} pictures/s, diffusers' loop "
        f"{pictures / other_time:.2f}, ratio {other_time / mine:.2f} (values differ by at most {difference:.0e})"
    )


def in_a_hurry(pipe: TextToImagePipeline, prompts: Sequence[str], encoders: Any) -> None:
    usual, solver = pipe.scheduler, DPMSolverMultistepScheduler
    few = solver(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=usual.config["shift"])
    scores, seconds = [], []
    with torch.inference_mode():
        texts = encoders.encode_text(list(prompts)).numpy()
    ways: list[tuple[Any, dict[str, Any]]] = [
        (usual, {"num_inference_steps": STEPS}),
        (few, {"num_inference_steps": FEW, "guidance_interval": INTERVAL}),
    ]
    for scheduler, options in ways:
        pipe.scheduler = scheduler
        start = time.perf_counter()
        drawn = pipe(list(prompts), generator=generators(0, len(prompts)), guidance_scale=SCALE, **options)
        seconds.append(time.perf_counter() - start)
        with torch.inference_mode():
            vectors = encoders.encode_image(cast(Any, drawn).images).numpy()
        scores.append(100 * clip_scores(vectors, texts))
    pipe.scheduler = usual
    change = bootstrap_mean(scores[1] - scores[0], np.random.default_rng(0))
    print(
        f"{FEW} steps of {solver.__name__} with guidance between {INTERVAL[0]} and {INTERVAL[1]}: "
        f"{seconds[0] / seconds[1]:.2f} times the pictures/s of {STEPS} steps; CLIPScore of {len(prompts)} prompts "
        f"{scores[1].mean():.1f} and {scores[0].mean():.1f}, difference [{change.low:.1f}, {change.high:.1f}]"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a model with a diffusion head")
    parser.add_argument("--pictures", type=int, nargs="+", default=[1, 8], help="pictures drawn together")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, in turns, of which the median counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--prompts", default=str(PROMPTS), help="text file, one prompt a line, for CLIPScore")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    pipe, encoders = vlm.load_pipeline(args.model), vlm.load_encoders(args.model)
    pipe.set_progress_bar_config(disable=True)
    print(f"{args.model}, {pipe.denoiser.sizes.size} pixels, {args.threads} threads, median of {args.repeats} runs")
    for pictures in args.pictures:
        against_diffusers(pipe, pictures, args.repeats)
    in_a_hurry(pipe, Path(args.prompts).read_text(encoding="utf-8").splitlines(), encoders)
    (seconds,) = timed([lambda: pipe(PROMPT, generator=generators(0, 1))], args.repeats)
    print(f"one picture by the defaults: {seconds:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
