"""The figures of a captioning run: BLEU, ROUGE-L and CIDEr without Java; METEOR and SPICE where Java is present.

The figures are those of pycocoevalcap's `COCOEvalCap`, tokenizer included; `ptb.py`, `bleu.py`, `cider.py` and
`rouge.py` say what each reproduces.
"""

import shutil
import subprocess
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from eval.metrics.bleu import bleu_of, bleu_statistics
from eval.metrics.cider import cider_d
from eval.metrics.meteor import meteor_of, meteor_statistics
from eval.metrics.ngrams import NgramTable
from eval.metrics.ptb import tokenize
from eval.metrics.rouge import rouge_l
from vlm.errors import ArgumentError, DataError

JAVA_METRICS = ("METEOR", "SPICE")
STANFORD = "spice/lib/stanford-corenlp-*-models.jar"  # in pycocoevalcap's folder, once downloaded


@dataclass(frozen=True)
class CaptionScores:
    """Figures of a set of captions, as fractions (a CIDEr of 0.6 is printed as 60).

    Attributes:
        corpus: BLEU-1 to BLEU-4, ROUGE-L and CIDEr of the whole set, and the Java metrics asked for.
        per_image: the same of each image alone, `float64[images]`; CIDEr with the document frequencies of the set.
        bleu_statistics: `int64[images, 10]`, from which `bleu.bleu_of` makes the BLEU of any subset.
        meteor_statistics: `float64[images, 23]` for `meteor.meteor_of`; without rows unless METEOR is asked for.
        ids: which image each entry of the arrays belongs to.
    """

    corpus: dict[str, float]
    per_image: dict[str, np.ndarray]
    bleu_statistics: np.ndarray
    meteor_statistics: np.ndarray
    ids: tuple[Hashable, ...]


def caption_scores(
    hypotheses: Mapping[Any, str],
    references: Mapping[Any, Sequence[str]],
    java_metrics: Collection[str] = (),
    tokenizer: Callable[[str], list[str]] = tokenize,
) -> CaptionScores:
    """Score one caption of each image against the image's references.

    Args:
        hypotheses: id to caption.
        references: id to reference captions.
        java_metrics: of `JAVA_METRICS`, those to compute too, through pycocoevalcap.
        tokenizer: from a caption to its tokens.

    Raises:
        DataError: the ids differ, there are none, an image has no reference, or a caption is not text.
        ArgumentError: a Java metric is unknown, or what it needs is not installed.
    """
    ids = _checked_ids(hypotheses, references)
    sentences: dict[str, list[str]] = {}  # a caption may be one image's hypothesis and another's reference
    for caption in (caption for key in ids for caption in (hypotheses[key], *references[key])):
        if not isinstance(caption, str) or caption not in sentences:
            sentences[caption] = tokenizer(caption)
    words = [sentences[hypotheses[key]] for key in ids]
    targets = [[sentences[caption] for caption in references[key]] for key in ids]

    # the official BLEU and CIDEr split tokens again, at the no-break spaces inside them; ROUGE-L does not
    table = NgramTable(
        [_split(tokens) for tokens in words], [[_split(tokens) for tokens in image] for image in targets]
    )
    statistics = bleu_statistics(table)
    corpus = {f"BLEU-{n + 1}": float(value) for n, value in enumerate(bleu_of(statistics.sum(axis=0)))}
    per_image = {f"BLEU-{n + 1}": values for n, values in enumerate(bleu_of(statistics).T)}
    per_image["ROUGE-L"] = np.array([rouge_l(*pair) for pair in zip(words, targets, strict=True)])
    per_image["CIDEr"] = cider_d(table)
    for name in ("ROUGE-L", "CIDEr"):
        corpus[name] = float(per_image[name].mean())
    meteor = np.empty((0, 0))
    for name in java_metrics:
        require_java(name)
        if name == "METEOR":
            meteor = _meteor(words, targets)
            per_image[name], corpus[name] = meteor_of(meteor), float(meteor_of(meteor.sum(axis=0)))
        else:
            per_image[name] = _spice(words, targets)
            corpus[name] = float(per_image[name].mean())
    return CaptionScores(corpus, per_image, statistics, meteor, ids)


def _checked_ids(hypotheses: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> tuple[Hashable, ...]:
    if differ := hypotheses.keys() ^ references.keys():
        raise DataError(
            f"{len(differ)} ids have a caption or references but not both, {next(iter(differ))!r} for one; give both"
        )
    if not hypotheses:
        raise DataError("no captions to score; give at least one")
    for key in hypotheses:
        if isinstance(references[key], str):
            raise DataError(f"references of image {key!r} are one string; give a list of captions")
        if not references[key]:
            raise DataError(f"image {key!r} has no reference captions; leave it out or add some")
    return tuple(hypotheses)


def _split(tokens: Sequence[str]) -> list[str]:
    return " ".join(tokens).split()


def require_java(name: str) -> None:
    """Check that a metric of `JAVA_METRICS` can be computed.

    Raises:
        ArgumentError: it is none of them, or what it needs is not installed.
    """
    if name not in JAVA_METRICS:
        raise ArgumentError(f"no metric {name!r} in Java; choose from {', '.join(JAVA_METRICS)}")
    package = find_spec("pycocoevalcap")
    if package is None or not shutil.which("java"):
        missing = (
            "pycocoevalcap (pip install pycocoevalcap)" if package is None else "a `java` command (a Java runtime)"
        )
        raise ArgumentError(f"{name} needs {missing}, which is not installed; install it or leave {name} out")
    assert package.submodule_search_locations is not None
    if name == "SPICE" and not list(Path(package.submodule_search_locations[0]).glob(STANFORD)):
        raise ArgumentError(
            "SPICE needs Stanford's models; download them once with "
            "`python -m pycocoevalcap.spice.get_stanford_models`, or leave SPICE out"
        )


def _meteor(words: Sequence[Sequence[str]], targets: Sequence[Sequence[Sequence[str]]]) -> np.ndarray:
    """METEOR's statistics of each image."""
    try:
        return meteor_statistics(*_joined(words, targets))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"METEOR failed in Java ({error}); check `java -version`, or leave METEOR out") from None


def _spice(words: Sequence[Sequence[str]], targets: Sequence[Sequence[Sequence[str]]]) -> np.ndarray:
    """SPICE's F of each image."""
    from pycocoevalcap.spice.spice import Spice

    hypotheses, references = _joined(words, targets)
    results = {number: [caption] for number, caption in enumerate(hypotheses)}
    try:
        _, parts = Spice().compute_score(dict(enumerate(references)), results)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise ArgumentError(
            f"SPICE failed in Java ({str(error).splitlines()[0]}); it needs Java 8, 8 GB of memory and a package "
            "folder to write to; or leave SPICE out"
        ) from None
    return np.array([part["All"]["f"] for part in parts])


def _joined(
    words: Sequence[Sequence[str]], targets: Sequence[Sequence[Sequence[str]]]
) -> tuple[list[str], list[list[str]]]:
    return [" ".join(tokens) for tokens in words], [[" ".join(tokens) for tokens in image] for image in targets]
