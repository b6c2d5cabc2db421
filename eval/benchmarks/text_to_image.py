"""Text-to-image, from images that are given: their fit to the prompts, and their distance from real photos."""

from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from eval.benchmark import Benchmark, Item, Predictions, Scores, inside, layout, read_json, texts, written
from vlm.errors import DataError

PROMPTS = "prompts.json"
GENERATED, REAL = "generated", "real"
SEED = 0  # of KID's subsets


def read_prompts(folder: Path, split: str) -> list[Item]:
    """`prompts.json`, a list of `{"file", "prompt"}` and perhaps `"captions"` and `"id"`; the prompt comes first."""
    form = written("a list of {file, prompt} with the files relative to the folder")
    data = read_json(folder, PROMPTS, form)
    with layout(folder / PROMPTS):
        return [
            Item(record.get("id", record["file"]), inside(folder, record["file"]), _texts(record)) for record in data
        ]


def _texts(record: dict[str, Any]) -> tuple[str, ...]:
    prompt, captions = record["prompt"], record.get("captions", [])
    if not isinstance(prompt, str):
        raise ValueError(f"{record['file']}: the prompt must be text")
    return (prompt, *(texts(captions) if captions else ()))


def score_prompts(items: Sequence[Item], predictions: Predictions) -> Scores:
    """CLIPScore of each image and its prompt; RefCLIPScore too where all prompts come with captions."""
    from eval.metrics.clip_score import clip_scores, ref_clip_score

    images, prompts = _embeddings(predictions)
    values = {"CLIPScore": (100 * clip_scores(images, prompts)).tolist()}
    if all(len(item.references) > 1 for item in items):
        from eval.models import unpack

        values["RefCLIPScore"] = [
            100 * ref_clip_score(image, prompt, unpack(prediction["texts"][1:]))
            for image, prompt, prediction in zip(images, prompts, predictions, strict=True)
        ]
    figures = {name: sum(found) / len(found) for name, found in values.items()}
    return Scores(figures, values, [f"CLIPScore {value:.1f}" for value in values["CLIPScore"]])


def _embeddings(predictions: Predictions) -> tuple[Any, Any]:
    """Of all images and of their prompts, `float32[images, dim]` each."""
    from eval.models import unpack

    return unpack([p["image"] for p in predictions]), unpack([p["texts"][0] for p in predictions])


def prompts_submission(items: Sequence[Item], predictions: Predictions) -> list[dict[str, Any]]:
    """There is no server: the score of each image with its prompt."""
    from eval.metrics.clip_score import clip_scores

    scores = (100 * clip_scores(*_embeddings(predictions))).tolist()
    return [
        {"image": item.id, "prompt": item.references[0], "CLIPScore": score}
        for item, score in zip(items, scores, strict=True)
    ]


def read_folders(folder: Path, split: str) -> list[Item]:
    """The images of both folders in turns, so that `--limit` takes as many of either."""
    from vlm.files.photos import expand_paths

    sets = []
    for name in (GENERATED, REAL):
        if not (folder / name).is_dir():
            raise DataError(
                f"{str(folder / name)!r} is not a folder; put images into {GENERATED}/ and photos into {REAL}/"
            )
        images = expand_paths([str(folder / name)])
        sets.append([Item(f"{name}/{image.name}", image, scored=name == GENERATED) for image in images])
    return [item for item in chain.from_iterable(zip_longest(*sets)) if item]


def score_distance(items: Sequence[Item], predictions: Predictions) -> Scores:
    """FID, and a thousand times KID, between the generated images and the real ones."""
    import numpy as np

    from eval.metrics.distances import SUBSETS, frechet_distance, kernel_distance
    from eval.models import unpack

    features, scored = unpack(predictions), np.array([item.scored for item in items])
    generated, real = features[scored], features[~scored]
    kernel = kernel_distance(generated, real, np.random.default_rng(SEED))
    figures = {"FID": frechet_distance(generated, real), "KID x 1000": 1000 * kernel.mean}
    settings = {
        "real images": len(real),
        "KID subsets": SUBSETS,
        "KID subset size": kernel.subset_size,
        "KID x 1000 deviation": 1000 * kernel.deviation,
    }
    return Scores(figures, {}, [""] * len(generated), settings=settings)


def distance_submission(items: Sequence[Item], predictions: Predictions) -> list[dict[str, Any]]:
    """There is no server, and no image has a figure of its own: which ones were measured."""
    return [{"image": item.id} for item in items]


BENCHMARKS = (
    Benchmark(
        name="text_to_image",
        task="embed",
        needs="prompts.json, a list of {file, prompt} or {file, prompt, captions}, and the images that it names",
        card="text_to_image",
        splits=("all",),
        metrics=("CLIPScore", "RefCLIPScore"),
        read=read_prompts,
        score=score_prompts,
        submission=prompts_submission,
    ),
    Benchmark(
        name="text_to_image_fid",
        task="featurize",
        needs="generated/ and real/, folders of images; --model inception:FILE for the published FID and KID",
        card="text_to_image",
        splits=("all",),
        metrics=("FID", "KID x 1000"),
        read=read_folders,
        score=score_distance,
        submission=distance_submission,
    ),
)
