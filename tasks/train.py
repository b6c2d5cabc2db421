"""Train a captioner on WebDataset shards; a run that was stopped goes on with the same command."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vlm.errors import ArgumentError, DataError, VLMError


@dataclass(frozen=True)
class Args:
    config: Annotated[str, tyro.conf.Positional]
    """JSON file of the run, or the name of one that ships with the package (tiny_caption)."""
    data: str
    """Folder of .tar shards."""
    out: str
    """Folder for checkpoints, logs and the finished model."""
    checkpoint_minutes: float = 5.0
    """Time between checkpoints."""


def main(argv: Sequence[str] | None = None) -> int:
    args = tyro.cli(Args, args=argv, prog="python -m tasks.train", description=__doc__)
    try:
        train(args)
    except VLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def train(args: Args) -> None:
    """Build the model and go through the phases.

    Raises:
        VLMError: the configuration, the shards or the checkpoint cannot be used.
    """
    from eval.metrics.cider import CiderScorer
    from eval.metrics.ptb import tokenize
    from vlm.data.shards import find_shards, read_samples
    from vlm.train.build import build
    from vlm.train.loop import Trainer, split_samples
    from vlm.train.memory import keep_freed_memory

    keep_freed_memory()
    config = read_config(args.config)
    samples = list(read_samples(find_shards(args.data)))
    train_samples, val_samples = split_samples(samples, config.val_every)
    if not train_samples:
        raise DataError(f"no photo with captions among the {len(samples)} of {args.data!r}")
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"--out {args.out!r} cannot be a folder: {error.strerror}; name another") from None
    model, tokenizer, config = build(config, samples, out)

    def words(caption: str) -> list[str]:
        return [*tokenize(caption), "</s>"]  # the end counts as a word, or sentences learn to break off

    scorer = CiderScorer([[words(c) for c in sample.captions] for sample in train_samples])

    def reward(photo: int, sentences: Sequence[str]) -> list[float]:
        return scorer.scores([photo] * len(sentences), [words(sentence) for sentence in sentences]).tolist()

    Trainer(
        config, model, tokenizer, train_samples, val_samples, out, reward, caption_figures, args.checkpoint_minutes
    ).run()


def caption_figures(hypotheses: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """What validation shows: CIDEr and BLEU-4, in points of a hundred."""
    from eval.metrics.captions import caption_scores

    corpus = caption_scores(hypotheses, references).corpus
    return {name: 100 * corpus[name] for name in ("CIDEr", "BLEU-4")}


def read_config(name: str):
    """A configuration by file or by the name of one that ships.

    Raises:
        ArgumentError: there is none, or it has unknown or impossible fields.
    """
    from vlm.train import config as module

    folder = Path(module.__file__).parent / "configs"
    file = Path(name) if Path(name).is_file() else folder / f"{name}.json"
    if not file.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.json")))
        raise ArgumentError(f"no configuration {name!r}; give a JSON file or one of: {known}")
    try:
        return module.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else f"is not a training configuration: {error}"
        raise ArgumentError(f"{str(file)!r} {reason}") from None


if __name__ == "__main__":
    sys.exit(main())
