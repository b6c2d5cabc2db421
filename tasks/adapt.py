"""Train an adapter, through which a model such as tiny reads the prompts of a pipeline of diffusers."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks._command import command, no_collections
from vlm.errors import ArgumentError


@dataclass(frozen=True)
class Args:
    model: str
    """Folder or hub id of a pipeline of diffusers of the kind of Stable Diffusion 1 to 3, SDXL or Flux, with its text
    encoder."""
    texts: str
    """Text file with one caption or prompt per line, the more the better: 10,000 and up."""
    out: str
    """Folder to write, for `vlm generate --adapter`."""
    base: str = "tiny"
    """Bundled name or folder of the model whose text states the pipeline shall read; it needs a pair of encoders."""
    states: Literal["pair", "backbone"] = "pair"
    """Which of its text states: of the pair's text tower, or of the backbone's encoder."""
    steps: int = 2000
    """Steps of training."""
    batch_size: int = 32
    """Texts in a step."""
    lr: float = 1e-3
    """Peak learning rate."""
    seed: int = 0
    """Random seed."""
    device: str = "cpu"
    """Where it runs: cpu, cuda, cuda:1, mps."""


def main(argv: Sequence[str] | None = None) -> int:
    return command("adapt", Args, run, __doc__, argv)


def run(args: Args) -> None:
    """Train; stderr says how much of the pipeline's own text embeddings the adapter explains, stdout where it is."""
    if min(args.steps, args.batch_size) < 1:
        raise ArgumentError("--steps and --batch-size must be 1 or more")
    if not 0 < args.lr < 1:
        raise ArgumentError(f"--lr {args.lr} is no learning rate; give above 0 and below 1")
    try:
        lines = Path(os.path.expanduser(args.texts)).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ArgumentError(f"--texts {args.texts!r} cannot be read: {reason}") from None
    with no_collections():
        from tqdm import tqdm

        import vlm
        from vlm.diffusion.adapter import train_adapter
        from vlm.diffusion.pipeline import TextToImagePipeline
        from vlm.diffusion.text import TextEncoder
        from vlm.files.bundle import load_bundle

        pipe = vlm.load_pipeline(args.model, device=args.device)
        if isinstance(pipe, TextToImagePipeline):
            raise ArgumentError(f"--model {args.model!r} reads our base already; give a pipeline of diffusers")
        encoder = TextEncoder(load_bundle(args.base, with_pair=True), args.states)
        encoder.to(args.device)  # pyright: ignore
    adapted = train_adapter(
        pipe,
        encoder,
        [line.strip() for line in lines],
        steps=args.steps,
        batch_size=args.batch_size,
        lr=args.lr,
        seed=args.seed,
        log=lambda line: tqdm.write(line, file=sys.stderr),
    )
    adapted.save(os.path.expanduser(args.out))
    print(args.out)


if __name__ == "__main__":
    sys.exit(main())
