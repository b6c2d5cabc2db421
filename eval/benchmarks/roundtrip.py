"""Both directions in one model: a text to a picture to a text, and a photo to a text to a picture."""

from collections.abc import Sequence
from typing import Any

from eval.benchmark import OF_REAL, Benchmark, Item, Predictions, Scores
from eval.benchmarks.captions import warn_of_one
from eval.benchmarks.drawing import read_captions_and_references


def score(items: Sequence[Item], predictions: Predictions) -> Scores:
    """CIDEr of captions of drawings, and how near a picture that is drawn from a photo's caption comes to the photo.

    Beside them stand the CIDEr of captions of the real photos, which is the most that can be expected, and both figures
    with the drawing of the next item, which is what chance gives.
    """
    import numpy as np

    from eval.metrics.captions import caption_scores
    from eval.models import unpack

    warn_of_one(items)
    references = {number: item.references for number, item in enumerate(items)}
    texts = {
        "CIDEr": [found["recaption"] for found in predictions],
        f"CIDEr{OF_REAL}": [found["caption"] for found in predictions],
    }
    texts["CIDEr of shuffled drawings"] = [*texts["CIDEr"][1:], *texts["CIDEr"][:1]]
    values = {}
    for name, captions in texts.items():
        found = caption_scores(dict(enumerate(captions)), references, ())
        values[name] = [100 * float(value) for value in found.per_image["CIDEr"]]
    photos, redrawn = (unpack([found[name] for found in predictions]) for name in ("photo", "redrawn"))
    values["cosine with the photo x 100"] = (100 * (photos * redrawn).sum(1)).tolist()
    values["cosine with another photo x 100"] = (100 * (np.roll(photos, 1, axis=0) * redrawn).sum(1)).tolist()
    shown = [f"{found['recaption']} (photo: {found['caption']})" for found in predictions]
    return Scores({name: sum(own) / len(own) for name, own in values.items()}, values, shown)


def submission(items: Sequence[Item], predictions: Predictions) -> list[dict[str, Any]]:
    """There is no server: what was said of each drawing."""
    return [
        {"id": item.id, "prompt": item.question, "caption": found["recaption"]}
        for item, found in zip(items, predictions, strict=True)
    ]


BENCHMARKS = (
    Benchmark(
        name="roundtrip",
        task="roundtrip",
        needs="captions.json, a list of {file, captions}, and the photos that it names",
        card="products",
        splits=("all",),
        metrics=("CIDEr", f"CIDEr{OF_REAL}"),
        read=read_captions_and_references,
        score=score,
        submission=submission,
    ),
)
