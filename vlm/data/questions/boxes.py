"""Questions from boxes: how many there are and on which side."""

from collections.abc import Iterator, Mapping, Sequence

from vlm.data.questions.base import MadeQuestion, called
from vlm.data.questions.lexicon import lexicon, word_set
from vlm.data.questions.phrases import parse
from vlm.data.questions.scene import Scene

Box = Sequence[float]
SMALLEST = 0.004  # share of the picture: smaller things are overlooked
MOST = 6
ASIDE = 0.36  # a centre left of it is on the left; as far from the other edge, on the right
WIDEST = 0.55
SCENERY = word_set("scenery")
UNCOUNTED = {"book", "dining table", "banana", "broccoli", "carrot", "apple", "orange", "chair", "sports ball"}


def box_questions(
    scene: Scene, phrases: Sequence[Mapping], boxes: Sequence[Mapping], complete: bool
) -> Iterator[MadeQuestion]:
    """Counts and sides."""
    if complete:
        yield from _counts(scene, boxes)
    groups: dict[str, list[Box]] = {}
    if complete:
        for item in boxes:
            groups.setdefault(str(item["label"]), []).append(item["box"])
    for name, box in _entities(scene, phrases).items():
        groups.setdefault(name, []).extend(box)
    single = {name: found[0] for name, found in groups.items() if len(found) == 1 and name not in SCENERY}
    for name, box in single.items():
        side = _side(box)
        if side and _area(box) > 2 * SMALLEST:
            yield MadeQuestion(f"Which side of the picture is the {name} on?", side, "side")
            for asked in ("left", "right"):
                answer = "yes" if asked == side else "no"
                yield MadeQuestion(f"Is the {name} on the {asked} side of the picture?", answer, "side")
    names = list(single)
    for index, name in enumerate(names):
        for other in names[index + 1 :]:
            first, second = single[name], single[other]
            if min(_area(first), _area(second)) < 2 * SMALLEST or name in other or other in name:
                continue
            if first[2] <= second[0] + 0.02:
                yield MadeQuestion(f"Is the {name} to the left or right of the {other}?", "left", "side")
            elif second[2] <= first[0] + 0.02:
                yield MadeQuestion(f"Is the {name} to the left or right of the {other}?", "right", "side")


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _side(box: Box) -> str:
    middle = (box[0] + box[2]) / 2
    if box[2] - box[0] > WIDEST:
        return ""
    return "left" if middle < ASIDE else "right" if middle > 1 - ASIDE else ""


def _counts(scene: Scene, boxes: Sequence[Mapping]) -> Iterator[MadeQuestion]:
    words = lexicon()
    groups: dict[str, list[Box]] = {}
    for item in boxes:
        groups.setdefault(str(item["label"]), []).append(item["box"])
    for label, found in groups.items():
        if label in UNCOUNTED or len(found) > MOST or min(map(_area, found)) < SMALLEST or label not in words.nouns:
            continue
        concept = words.nouns[label].concept
        said = {p.number for p in scene.mentions(concept) if p.number}
        if (said and said != {len(found)}) or (any(p.vague for p in scene.mentions(concept)) and len(found) < 3):
            continue
        if len(found) == 1 and any(p.noun.plural and not p.noun.single for p in scene.mentions(concept)):
            continue
        yield MadeQuestion(f"How many {words.plurals[words.nouns[label].word]} are there?", str(len(found)), "count")


def _entities(scene: Scene, phrases: Sequence[Mapping]) -> dict[str, list[Box]]:
    """Boxes of things that are the only one of their kind, by what the captions call them."""
    found: dict[str, list[Box]] = {}
    seen: dict[str, str] = {}
    for phrase in phrases:
        boxes = phrase.get("boxes") or ()
        heads = parse(str(phrase.get("text", ""))).phrases
        if len(boxes) != 1 or len(heads) != 1 or phrase.get("scene") or phrase.get("entity") == "0":
            continue
        concept = heads[0].concept
        if (
            lexicon().sections[concept] in ("place", "clothing")
            or concept in SCENERY
            or not scene.unique(concept)
            or not heads[0].one
            or "clothing" in phrase.get("types", ())
        ):
            continue
        name = called(heads[0].noun)
        if seen.setdefault(str(phrase.get("entity", boxes[0])), name) != name:  # else the box says which thing it is
            continue
        if boxes[0] not in found.setdefault(name, []):
            found[name].append(boxes[0])
    return found
