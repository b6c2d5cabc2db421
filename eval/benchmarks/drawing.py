"""Pictures that the model draws itself: product photos and photos, judged by the encoders of `tiny`, and coloured
shapes, judged by their pixels."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.benchmark import OF_REAL, Benchmark, Item, Predictions, Scores, layout, shipped
from eval.benchmarks.captions import read_plain
from vlm.errors import DataError

if TYPE_CHECKING:
    import numpy as np

KINDS = {"type": "features", "colour": "colours"}  # what is judged, and by what the judge sees
COLOURS = {
    "Blue": "Navy Blue, Turquoise Blue, Teal",
    "Brown": "Tan, Coffee Brown, Copper, Bronze, Beige, Khaki, Taupe",
    "Green": "Olive, Sea Green, Fluorescent Green",
    "Grey": "Silver, Steel, Charcoal, Grey Melange",
    "Pink": "Magenta, Peach",
    "Purple": "Lavender, Mauve",
    "Red": "Maroon, Burgundy, Rust",
    "White": "Off White, Cream",
    "Yellow": "Mustard, Gold",
}
PLAIN = {shade: colour for colour, shades in COLOURS.items() for shade in shades.split(", ")}
KNOWN = 10  # training photos that a type or colour must have to be judged
PRODUCTS = 300  # test products that are drawn
SCENES, SCENE_SIZE = 500, 64
GALLERY = 100  # prompts among which a picture finds its own
NEAR = 1  # percentile of the real photos' distances from training below which a picture counts as memorised


def read_products(folder: Path, split: str) -> list[Item]:
    """`KEY.webp` beside `KEY.json` with `title`, `attributes` and `split`: products to draw, and training photos."""
    if not folder.is_dir():
        raise DataError(f"--data {str(folder)!r} is not a folder; unpack the shards of products into one")
    drawn: list[Item] = []
    known: list[Item] = []
    for path in sorted(folder.glob("*.json")):
        with layout(path):
            record = json.loads(path.read_bytes())
            kind, shade = (str(record["attributes"][name]) for name in ("subcategory", "colour"))
            about = {"type": kind, "colour": PLAIN.get(shade, shade)}
            title, image = str(record["title"]), path.with_suffix(".webp")
            if record["split"] == split:
                drawn.append(Item(path.stem, image, (title,), title, groups=about))
            elif record["split"] == "train":
                known.append(Item(path.stem, image, (title,), groups=about, scored=False))
    if not drawn or not known:
        remedy = shipped("shards of products, and unpack them into it: KEY.webp and KEY.json")
        raise DataError(f"{str(folder)!r} holds no products of the split {split!r}, or none of train; {remedy}")
    counts = {kind: Counter(item.groups[kind] for item in known) for kind in KINDS}
    usual = [item for item in drawn if all(counts[kind][item.groups[kind]] >= KNOWN for kind in KINDS)]
    return [*usual[:PRODUCTS], *known]


def read_captions(folder: Path, split: str) -> list[Item]:
    """The photos of `captions.json`; the prompt is the first caption."""
    return [replace(item, references=item.references[:1]) for item in read_captions_and_references(folder, split)]


def read_captions_and_references(folder: Path, split: str) -> list[Item]:
    """As `read_captions`, with all captions of each photo."""
    return [
        replace(item, question=item.references[0].strip().removesuffix(".").strip())
        for item in read_plain(folder, split)
    ]


def read_scenes(folder: Path, split: str) -> list[Item]:
    """Sentences about two things of generated scenes, each of a colour of its own; the scenes are drawn into a folder.

    The references are the two things and where the first is: "red circle", "blue star", "left".
    """
    from vlm.data.scenes import make_scene
    from vlm.data.scenes_text import WORDS, clear_pairs, matching, with_article
    from vlm.files.atomic import write_bytes

    items: list[Item] = []
    for number in count():
        scene = make_scene(f"{split}/{number}", SCENE_SIZE)
        pairs = (
            (a, b, direction)
            for a, b, direction in clear_pairs(scene.things)
            if all(len(matching(scene.things, thing.colour)) == 1 for thing in (a, b))
        )
        if pair := next(pairs, None):
            one, other = (f"{thing.colour} {thing.name}" for thing in pair[:2])
            where = WORDS.get(pair[2], (pair[2],))[-1]
            path = folder / f"{split}-{number:04d}.png"
            if not path.is_file() or path.read_bytes() != scene.encoded():  # an older version may have drawn another
                write_bytes(path, scene.encoded())
            prompt = f"{with_article(one)} is {where} {with_article(other)}"
            about = {"relation": pair[2]}
            items.append(Item(path.stem, path, (one, other, pair[2]), f"{prompt[0].upper()}{prompt[1:]}", groups=about))
        if len(items) == SCENES:
            return items
    raise AssertionError("scenes never end")


def score_scenes(items: Sequence[Item], predictions: Predictions) -> Scores:
    """Are both things there, in their colours, their shapes and their places? The real scenes' figures stand beside."""
    from PIL import Image

    from eval.metrics.shapes import find_shapes

    values: dict[str, list[float]] = {}
    shown = []
    for item, found in zip(items, predictions, strict=True):
        with Image.open(item.image) as picture:
            real = [asdict(thing) for thing in find_shapes(picture)]
        for of, things in (("", found["shapes"]), (OF_REAL, real)):
            points = _points(item, {thing["colour"]: thing for thing in things})
            for name, right in points.items():
                values.setdefault(f"{name}{of}", []).append(100.0 * right)
        shown.append(", ".join(f"{thing['colour']} {thing['shape']}" for thing in found["shapes"]) or "nothing")
    return Scores({name: sum(found) / len(found) for name, found in values.items()}, values, shown)


def _points(item: Item, things: Mapping[str, dict[str, Any]]) -> dict[str, bool]:
    """What is right about the two things that a prompt names, by the things that a picture shows of each colour."""
    one, other, direction = item.references
    colours = [name.split()[0] for name in (one, other)]
    there = all(colour in things for colour in colours)
    shapes = there and all(things[name.split()[0]]["shape"] == name.split()[1] for name in (one, other))
    place = False
    if there:
        a, b = (things[colour] for colour in colours)
        axis, sign = {"left": ("x", -1), "right": ("x", 1), "above": ("y", -1), "below": ("y", 1)}[direction]
        place = sign * (a[axis] - b[axis]) > 0
    return {"all right": shapes and place, "colours": there, "shapes": shapes, "relation": place}


def score_products(items: Sequence[Item], predictions: Predictions) -> Scores:
    """Is it the right thing in the right colour? The same judge's figures of the real photos stand beside it.

    The judge says the type whose training photos have the nearest mean in the tower's features, and the colour whose
    training photos have the nearest mean of colours.
    """
    import numpy as np

    from eval.models import unpack

    known = [(item, found) for item, found in zip(items, predictions, strict=True) if not item.scored]
    asked = [(item, found) for item, found in zip(items, predictions, strict=True) if item.scored]
    if not known or not asked:
        raise DataError("there are no products to draw, or no training photos to judge by; measure without --limit")
    values: dict[str, list[float]] = {}
    of_real: dict[str, list[float]] = {}
    shown = [""] * len(asked)
    for kind, sight in KINDS.items():
        names = [str(item.groups[kind]) for item, _ in known]
        judge = _nearest_mean(_unit(_array([found["real"] for _, found in known], sight)), names)
        truth = [str(item.groups[kind]) for item, _ in asked]
        said = judge(_array([found["drawn"] for _, found in asked], sight))
        values[f"{kind} accuracy"] = _hits(said, truth)
        real = judge(_array([found["real"] for _, found in asked], sight))
        of_real[f"{kind} accuracy{OF_REAL}"] = _hits(real, truth)
        shown = [f"{text} {name}".strip() for text, name in zip(shown, said, strict=True)]
    real, drawn = (_unit(_array([found[name] for _, found in asked], "features")) for name in ("real", "drawn"))
    photos = _unit(_array([found["real"] for _, found in known], "features"))
    values |= of_real | _of_prompts([found for _, found in asked])
    texts = unpack([found["text"] for _, found in asked])
    values["CLIPScore of the nearest training photo"] = _nearest(texts, _array([f["real"] for _, f in known], "vector"))
    distances = [1 - (rows @ photos.T).max(1) for rows in (real, drawn)]
    limit = np.percentile(distances[0], NEAR)
    values["memorised"] = (100.0 * (distances[1] < limit)).tolist()
    return _scores(values, shown, real, drawn)


def score_captions(items: Sequence[Item], predictions: Predictions) -> Scores:
    """Does the picture fit its prompt, and does it find it among others?"""
    from eval.models import unpack

    values = _of_prompts(predictions)
    if len(predictions) > 1:
        texts = unpack([found["text"] for found in predictions])
        vectors = _array([found["real"] for found in predictions], "vector")
        values["CLIPScore of the nearest other photo"] = _nearest(texts, vectors, own=True)
    shown = [f"CLIPScore {value:.1f}" for value in values["CLIPScore"]]
    real, drawn = (_unit(_array([found[name] for found in predictions], "features")) for name in ("real", "drawn"))
    return _scores(values, shown, real, drawn)


def _of_prompts(predictions: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """CLIPScore of each picture with its prompt, beside another prompt and the real photo; and the prompt's rank.

    Args:
        predictions: of `DrawingModel.draw_items`, of items with prompts.
    """
    import numpy as np

    from eval.metrics.clip_score import clip_scores
    from eval.models import unpack

    texts = unpack([found["text"] for found in predictions])
    drawn, real = (_array([found[name] for found in predictions], "vector") for name in ("drawn", "real"))
    score = 100 * clip_scores(drawn, texts)
    others = 100 * clip_scores(drawn, np.roll(texts, 1, axis=0))
    values: dict[str, np.ndarray] = {"CLIPScore": score}
    values |= {f"CLIPScore{OF_REAL}": 100 * clip_scores(real, texts)}
    values |= {"CLIPScore of shuffled prompts": others, "CLIPScore gain over shuffled prompts": score - others}
    ranks = np.concatenate(
        [
            _ranks(drawn[start : start + GALLERY] @ texts[start : start + GALLERY].T)
            for start in range(0, len(texts), GALLERY)
        ]
    )
    for k in (1, 10):
        values[f"prompt found among {GALLERY}, R@{k}"] = np.where(ranks <= k, 100.0, 0.0)
    return {name: [float(value) for value in found] for name, found in values.items()}


def _nearest(texts: "np.ndarray", photos: "np.ndarray", own: bool = False) -> list[float]:
    """The best CLIPScore of each prompt with a photo: what a search would find instead of drawing.

    Args:
        texts: vectors of the prompts, `float32[prompts, dim]`.
        photos: vectors of the photos.
        own: whether these are the prompts' own photos, in order: a prompt then leaves its own out.
    """
    import numpy as np

    from eval.metrics.clip_score import WEIGHT

    cosines = _unit(texts) @ _unit(photos).T
    if own:
        np.fill_diagonal(cosines, -1)
    return [100 * WEIGHT * max(0.0, float(best)) for best in cosines.max(1)]


def _ranks(scores: "np.ndarray") -> "np.ndarray":
    """Rank of the diagonal in each row, from 1; ties count against it."""
    return (scores >= scores.diagonal()[:, None]).sum(1)


def _scores(values: dict[str, list[float]], shown: list[str], real: "np.ndarray", drawn: "np.ndarray") -> Scores:
    from eval.metrics.distances import frechet_distance

    figures = {name: sum(found) / len(found) for name, found in values.items()}
    if len(real) >= 4:
        # halves of different prompts, so that a drawn picture is compared with photos of other things, as a real one is
        figures["Frechet distance (tower) x 1000"] = 1000 * frechet_distance(drawn[::2], real[1::2])
        figures[f"Frechet distance (tower) x 1000{OF_REAL}"] = 1000 * frechet_distance(real[::2], real[1::2])
    return Scores(figures, values, shown)


def _nearest_mean(photos: "np.ndarray", names: Sequence[str]) -> Callable[["np.ndarray"], list[str]]:
    """A judge: features `[pictures, channels]` to the name whose photos have the nearest mean, by cosine."""
    import numpy as np

    kinds = sorted(name for name, count in Counter(names).items() if count >= KNOWN)
    means = _unit(np.stack([photos[[name == kind for name in names]].mean(0) for kind in kinds]))
    return lambda features: [kinds[place] for place in (features @ means.T).argmax(1)]


def _hits(said: Sequence[str], truth: Sequence[str]) -> list[float]:
    return [100.0 * (a == b) for a, b in zip(said, truth, strict=True)]


def _array(seen: Sequence[dict[str, str]], name: str) -> "np.ndarray":
    from eval.models import unpack

    return unpack([found[name] for found in seen])


def _unit(rows: "np.ndarray") -> "np.ndarray":
    import numpy as np

    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def submission(items: Sequence[Item], predictions: Predictions) -> list[dict[str, Any]]:
    """There is no server: what was drawn."""
    return [{"id": item.id, "prompt": item.question} for item in items]


CAPTIONS = Benchmark(
    name="draw_captions",
    task="draw",
    needs="captions.json, a list of {file, captions}, and the photos that it names",
    card="products",
    splits=("all",),
    metrics=("CLIPScore", "CLIPScore of shuffled prompts", f"CLIPScore{OF_REAL}"),
    read=read_captions,
    score=score_captions,
    submission=submission,
)
BENCHMARKS = (
    Benchmark(
        name="draw_products",
        task="draw",
        needs="the shards of products, unpacked: KEY.webp and KEY.json with {title, attributes, split}",
        card="products",
        splits=("test", "val"),
        metrics=tuple(f"{kind} accuracy{of}" for of in ("", OF_REAL) for kind in KINDS),
        read=read_products,
        score=score_products,
        submission=submission,
    ),
    CAPTIONS,
    replace(CAPTIONS, name="draw_captions_best", task="draw_best"),
    Benchmark(
        name="draw_scenes",
        task="draw",
        needs="no files: real scenes are drawn, into --data where it is given, otherwise into runs/drawn",
        card="scenes",
        splits=("test", "val"),
        metrics=("all right", f"all right{OF_REAL}"),
        read=read_scenes,
        score=score_scenes,
        submission=submission,
        drawn=True,
    ),
)
