"""Train a model to caption and to answer, or the encoders that belong to one, on WebDataset shards.

A run that was stopped goes on with the same command.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from tasks._command import command
from vlm.errors import ArgumentError, DataError


@dataclass(frozen=True)
class Args:
    config: Annotated[str, tyro.conf.Positional]
    """JSON file of the run, or the name of one that ships with the package (tiny_caption, tiny_pair, ofa_caption,
    ofa_vqa)."""
    data: str
    """Folder of .tar shards."""
    out: str
    """Folder for checkpoints, logs and the finished models."""
    init: str | None = None
    """Model to go on from, in place of the configuration's: a bundled name, a folder, or ofa: and a checkpoint."""
    tokenizer: str | None = None
    """Folder or hub id of the vocabulary of an OFA checkpoint, where it does not lie beside it."""
    checkpoint_minutes: float = 5.0
    """Time between checkpoints."""


def main(argv: Sequence[str] | None = None) -> int:
    return command("train", Args, train, __doc__, argv)


def train(args: Args) -> None:
    """Build the model and go through the phases.

    Raises:
        VLMError: the configuration, the shards or the checkpoint cannot be used.
    """
    from vlm.data.shards import find_shards, read_samples
    from vlm.train.build import build
    from vlm.train.loop import split_samples
    from vlm.train.memory import keep_freed_memory

    keep_freed_memory()
    config = read_config(args.config)
    given = {name: value for name in ("init", "tokenizer") if (value := getattr(args, name)) is not None}
    config = replace(config, **given)
    samples = list(read_samples(find_shards(args.data)))
    tasks = sorted({phase.task for phase in config.phases}, reverse=True)
    train_samples, val_samples = split_samples(samples, config.val_every, tasks)
    if not train_samples:
        kinds = " or ".join(f"{task}s" for task in tasks)
        raise DataError(f"no photo with {kinds} among the {len(samples)} of {args.data!r}")
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"--out {args.out!r} cannot be a folder: {error.strerror}; name another") from None
    built = build(config, samples, out)
    kind = _caption_trainer if config.pair is None else _pair_trainer
    kind(built, train_samples, val_samples, out, args.checkpoint_minutes).run()


def _caption_trainer(built, train, val, out: Path, minutes: float):
    from eval.metrics.cider import CiderScorer
    from eval.metrics.ptb import tokenize
    from vlm.train.captions import CaptionTrainer

    model, tokenizer, config = built

    def words(caption: str) -> list[str]:
        return [*tokenize(caption), "</s>"]  # the end counts as a word, or sentences learn to break off

    scored = any(phase.objective == "self_critical" for phase in config.phases)
    scorer = CiderScorer([[words(c) for c in sample.captions] for sample in train]) if scored else None

    def reward(photo: int, sentences: Sequence[str]) -> list[float]:
        assert scorer is not None
        return scorer.scores([photo] * len(sentences), [words(sentence) for sentence in sentences]).tolist()

    return CaptionTrainer(
        config, model, tokenizer, train, val, out, reward, caption_figures, minutes, answer_metric=answer_figures
    )


def _pair_trainer(built, train, val, out: Path, minutes: float):
    import torch

    from vlm.convert.minilm import load_minilm
    from vlm.models.encoders import ContrastivePair
    from vlm.train.pair import PairTrainer

    model, tokenizer, config = built
    if model.tower.dim != config.pair.patch_dim:
        raise ArgumentError(f"pair: patch_dim={config.pair.patch_dim}; the tower's patches have {model.tower.dim}")
    torch.manual_seed(config.seed)
    pair = ContrastivePair(config.pair)
    words = load_minilm(pair.text)
    return PairTrainer(config, model, tokenizer, pair, words, train, val, out, retrieval_figures, minutes)


def caption_figures(hypotheses: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """What validation shows: CIDEr and BLEU-4, in points of a hundred."""
    from eval.metrics.captions import caption_scores

    corpus = caption_scores(hypotheses, references).corpus
    return {name: 100 * corpus[name] for name in ("CIDEr", "BLEU-4")}


def answer_figures(answers: Mapping[str, str], people: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """What validation shows: accuracy against several people or the one right answer, in points of a hundred."""
    from eval.benchmarks.base import Item
    from eval.benchmarks.vqa import accuracy

    scores = [accuracy(Item(key, Path(), tuple(people[key])), answer) for key, answer in answers.items()]
    return {"accuracy": sum(scores) / len(scores), "questions": len(scores)}


def retrieval_figures(image_features, text_features, owners) -> dict[str, float]:
    """What validation shows: recall at 1 and 10 in both directions, in points of a hundred."""
    from eval.metrics.retrieval import ranks_from_features

    figures = ranks_from_features(image_features, text_features, owners).summary()
    short = {"text_to_image": "t2i", "image_to_text": "i2t"}
    return {f"{short[way]} R@{k}": 100 * figures[f"{way}/recall@{k}"] for way in short for k in (1, 10)}


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
