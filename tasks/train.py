"""Train a model to caption, to answer or to draw, or the encoders that belong to one, on WebDataset shards.

The value of each field of the configuration can be changed by an option: `--phases.0.lr 1e-4`; `vlm train CONFIG -h`
lists them. To continue a run that was stopped, run the same command again.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tasks._command import exit_code, parse
from vlm.errors import ArgumentError


@dataclass(frozen=True)
class Args:
    config: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
    """JSON file of the run, or the name of one that ships with the package (tiny_caption, tiny_joint, tiny_pair,
    tiny_diffusion, ofa_caption, ofa_vqa)."""
    data: tuple[str, ...]
    """Folder of .tar shards, or several folders."""
    out: str
    """Folder for checkpoints, logs and the finished models."""
    annotations: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Files of annotations beside the shards, such as boxes: JSON Lines, plain or gzip, whose key is the sample's."""
    checkpoint_minutes: float = 5.0
    """Time between checkpoints."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    stopped = "stopped; run the same command to continue"
    return exit_code(lambda: run(arguments), stopped, by_option=False)


def run(argv: Sequence[str]) -> None:
    """Read the configuration and what overrides it, and go through the phases.

    Raises:
        VLMError: the configuration, the shards or the checkpoint cannot be used.
    """
    if argv and not argv[0].startswith("-"):
        name = argv[0]
    else:  # the options that override the configuration are known when it is
        known, _ = parse("vlm train", Args, __doc__, argv, return_unknown_args=True)
        name = known.config
    from vlm.train.run import TrainConfig, read_config, train

    config = read_config(name)

    @dataclass(frozen=True)
    class RunArgs(Args):
        run: Annotated[TrainConfig, tyro.conf.arg(name="")] = config

    args = parse(f"vlm train {name}", RunArgs, __doc__, argv)
    if not 0 <= args.checkpoint_minutes < math.inf:
        raise ArgumentError(f"--checkpoint-minutes {args.checkpoint_minutes:g} is no time; give 0 or more")
    from eval.validation import MEASURES

    train(args.run, args.data, Path(args.out).expanduser(), MEASURES, args.checkpoint_minutes, args.annotations)


if __name__ == "__main__":
    sys.exit(main())
