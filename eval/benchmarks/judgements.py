"""Human judgements of captions for Flickr8k's photos: does CLIPScore rank captions as people do?

The protocol is that of CLIPScore (Hessel et al., 2021, section 4 and appendix A): `2.5 max(cos, 0)` of the photo and
the caption with "A photo depicts" before it, no reference captions, and Kendall's tau over the captions of all photos
together.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from eval.benchmark import Benchmark, Item, Predictions, Scores, find_photo, layout, read_json, written

PREFIX = "A photo depicts "
SEED = 0  # of the bootstrap's draws


def read(file: str, fields: str, folder: Path, split: str) -> list[Item]:
    """Captions with what people said of each; one item a photo, so that intervals draw photos."""
    data = read_json(folder, file, written(f"a list of {{image, caption, {fields}}}"))
    photos: dict[str, list[dict[str, Any]]] = {}
    with layout(folder / file):
        for record in data:
            photos.setdefault(record["image"], []).append(record)
        return [
            Item(
                name,
                find_photo(folder, name),
                tuple(PREFIX + record["caption"] for record in records),
                ratings=tuple(_ratings(record) for record in records),
            )
            for name, records in photos.items()
        ]


def _ratings(record: dict[str, Any]) -> tuple[float, ...]:
    """Each expert's score, or the share of people who said yes."""
    if isinstance(record.get("scores"), str):
        raise ValueError(f"scores={record['scores']!r} where a list of numbers belongs")
    return tuple(map(float, record["scores"])) if "scores" in record else (float(record["yes_share"]),)


def score(variant: str, items: Sequence[Item], predictions: Predictions) -> Scores:
    """Kendall's tau of CLIPScore and judgements, a row for each of them, with an interval from draws of photos.

    Raises:
        DataError: all scores or all judgements are equal.
    """
    import numpy as np

    from eval.metrics.bootstrap import bootstrap_counts
    from eval.metrics.clip_score import WEIGHT
    from eval.metrics.kendall import KendallTau

    name = f"Kendall tau-{variant}"
    scores = [[100 * WEIGHT * max(cosine, 0.0) for cosine in cosines] for cosines in predictions]
    rows = [
        (photo, value, rating)
        for photo, (item, values) in enumerate(zip(items, scores, strict=True))
        for value, ratings in zip(values, item.ratings, strict=True)
        for rating in ratings
    ]
    photo_of_row = np.array([photo for photo, _, _ in rows])
    tau = KendallTau([value for _, value, _ in rows], [rating for _, _, rating in rows])
    found = bootstrap_counts(
        lambda counts: 100 * tau(variant, counts[photo_of_row]), len(items), np.random.default_rng(SEED)
    )
    return Scores(
        {name: found.value},
        {},
        [f"CLIPScore {min(values):.1f} to {max(values):.1f}" for values in scores],
        settings={"prefix": PREFIX.strip(), "captions": sum(map(len, scores)), "judgements": len(rows)},
        intervals={name: (found.low, found.high)},
    )


def submission(items: Sequence[Item], predictions: Predictions) -> list[dict[str, Any]]:
    """There is no server: the cosine of each caption with its photo."""
    return [
        {"image": item.id, "caption": caption.removeprefix(PREFIX), "cosine": cosine}
        for item, cosines in zip(items, predictions, strict=True)
        for caption, cosine in zip(item.references, cosines, strict=True)
    ]


BENCHMARKS = tuple(
    Benchmark(
        name=name,
        task="compare",
        needs=f"{file}, a list of {{image, caption, {fields}}}, and the photos that it names",
        card="flickr8k_judgements",
        splits=("test",),
        metrics=(f"Kendall tau-{variant}",),
        read=partial(read, file, fields),
        score=partial(score, variant),
        submission=submission,
    )
    for name, file, fields, variant in (
        ("flickr8k_expert", "expert.json", "scores", "c"),
        ("flickr8k_crowdflower", "crowdflower.json", "yes_share", "b"),
    )
)
