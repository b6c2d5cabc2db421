"""SugarCrepe: is a photo's caption preferred to a fluent false one, by a pair of encoders or by the task `match`?"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.benchmark import Benchmark, Item, Predictions, Scores, find_photo, layout, questions, read_json, written

if TYPE_CHECKING:
    import numpy as np

KINDS = ("replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att", "add_obj", "add_att")
FILE = "sugarcrepe.json"
MEAN, ALL = "mean over kinds", "all pairs"


def read(folder: Path, split: str) -> list[Item]:
    """`sugarcrepe.json`, a list of `{"file", "caption", "negative", "kind"}`; the true caption comes first.

    A file that holds both of the publisher's folders, `data/` and `data_unrefined/`, lists the pairs of `data/` twice.
    Those are the split `refined`, each counted once. The split `all` is the file as it is.
    """
    data = read_json(folder, FILE, written("a list of {file, caption, negative, kind} from the publisher's data/"))
    items: list[Item] = []
    seen: dict[tuple[str, ...], int] = {}
    with layout(folder / FILE):
        for number, record in enumerate(data):
            if record["kind"] not in KINDS:
                raise ValueError(f"kind {record['kind']!r} is none of {', '.join(KINDS)}")
            pair = record["file"], record["caption"], record["negative"], record["kind"]
            seen[pair] = seen.get(pair, 0) + 1
            if split == "refined" and seen[pair] != 2:
                continue
            photo, sentences = find_photo(folder, record["file"]), (record["caption"], record["negative"])
            items.append(Item(number, photo, sentences, groups={"kind": record["kind"]}))
    return items


def read_sentences(folder: Path, split: str) -> list[Item]:
    """Each pair as two items, each with one sentence to be judged; only that of the true caption is scored."""
    items = []
    for item in read(folder, split):
        true, false = item.references
        # the true caption comes last, so that `--limit` cuts off no sentence that it is compared with
        items += [
            replace(item, id=f"{item.id} negative", references=(), question=false, scored=False),
            replace(item, id=f"{item.id} caption", question=true),
        ]
    return items


def score_pairs(items: Sequence[Item], predictions: Predictions) -> Scores:
    """How often the true caption is nearer to the photo; a tie counts against the model."""
    return score(items, [(true, false) for true, false in predictions])


def score_sentences(items: Sequence[Item], predictions: Predictions) -> Scores:
    """How often the true caption is the likelier one; a tie counts against the model."""
    places = [place for place, item in enumerate(items) if item.scored]
    return score([items[place] for place in places], [(predictions[p], predictions[p - 1]) for p in places])


def score(items: Sequence[Item], pairs: Sequence[tuple[float, float]]) -> Scores:
    """Figures from the value of the true caption and that of the false one, for each pair.

    Sums are hits of each kind, and then pairs of each kind.
    """
    import numpy as np

    hits = [float(true > false) for true, false in pairs]
    kinds = np.array([[item.groups["kind"] == kind for kind in KINDS] for item in items], dtype=float)  # [pairs, kinds]
    sums = np.hstack([kinds * np.array(hits)[:, None], kinds])
    figures = {MEAN: float(mean_of_sums(sums.sum(0, keepdims=True))[0]), ALL: 100 * sum(hits) / len(hits)}
    shown = [f"{true:.3f}, the false caption {false:.3f}" for true, false in pairs]
    return Scores(figures, {ALL: [100 * hit for hit in hits]}, shown, sums.tolist())


def mean_of_sums(sums: "np.ndarray") -> "np.ndarray":
    """Mean over the kinds that occur, in points: `[draws, sums]` to `float64[draws]`."""
    import numpy as np

    hits, pairs = sums[:, : len(KINDS)], sums[:, len(KINDS) :]
    return 100 * (hits / np.maximum(pairs, 1)).sum(1) / (pairs > 0).sum(1)


def submission(items: Sequence[Item], predictions: Predictions) -> list[dict[str, Any]]:
    """There is no server: what was said of each pair or sentence."""
    return [{"id": item.id, "prediction": value} for item, value in zip(items, predictions, strict=True)]


def _benchmark(name: str, how: str, **parts: Any) -> Benchmark:
    return Benchmark(
        name=name,
        needs=f"{FILE}, a list of {{file, caption, negative, kind}}, and the photos that it names; {how}",
        card="sugarcrepe",
        splits=("all", "refined"),
        metrics=(MEAN, ALL),
        submission=submission,
        of_sums={MEAN: mean_of_sums},
        **parts,
    )


BENCHMARKS = (
    _benchmark("sugarcrepe", "by a pair of encoders", task="compare", read=read, score=score_pairs),
    _benchmark(
        "sugarcrepe_match",
        "by the probability that a sentence matches",
        task="match",
        columns=questions,
        read=read_sentences,
        score=score_sentences,
    ),
)
