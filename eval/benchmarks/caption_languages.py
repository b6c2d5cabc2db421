"""Captions in Chinese and German, from the keys `zh` and `de` of a plain `captions.json`.

Chinese is scored by characters (`eval.metrics.chinese`). German has the very tokens that English has, those of the
official COCO scripts: lower case, punctuation dropped, and words with umlauts and hyphens whole.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from eval.benchmark import Benchmark, Item, Predictions, Scores, find_photo, layout, read_json, texts, written
from eval.benchmarks.captions import bleu_of_sums, running, submission, warn_of_one
from eval.metrics import chinese

Tokenizer = Callable[[str], list[str]]

FIGURES = ("CIDEr", "BLEU-4")


def read(language: str, folder: Path, split: str) -> list[Item]:
    """The photos of `captions.json` that have captions in a language."""
    data = read_json(folder, "captions.json", written(f"a list of {{file, {language}}}"))
    with layout(folder / "captions.json"):
        return [
            Item(record.get("id", record["file"]), find_photo(folder, record["file"]), texts(record[language]))
            for record in data
            if record.get(language)
        ]


def score(tokenizer: Tokenizer | None, unit: str, items: Sequence[Item], predictions: Predictions) -> Scores:
    """CIDEr and BLEU-4 by a unit of text, with the document frequencies of these items' references."""
    from eval.metrics.captions import caption_scores
    from eval.metrics.ptb import tokenize

    warn_of_one(items)
    references = {number: item.references for number, item in enumerate(items)}
    found = caption_scores(dict(enumerate(predictions)), references, tokenizer=tokenizer or tokenize)
    figures = {name + unit: 100 * found.corpus[name] for name in FIGURES}
    values = {"CIDEr" + unit: [100 * float(value) for value in found.per_image["CIDEr"]]}
    return Scores(figures, values, list(predictions), found.bleu_statistics.tolist())


BENCHMARKS = tuple(
    Benchmark(
        name=f"captions_json_{language}",
        task=f"caption_{language}",
        needs=f"captions.json, a list of {{file, {language}: captions}}, and the photos that it names",
        card=card,
        splits=("all",),
        metrics=tuple(name + unit for name in FIGURES),
        read=partial(read, language),
        score=partial(score, tokenizer, unit),
        submission=submission,
        of_sums={"BLEU-4" + unit: partial(bleu_of_sums, 4)},
        running=partial(running, tokenizer=tokenizer),
    )
    for language, card, tokenizer, unit in (
        ("zh", "flickr8k_cn", chinese.tokenize, " (characters)"),
        ("de", "multi30k", None, ""),
    )
)
