"""Questions about the whole picture, from captions: which animal, which sport, who, how many where there is one."""

from collections import Counter
from collections.abc import Iterator

from vlm.data.questions.base import MadeQuestion, a, both, called
from vlm.data.questions.captions import most_said, named, pick, usual_name
from vlm.data.questions.clauses import Clause, clauses
from vlm.data.questions.lexicon import lexicon, word_set
from vlm.data.questions.scene import AGES, Scene

# any of the words -> the sport; a photo that names two has no sport question
SPORTS = {
    "tennis": "tennis",
    "soccer": "soccer",
    "baseball": "baseball",
    "basketball": "basketball",
    "volleyball": "volleyball",
    "hockey": "hockey",
    "rugby": "rugby",
    "skateboarder": "skateboarding",
    "skateboarding": "skateboarding",
    "surfer": "surfing",
    "surfing": "surfing",
    "snowboarder": "snowboarding",
    "snowboarding": "snowboarding",
    "skier": "skiing",
    "skiing": "skiing",
    "skis": "skiing",
}
# place -> what it is certainly not
ELSEWHERE = {
    "snow": ("in the water", "on a couch", "in a kitchen"),
    "water": ("in the snow", "on a couch", "in a kitchen"),
    "ocean": ("in the snow", "on a bed", "in a kitchen"),
    "pool": ("in the snow", "on a couch", "in a kitchen"),
    "field": ("in the water", "on a couch", "in a kitchen"),
    "grass": ("in the water", "on a couch", "in a kitchen"),
    "beach": ("in the snow", "on a couch", "in a kitchen"),
    "street": ("in the water", "on a bed", "in a kitchen"),
    "couch": ("in the snow", "in the water", "on a beach"),
    "bed": ("in the snow", "in the water", "on a beach"),
    "kitchen": ("in the snow", "in the water", "on a beach"),
}
ALSO = {
    "water": word_set("water") | word_set("wet"),
    "snow": word_set("snow") | {"ice", "sled", "sledding"},
    "couch": {"sofa", "loveseat", "couch"},
    "bed": {"bed", "bedroom"},
    "kitchen": {"kitchen"},
    "beach": {"beach", "sand", "shore", "ocean"},
}


def whole_questions(scene: Scene) -> Iterator[MadeQuestion]:
    """Everything that the captions answer about the picture as a whole."""
    said = [clause for caption in scene.captions for clause in clauses(caption)]
    yield from _animal(scene)
    yield from _sport(scene)
    yield from _who(scene, said)
    yield from _one(scene)
    yield from _somewhere(scene, said)
    yield from _dressed(scene)


def _animal(scene: Scene) -> Iterator[MadeQuestion]:
    sections = lexicon().sections
    seen = [concept for concept in scene.concepts if sections[concept] == "animal" and concept != "animal"]
    if len(seen) == 1 and scene.concepts[seen[0]] > 1 and not scene.words & word_set("false_animal"):
        text = ("What animal is in the picture?", "What kind of animal is this?")[
            bool(scene.unique(seen[0]) and not scene.mentions("person") and pick(scene, "animal", 2))
        ]
        yield MadeQuestion(text, seen[0], "object")


def _sport(scene: Scene) -> Iterator[MadeQuestion]:
    sports = Counter(
        sport for caption in scene.captions for sport in {SPORTS[token] for token in caption.tokens if token in SPORTS}
    )
    if len(sports) != 1 or "football" in scene.words:
        return
    sport, count = sports.most_common(1)[0]
    if sport == "skiing" and "water" in scene.words:
        return
    if count > 1 and scene.mentions("person") and not scene.words & {"video", "wii", "dog", "store", "ball", "balls"}:
        tail = ("is being played", "is this")[sport.endswith("ing") or pick(scene, "sport is", 2)]
        yield MadeQuestion(f"What sport {tail}?", sport, "object")


def _who(scene: Scene, said: list[Clause]) -> Iterator[MadeQuestion]:
    for verb in ("holding", "riding", "carrying", "throwing", "eating", "pushing", "pulling"):
        found = [c for c in said if c.verb == verb and c.thing and c.thing.one]
        people = {c.subject.concept for c in found}
        things = {c.thing.concept for c in found if c.thing}
        if len(things) != 1 or len(people) != 1 or not people <= set(AGES):
            continue
        thing = found[0].thing
        if thing is None or (thing.noun.animate and thing.concept != "horse") or not scene.unique(thing.concept):
            continue
        person = people.pop()
        if scene.unique(person) and thing.noun.section != "place":
            yield MadeQuestion(f"Who is {verb} the {thing.noun.word}?", person, "object")


def _one(scene: Scene) -> Iterator[MadeQuestion]:
    """One of a kind, where most captions agree on it."""
    words = lexicon()
    for concept in scene.concepts:
        if words.sections[concept] not in ("animal", "vehicle") and concept not in ("man", "woman", "boy", "girl"):
            continue
        if scene.concepts[concept] < 3 or not scene.unique(concept) or pick(scene, f"one {concept}", 3):
            continue
        if words.sections[concept] == "animal" and any(
            p.noun.section == "animal" and p.concept not in (concept, "animal") for _, p in scene.phrases
        ):
            continue
        if words.sections[concept] == "person" and not scene.only_person():
            continue
        if words.sections[concept] == "vehicle" and scene.words & word_set("street") - {concept}:
            continue
        name = "people" if words.sections[concept] == "person" else words.plurals[concept]
        yield MadeQuestion(f"How many {name} are there?", "1", "number")


def _somewhere(scene: Scene, said: list[Clause]) -> Iterator[MadeQuestion]:
    """Is the dog in the water? Only where every place that is said of it fits."""
    for concept in dict.fromkeys(c.subject.concept for c in said):
        known = [c for c in said if c.subject.concept == concept and c.place]
        if not known or not known[0].subject.one or not scene.unique(concept):
            continue
        place = most_said(Counter(c.place.concept for c in known if c.place))
        if place not in ELSEWHERE:
            continue
        first = next(c.place for c in known if c.place and c.place.concept == place)
        name = usual_name(scene, known[0].subject)
        choices = [c for c in ELSEWHERE[place] if not ALSO[c.split()[-1]] & scene.words]
        if choices:
            other = choices[pick(scene, f"elsewhere {name}", len(choices))]
            inside = place in ("snow", "water", "ocean", "pool", "field", "kitchen")
            start = "in" if inside else "on"
            yield from both(f"Is the {name} {start} the {named(first)}?", f"Is the {name} {other}?")


# clothes nobody mentions -> words that make their absence doubtful
NOT_WORN = {
    "wetsuit": word_set("water") | word_set("wet") | {"suit", "wet", "bodysuit", "water"},
    "swimsuit": word_set("water") | word_set("wet") | {"suit", "bikini", "bathing", "swim", "trunks", "shorts", "top"},
    "wedding dress": {"bride", "wedding", "dress", "gown", "married"},
    "life jacket": word_set("water") | word_set("wet") | {"vest", "jacket", "life", "raft", "kayak", "canoe"},
}  # fmt: skip


def _dressed(scene: Scene) -> Iterator[MadeQuestion]:
    """Is the man wearing a hat? True from "a man in" or "wearing a hat", false for what would have been said."""
    words = lexicon()
    for caption in scene.captions:
        for person in caption.phrases:
            worn = caption.at(person.end + 1)
            link = caption.tokens[person.end : person.end + 1]
            if worn is None or link not in (("in",), ("wearing",), ("wears",)) or not worn.clear:
                continue
            if person.concept not in AGES or not person.one or worn.noun.section != "clothing":
                continue
            if worn.concept in ("clothing", "collar", "harness") or not scene.unique(person.concept):
                continue
            choices = [c for c, doubt in NOT_WORN.items() if not (doubt | {c}) & scene.words and c != worn.concept]
            if person.concept not in ("woman", "girl"):
                choices = [c for c in choices if c != "wedding dress"]
            if not choices or (caption.tokens[worn.end - 1] != worn.noun.word.split()[-1] and not worn.noun.plural):
                continue
            name, other = called(person.noun), choices[pick(scene, f"worn {person.concept}", len(choices))]
            thing = words.plurals[worn.noun.word] if worn.noun.plural else a(worn.noun.word)
            yield from both(f"Is the {name} wearing {thing}?", f"Is the {name} wearing {a(other)}?")
            return
