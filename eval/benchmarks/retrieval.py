"""Retrieval between photos and captions: Flickr8k, Flickr30k, COCO in its 5k and 1k protocols, and plain folders.

Each photo counts with its first five captions. A caption finds its photo among all photos of the split; a photo finds
any of its captions among all captions.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.benchmark import Benchmark, Item, Predictions, Scores
from eval.benchmarks.captions import read_flickr8k, read_karpathy, read_plain

if TYPE_CHECKING:
    import numpy as np

CAPTIONS = 5  # COCO's test photos have five to seven; papers rank 25,000 captions
FOLD = 1000  # photos of COCO's 1k protocol, whose figures are means over five such galleries
NEIGHBOURS = 10  # listed for each query in predictions.json
RECALLS = (1, 5, 10)
METRICS = tuple(f"{way} recall@{k}" for k in RECALLS for way in ("text-to-image", "image-to-text"))


def read_coco(folder: Path, split: str) -> list[Item]:
    """Karpathy's test photos; both protocols read the same."""
    return first_captions([item for item, _ in read_karpathy(folder, "dataset_coco.json", split.partition("_")[0])])


def read_flickr30k(folder: Path, split: str) -> list[Item]:
    """Karpathy's split of Flickr30k."""
    found = read_karpathy(folder, "dataset_flickr30k.json", split, images="flickr30k-images")
    return first_captions([item for item, _ in found])


def first_captions(items: Sequence[Item]) -> list[Item]:
    """The items with the captions that count."""
    return [replace(item, references=item.references[:CAPTIONS]) for item in items]


def features(predictions: Predictions) -> tuple["np.ndarray", "np.ndarray"]:
    """Embeddings of all photos and of all captions: `float32[photos, dim]`, `float32[captions, dim]`."""
    from eval.models import unpack

    return unpack([p["image"] for p in predictions]), unpack([text for p in predictions for text in p["texts"]])


def scorer(fold: int | None) -> Callable[[Sequence[Item], Predictions], Scores]:
    """Recall in both directions, among all photos or as a mean over galleries of `fold` photos."""

    def score(items: Sequence[Item], predictions: Predictions) -> Scores:
        size = fold or len(items)
        hits: dict[str, list[float]] = {name: [] for name in METRICS}  # of each photo, as a share of its captions
        shown: list[str] = []
        for start in range(0, len(items), size):
            part = slice(start, start + size)
            _score_gallery(items[part], predictions[part], hits, shown)
        captions = sum(len(item.references) for item in items) / len(items)
        values = {
            name: [100 * hit / (captions if name.startswith("text") else 1) for hit in found]
            for name, found in hits.items()
        }
        return Scores({name: sum(found) / len(found) for name, found in values.items()}, values, shown)

    return score


def _score_gallery(
    items: Sequence[Item], predictions: Predictions, hits: dict[str, list[float]], shown: list[str]
) -> None:
    """Count the captions of each photo that find it, and whether the photo finds one; add both to `hits`."""
    import numpy as np

    from eval.metrics.retrieval import ranks_from_features

    images, texts = features(predictions)
    owners = np.repeat(np.arange(len(items)), [len(item.references) for item in items])
    ranks = ranks_from_features(images, texts, owners)
    for k in RECALLS:
        found = np.bincount(owners, ranks.text_to_image <= k, minlength=len(items))
        hits[f"text-to-image recall@{k}"] += found.tolist()
        hits[f"image-to-text recall@{k}"] += (ranks.image_to_text <= k).astype(float).tolist()
    captions = [caption for item in items for caption in item.references]
    shown += [captions[best[0]] for best in nearest(images, texts, 1)]


def nearest(queries: "np.ndarray", candidates: "np.ndarray", count: int) -> list[list[int]]:
    """Rows of the candidates with the largest inner products, for each query, the best first."""
    found = []
    for start in range(0, len(queries), 256):  # COCO's 5,000 photos and 25,000 captions are half a gigabyte of scores
        scores = queries[start : start + 256] @ candidates.T
        found += (-scores).argsort(axis=1, kind="stable")[:, :count].tolist()
    return found


def submission(items: Sequence[Item], predictions: Predictions) -> dict[str, Any]:
    """There is no server for these sets: what each query finds, the best first; a caption is photo id and place."""
    images, texts = features(predictions)
    captions = [[item.id, place] for item in items for place in range(len(item.references))]
    return {
        "text_to_image": [
            {"caption": caption, "images": [items[row].id for row in rows]}
            for caption, rows in zip(captions, nearest(texts, images, NEIGHBOURS), strict=True)
        ],
        "image_to_text": [
            {"image": item.id, "captions": [captions[row] for row in rows]}
            for item, rows in zip(items, nearest(images, texts, NEIGHBOURS), strict=True)
        ],
    }


BENCHMARKS = tuple(
    Benchmark(
        name=name,
        task="embed",
        needs=needs,
        card=card,
        splits=splits,
        metrics=METRICS,
        read=read,
        score=scorer(fold),
        submission=submission,
    )
    for name, needs, card, splits, read, fold in (
        (
            "flickr8k_retrieval",
            "Flickr8k.token.txt, Flickr_8k.testImages.txt and Flicker8k_Dataset/",
            "flickr8k",
            ("test", "dev"),
            read_flickr8k,
            None,
        ),
        (
            "flickr30k_retrieval",
            "dataset_flickr30k.json (Karpathy) and flickr30k-images/",
            "flickr30k",
            ("test", "val"),
            read_flickr30k,
            None,
        ),
        (
            "coco_retrieval_5k",
            "dataset_coco.json (Karpathy) and val2014/",
            "coco_karpathy",
            ("test", "val"),
            read_coco,
            None,
        ),
        (
            "coco_retrieval_1k",
            "dataset_coco.json (Karpathy) and val2014/; means over five galleries of 1,000 photos",
            "coco_karpathy",
            ("test", "val"),
            read_coco,
            FOLD,
        ),
        (
            "retrieval_json",
            "captions.json, a list of {file, captions}, and the photos that it names",
            "coco_captions",
            ("all",),
            lambda folder, split: first_captions(read_plain(folder, split)),
            None,
        ),
    )
)
