"""Figures and rewards of training, by the names that tasks give them (`metric` and `reward` of `vlm.tasks`)."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm.train.run import Measures


def caption_figures(hypotheses: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """CIDEr and BLEU-4, in points of a hundred."""
    from eval.metrics.captions import caption_scores

    corpus = caption_scores(hypotheses, references).corpus
    return {name: 100 * corpus[name] for name in ("CIDEr", "BLEU-4")}


def chinese_figures(hypotheses: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """CIDEr and BLEU-4 of Chinese sentences, whose tokens are their characters, in points of a hundred."""
    from eval.metrics.captions import caption_scores
    from eval.metrics.chinese import tokenize

    corpus = caption_scores(hypotheses, references, tokenizer=tokenize).corpus
    return {name: 100 * corpus[name] for name in ("CIDEr", "BLEU-4")}


def box_figures(found: Mapping[str, str], right: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Share of boxes, JSON lists, that overlap the right one by half of their union, in points of a hundred."""
    from eval.metrics.grounding import grounding_hits

    # fractions to thousandths: the metric is made for pixels
    boxes = [[1000 * value for value in json.loads(box)] for box in found.values()]
    targets = [[1000 * value for value in json.loads(right[key][0])] for key in found]
    return {"accuracy@0.5": 100 * float(grounding_hits(boxes, targets).mean()), "phrases": len(boxes)}


def probability_figures(found: Mapping[str, str], right: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Share of probabilities on the right side of a half, `yes` or `no`, in points of a hundred."""
    hits = [(float(value) >= 0.5) == (right[key][0] == "yes") for key, value in found.items()]
    return {"accuracy": 100 * sum(hits) / len(hits), "sentences": len(hits)}


def answer_figures(answers: Mapping[str, str], people: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Accuracy against several people or the one right answer, in points of a hundred."""
    from eval.benchmark import Item
    from eval.benchmarks.vqa import accuracy

    scores = [accuracy(Item(key, Path(), tuple(people[key])), answer) for key, answer in answers.items()]
    return {"accuracy": sum(scores) / len(scores), "questions": len(scores)}


def retrieval_figures(image_features: Any, text_features: Any, owners: Any) -> dict[str, float]:
    """Recall at 1 and 10 in both directions, in points of a hundred."""
    from eval.metrics.retrieval import ranks_from_features

    figures = ranks_from_features(image_features, text_features, owners).summary()
    short = {"text_to_image": "t2i", "image_to_text": "i2t"}
    return {f"{short[way]} R@{k}": 100 * figures[f"{way}/recall@{k}"] for way in short for k in (1, 10)}


def cider_reward(captions: Sequence[Sequence[str]]) -> Callable[[int, Sequence[str]], list[float]]:
    """CIDEr-D of sentences about training photos, with the document frequencies of all their captions.

    Args:
        captions: of each training photo.

    Returns:
        From the number of a photo, and sentences, to a reward each.
    """
    from eval.metrics.cider import CiderScorer
    from eval.metrics.ptb import tokenize

    def tokens(caption: str) -> list[str]:
        return [*tokenize(caption), "</s>"]  # the end counts as a token, or sentences learn to break off

    scorer = CiderScorer([[tokens(caption) for caption in of_photo] for of_photo in captions])
    return lambda photo, sentences: scorer.scores([photo] * len(sentences), [tokens(s) for s in sentences]).tolist()


MEASURES = Measures(
    metrics={
        "captions": caption_figures,
        "captions_chinese": chinese_figures,
        "answers": answer_figures,
        "boxes": box_figures,
        "probabilities": probability_figures,
        "retrieval": retrieval_figures,
    },
    rewards={"cider": cider_reward},
)
