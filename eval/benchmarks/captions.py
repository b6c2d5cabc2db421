"""Captioning: COCO with its official and Karpathy's splits, nocaps, and a plain `captions.json` beside a folder."""

import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.benchmark import (
    Benchmark,
    Item,
    Predictions,
    Scores,
    find_file,
    inside,
    layout,
    read_json,
    shipped,
    texts,
    written,
)
from vlm.errors import ArgumentError

if TYPE_CHECKING:
    import numpy as np

BLEU_SUMS = 10  # columns of `bleu_statistics`
METRICS = ("CIDEr", "BLEU-4", "ROUGE-L", "BLEU-1", "BLEU-2", "BLEU-3")
KARPATHY = "caption_datasets.zip of cs.stanford.edu/people/karpathy/deepimagesent"


def read_coco(folder: Path, split: str) -> list[Item]:
    """COCO's own splits by edition, and Karpathy's parts of val2014."""
    if split.startswith("karpathy_"):
        return [item for item, _ in read_karpathy(folder, "dataset_coco.json", split.removeprefix("karpathy_"))]
    edition = split[-4:]
    file = f"annotations/captions_{split}.json"
    data = read_json(folder, file, shipped(f"annotations_trainval{edition}.zip of cocodataset.org"))
    with layout(folder / file):
        captions = captions_by_image(data)
        return [
            Item(image["id"], inside(folder / split, image["file_name"]), tuple(captions[image["id"]]))
            for image in data["images"]
        ]


def captions_by_image(data: dict[str, Any]) -> dict[int, list[str]]:
    """The captions of an annotation file in COCO's format, in its order."""
    captions: dict[int, list[str]] = defaultdict(list)
    for annotation in data["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
    return captions


def read_karpathy(folder: Path, file: str, split: str, images: str | None = None) -> list[tuple[Item, dict[str, Any]]]:
    """One split of a file of Karpathy's archive, each item beside its record.

    Args:
        folder: given by the user.
        file: `dataset_coco.json` or one of its sisters.
        split: `train`, `restval`, `val` or `test`.
        images: folder of the photos, where the records do not name it.
    """
    data = read_json(folder, file, shipped(KARPATHY))
    found = []
    with layout(folder / file):
        for record in data["images"]:
            if record["split"] == split:
                image = inside(folder / (images or record["filepath"]), record["filename"])
                references = tuple(sentence["raw"] for sentence in record["sentences"])
                found.append((Item(record.get("cocoid", record["imgid"]), image, references), record))
    return found


def read_nocaps(folder: Path, split: str) -> list[Item]:
    """nocaps' validation part, whose photos lie in a folder `val`."""
    file = f"nocaps_{split}_4500_captions.json"
    data = read_json(folder, file, shipped(f"page nocaps.org/download and name it {file}"))
    with layout(folder / file):
        captions = captions_by_image(data)
        return [
            Item(
                image["id"],
                inside(folder / split, image["file_name"]),
                tuple(captions[image["id"]]),
                groups={"domain": image["domain"]},
            )
            for image in data["images"]
        ]


def read_plain(folder: Path, split: str) -> list[Item]:
    """`captions.json`, a list of `{"file", "captions"}` and perhaps `"id"`, the files relative to the folder."""
    form = written("a list of {file, captions} with the files relative to the folder")
    data = read_json(folder, "captions.json", form)
    with layout(folder / "captions.json"):
        return [
            Item(record.get("id", record["file"]), inside(folder, record["file"]), texts(record["captions"]))
            for record in data
        ]


def read_flickr8k(folder: Path, split: str) -> list[Item]:
    """Flickr8k's text files."""
    names = find_file(folder, f"Flickr_8k.{split}Images.txt", shipped("Flickr8k_text.zip")).read_text("utf-8").split()
    file = find_file(folder, "Flickr8k.token.txt", shipped("Flickr8k_text.zip"))
    captions: dict[str, list[str]] = defaultdict(list)
    with layout(file):
        for line in file.read_text("utf-8").splitlines():
            key, caption = line.split("\t")
            captions[key.rpartition("#")[0]].append(caption)
        lacking = next((name for name in names if name not in captions), None)
        if lacking:
            raise ValueError(f"no caption of {lacking}")
    return [Item(name, inside(folder / "Flicker8k_Dataset", name), tuple(captions[name])) for name in names]


def score(items: Sequence[Item], predictions: Predictions, java_metrics: Collection[str] = ()) -> Scores:
    """The official figures, with the document frequencies of these items' references.

    Sums are those of BLEU, ten, and then those of METEOR where it is asked for.
    """
    import numpy as np

    from eval.metrics.captions import caption_scores

    found = caption_scores(
        dict(enumerate(predictions)), {number: item.references for number, item in enumerate(items)}, java_metrics
    )
    warn_of_one(items)
    figures = {name: 100 * found.corpus[name] for name in (*METRICS, *java_metrics)}
    kept = [name for name in ("CIDEr", "ROUGE-L", "SPICE") if name in figures]  # METEOR is no mean over images
    values = {name: [100 * float(value) for value in found.per_image[name]] for name in kept}
    sums = found.bleu_statistics
    if "METEOR" in java_metrics:
        sums = np.hstack([sums, found.meteor_statistics])
    return Scores(figures, values, list(predictions), sums.tolist())


def warn_of_one(items: Sequence[Item]) -> None:
    """Say that CIDEr tells nothing of a single photo."""
    if len(items) == 1:
        warnings.warn(
            "CIDEr of one photo is 0: it weighs words by how many photos they are rare in; score more photos",
            stacklevel=3,
        )


def with_java_metrics(benchmark: Benchmark, names: Collection[str]) -> Benchmark:
    """The benchmark with METEOR, SPICE or both among its figures.

    Raises:
        ArgumentError: it is not about captions, or Java or the metric's files are missing.
    """
    from eval.metrics.captions import require_java

    able = [known.name for known in BENCHMARKS]
    if benchmark.name not in able:
        raise ArgumentError(f"{benchmark.name} has no {' or '.join(names)}; --java-metrics is for {', '.join(able)}")
    for name in names:
        require_java(name)
    return replace(benchmark, metrics=(*benchmark.metrics, *names), score=partial(score, java_metrics=tuple(names)))


def bleu_of_sums(order: int, sums: "np.ndarray") -> "np.ndarray":
    """BLEU up to an order, in points of a hundred, from sums of `score`: `[draws, sums]` to `float64[draws]`."""
    from eval.metrics.bleu import bleu_of

    return 100 * bleu_of(sums[:, :BLEU_SUMS])[:, order - 1]


def meteor_of_sums(sums: "np.ndarray") -> "np.ndarray":
    """METEOR, in points of a hundred, likewise."""
    from eval.metrics.meteor import meteor_of

    return 100 * meteor_of(sums[:, BLEU_SUMS:])


def running(items: Sequence[Item], tokenizer: Callable[[str], list[str]] | None = None) -> Callable[[Item, str], float]:
    """CIDEr of one caption, with the document frequencies of all items; tokens are those of English unless told."""
    from eval.metrics.cider import CiderScorer
    from eval.metrics.ptb import tokenize as tokenize_english

    tokenize = tokenizer or tokenize_english
    scorer = CiderScorer([[tokenize(caption) for caption in item.references] for item in items])
    numbers = {item.id: number for number, item in enumerate(items)}
    return lambda item, caption: 100 * scorer.score(numbers[item.id], tokenize(caption))


def submission(items: Sequence[Item], predictions: Predictions) -> list[dict[str, Any]]:
    """What COCO's and nocaps' servers take."""
    return [{"image_id": item.id, "caption": text} for item, text in zip(items, predictions, strict=True)]


OF_SUMS = {f"BLEU-{order}": partial(bleu_of_sums, order) for order in range(1, 5)} | {"METEOR": meteor_of_sums}

BENCHMARKS = (
    Benchmark(
        name="coco_caption",
        task="caption",
        needs="dataset_coco.json (Karpathy) or annotations/captions_SPLIT.json, and val2014/ or val2017/",
        card="coco_captions",
        splits=("karpathy_test", "karpathy_val", "val2014", "val2017"),
        metrics=METRICS,
        read=read_coco,
        score=score,
        submission=submission,
        of_sums=OF_SUMS,
        running=running,
    ),
    Benchmark(
        name="nocaps",
        task="caption",
        needs="nocaps_val_4500_captions.json and val/",
        card="nocaps",
        splits=("val",),
        metrics=METRICS,
        read=read_nocaps,
        score=score,
        submission=submission,
        of_sums=OF_SUMS,
        running=running,
    ),
    Benchmark(
        name="flickr8k_caption",
        task="caption",
        needs="Flickr8k.token.txt, Flickr_8k.testImages.txt and Flicker8k_Dataset/",
        card="flickr8k",
        splits=("test", "dev"),
        metrics=METRICS,
        read=read_flickr8k,
        score=score,
        submission=submission,
        of_sums=OF_SUMS,
        running=running,
    ),
    Benchmark(
        name="captions_json",
        task="caption",
        needs="captions.json, a list of {file, captions}, and the photos that it names",
        card="coco_captions",
        splits=("all",),
        metrics=METRICS,
        read=read_plain,
        score=score,
        submission=submission,
        of_sums=OF_SUMS,
        running=running,
    ),
)
