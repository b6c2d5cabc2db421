"""Is there one? True from what captions and boxes name, false from what nobody names."""

from collections.abc import Iterator, Mapping, Sequence

from vlm.data.questions.base import MadeQuestion, a
from vlm.data.questions.captions import pick
from vlm.data.questions.lexicon import lexicon, word_set
from vlm.data.questions.phrases import parse
from vlm.data.questions.scene import Scene

STREET = word_set("street")
ROOM = word_set("room")
WATER = word_set("water")
LAND = word_set("land")
SKY = word_set("sky")
SNOW = word_set("snow")
# what may be asked for although it is not there -> words that make its absence doubtful
ABSENT: dict[str, set[str]] = {
    "dog": STREET | {"leash", "pet"},
    "cat": {"pet", "kitten"},
    "horse": LAND | {"carriage", "jockey", "rodeo", "polo", "cowboy", "rider"},
    "cow": LAND | {"bull", "rodeo"},
    "sheep": LAND,
    "elephant": {"zoo", "circus", "statue"},
    "giraffe": {"zoo"},
    "zebra": {"zoo"},
    "train": {"station", "tracks", "railroad", "platform", "railway"} | STREET,
    "airplane": SKY | {"jet"},
    "bus": STREET | {"station", "road"},
    "boat": WATER | {"canoe", "raft", "kayak", "paddle", "sail", "ship"},
    "motorcycle": STREET | {"bike", "bikes", "biker", "rider", "motor", "moped", "race", "motocross"},
    "bike": STREET | {"cyclist", "biker", "rider", "wheel", "bmx", "cycling", "biking"},
    "skateboard": {"ramp", "skate", "skating", "skateboarder", "skateboarding", "trick", "board", "rail"} | STREET,
    "surfboard": WATER | {"surfer", "surfing", "surf", "wave", "waves", "board"},
    "pizza": ROOM | {"food", "eating", "meal", "dinner", "slice", "plate"},
    "cake": ROOM | {"food", "eating", "party", "birthday", "wedding", "dessert", "candles"},
    "umbrella": STREET | WATER | {"rain", "restaurant", "patio", "crowd", "outside"},
    "laptop": ROOM | {"computer", "sitting", "desk"},
    "bed": ROOM | {"sleeping", "laying", "lying", "pillow", "blanket"},
    "couch": ROOM | {"sitting", "sofa", "sits", "laying", "lying"},
    "toilet": ROOM,
    "guitar": {"band", "music", "instrument", "instruments", "stage", "concert", "musician", "playing", "singing"},
    "kite": WATER | SKY | {"park", "field"},
    "frisbee": word_set("near_ball") | {"disc", "disk", "catching", "throwing"},
    "ball": word_set("near_ball"),
    "tree": word_set("near_tree"),
}  # fmt: skip
WEIGHTS = {"dog": 5, "cat": 3, "horse": 3, "bike": 3, "ball": 3, "boat": 2, "bus": 2, "train": 2, "skateboard": 2}
BODY = word_set("body")  # fmt: skip
SOLID = ("animal", "vehicle")
SAFE_THINGS = word_set("safe_things")
FALSE_ANIMAL = word_set("false_animal")  # fmt: skip
NOT_THERE = {"no", "without"}
MAX_ASKED = 4  # true ones, and as many false ones


def presence_questions(
    scene: Scene, phrases: Sequence[Mapping], boxes: Sequence[Mapping], complete: bool
) -> Iterator[MadeQuestion]:
    """As many questions with "yes" as with "no"."""
    there = _there(scene)
    named = set(scene.concepts) | {label for box in boxes for label in _concepts(str(box["label"]))}
    named |= {concept for phrase in phrases for concept in _concepts(str(phrase.get("text", "")))}
    absent = _absent(scene, named, len(scene.captions))
    count = min(len(there), len(absent), MAX_ASKED)
    for turn in range(count):
        concept = there.pop(pick(scene, f"there {turn}", len(there)))
        yield MadeQuestion(_ask(scene, concept, turn), "yes", "presence")
        other = absent[pick(scene, f"absent {turn}", len(absent))]
        absent = [name for name in absent if name != other]
        yield MadeQuestion(_ask(scene, other, turn + MAX_ASKED), "no", "presence")
        if not absent:
            return


def _ask(scene: Scene, concept: str, turn: int) -> str:
    words = lexicon()
    plural = words.plurals[concept]
    tail = ("in the picture", "in this photo", "in the image", "in the picture")[pick(scene, f"tail {turn}", 4)]
    if words.nouns[concept].plural:
        return f"Are there {concept} {tail}?"
    form = pick(scene, f"form {concept}", 4)
    if form == 0 and plural != concept:
        return f"Are there any {plural} {tail}?"
    return f"Is there {a(concept)} {tail}?"


def _concepts(text: str) -> set[str]:
    return {phrase.concept for phrase in parse(text).phrases}


def _there(scene: Scene) -> list[str]:
    """What is surely to be seen: named in two captions, or in one as something that stands out."""
    words = lexicon()
    found = []
    for concept, count in scene.concepts.items():
        mentions = [p for _, p in scene.phrases if p.concept == concept]
        section = words.sections[concept]
        if count < 2 or not all(p.clear for p in mentions):
            continue
        if any(NOT_THERE & {p.determiner} or FALSE_ANIMAL & set(p.modifiers) for p in mentions):
            continue
        if section in SOLID or concept in SAFE_THINGS or concept in ("man", "woman", "boy", "girl", "person", "child"):
            if section == "animal" and scene.words & FALSE_ANIMAL:
                continue
            if (
                words.sections[concept] == "person"
                and concept in ("man", "woman", "boy", "girl")
                and scene.disputed(concept)
            ):
                continue
            found.append(concept)
    return found


def _absent(scene: Scene, named: set[str], captions: int) -> list[str]:
    words = lexicon()
    found: list[str] = []
    if captions < 3:
        return found
    for concept, doubt in ABSENT.items():
        if any(words.related(concept, name) or _near(concept, name) for name in named):
            continue
        if doubt & (scene.words | named) or concept in scene.words:
            continue
        found += [concept] * WEIGHTS.get(concept, 1)
    if not any(words.sections.get(name) == "person" for name in named) and not scene.words & BODY:
        found += ["person"] * 4 + ["man"] * 2 + ["woman"] * 2
    people = {name for name in named if words.sections.get(name) == "person"}
    if scene.only_person():
        if people and people <= {"woman", "girl"}:
            found += ["man"] * 3 + ["boy"]
        elif people and people <= {"man", "boy"}:
            found += ["woman"] * 3 + ["girl"]
    return found


def _near(concept: str, name: str) -> bool:
    wider = lexicon().wider
    return bool((wider.get(concept, set()) & wider.get(name, set())) - {"animal", "vehicle", "person", "toy"})
