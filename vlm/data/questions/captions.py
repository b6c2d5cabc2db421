"""Questions from what captions say: colours, numbers, objects, places, actions, and some to answer with yes or no."""

import zlib
from collections import Counter
from collections.abc import Iterator

from vlm.data.questions.base import MadeQuestion, a, be, both, called
from vlm.data.questions.clauses import Clause, clauses
from vlm.data.questions.lexicon import lexicon, word_set
from vlm.data.questions.phrases import Phrase
from vlm.data.questions.scene import AGES, Scene

COLOURED = ("animal", "vehicle", "clothing")
COLOURED_THINGS = word_set("coloured_things") | {
    "tennis ball",
    "soccer ball",
    "beach ball",
    "fire hydrant",
    "hula hoop",
    "inflatable",
}
UNCOLOURED = {"fish", "zebra", "giraffe", "elephant", "tiger", "lion", "panda", "clothing", "harness"}
ALIKE = [  # colours that people confuse: none of them makes a false question
    {"brown", "tan", "orange", "yellow", "red", "black", "gray"},
    {"white", "gray", "tan", "yellow", "pink"},
    {"black", "gray", "blue", "brown", "purple"},
    {"red", "pink", "orange", "purple", "brown"},
    {"blue", "purple", "green", "gray"},
    {"green", "yellow", "blue"},
]
COLOURS = ("red", "blue", "green", "yellow", "orange", "purple", "pink", "white", "black", "brown")
ANIMAL_COLOURS = ("black", "white", "brown")

HELD = ("holding", "carrying", "riding", "eating", "throwing", "pushing", "pulling", "kicking", "chasing", "driving",
        "catching", "chewing", "wearing", "climbing", "reading")  # fmt: skip
PLAIN = word_set("plain")
SAME_ACTION = {
    "leaping": "jumping",
    "laying": "lying down",
    "lying": "lying down",
    "racing": "running",
    "biking": "riding bike",
}
STILL = ("sitting", "sleeping", "lying down")
MOVING = ("running", "jumping", "swimming", "dancing", "climbing", "surfing", "skiing", "skateboarding", "flying")
RESTS = word_set("rests")  # fmt: skip
IN = (("in",), ("wearing",))
INSIDE = {"kitchen", "bathroom", "bedroom", "living room", "dining room", "office", "classroom", "gym", "hallway"}
OUTSIDE = {"beach", "ocean", "lake", "river", "stream", "snow", "field", "grass", "park", "street", "road", "sidewalk",
           "path", "forest", "mountain", "hill", "cliff", "desert", "pasture", "yard", "garden", "sand"}  # fmt: skip
RIDDEN = {"bike": "bike", "horse": "horse", "motorcycle": "motorcycle", "skateboard": "skateboard",
          "surfboard": "wave", "elephant": "elephant", "scooter": "scooter"}  # fmt: skip
PLAYED = ("tennis", "soccer", "baseball", "basketball", "football", "volleyball", "golf", "hockey", "guitar")


def pick(scene: Scene, salt: str, count: int) -> int:
    """A number below `count` that depends on the captions alone."""
    text = "|".join(" ".join(caption.tokens) for caption in scene.captions)
    return zlib.crc32(f"{salt}|{text}".encode()) % count


def caption_questions(scene: Scene) -> Iterator[MadeQuestion]:
    """Everything that the captions answer."""
    said = [clause for caption in scene.captions for clause in clauses(caption)]
    yield from colours(scene)
    yield from () if scene.grey else bound_colours(scene)
    yield from numbers(scene)
    yield from objects(scene, said)
    yield from places(scene, said)
    yield from actions(scene, said)


def most_said(counted: Counter[str]) -> str | None:
    """The one value, or the one said more often than all others together."""
    if not counted:
        return None
    (best, times), *others = counted.most_common()
    return best if not others or times > 1 + sum(n for _, n in others) else None


def colours(scene: Scene) -> Iterator[MadeQuestion]:
    words = lexicon()
    if scene.grey or scene.words & {"colorful", "multicolored", "colourful"}:
        return
    for concept in scene.concepts:
        section = words.sections[concept]
        if concept in UNCOLOURED or (section not in COLOURED and concept not in COLOURED_THINGS):
            continue
        if not scene.unique(concept):
            continue
        mentions = [p for p in scene.mentions(concept) if p.colours and p.clear]
        answer = _colour([set(p.colours) for p in mentions])
        if answer is None:
            continue
        word = mentions[0].noun
        name = words.plurals[word.word] if word.plural else word.word
        if section == "clothing" or concept == "hair":
            if not scene.only_person() or (scene.concepts.keys() & {"dog"} and concept == "collar"):
                continue
            owner = next((p for p in scene.mentions("person") if p.concept in ("man", "woman", "boy", "girl")), None)
            if owner is None or not scene.unique(owner.concept):
                continue
            name = f"{called(owner.noun)}'s {name}"
        yield MadeQuestion(f"What color {be(word)} the {name}?", answer, "colour")
        yield from _is_colour(scene, section, name, word.plural, answer)


def bound_colours(scene: Scene) -> Iterator[MadeQuestion]:
    """What someone wears where several people are in the picture: "a man in a red shirt and a woman"."""
    found: dict[tuple[str, str], list[set[str]]] = {}
    plain: dict[str, set[str]] = {}
    for caption in scene.captions:
        tokens = caption.tokens
        for person in caption.phrases:
            if person.concept not in AGES or not person.one or tokens[person.end : person.end + 1] not in IN:
                continue
            worn = caption.at(person.end + 1)
            if worn and worn.noun.section == "clothing" and worn.colours and worn.clear:
                found.setdefault((person.concept, worn.noun.word), []).append(set(worn.colours))
            elif worn is None and " ".join(tokens[person.end + 1 : person.end + 2]) in lexicon().colours:
                after = tokens[person.end + 2 : person.end + 3]
                if not after or after[0] in (".", ",") or after[0] in lexicon().verbs:
                    plain.setdefault(person.concept, set()).add(lexicon().colours[tokens[person.end + 1]])
    for (person, word), sets in found.items():
        answer = _colour(sets)
        noun = lexicon().nouns[word]
        if answer and scene.unique(person) and not scene.only_person():
            name = lexicon().plurals[word] if noun.plural else word
            yield MadeQuestion(f"What color {be(noun)} the {person}'s {name}?", answer, "colour")
    for person, one in plain.items():
        clothes = {c for _, p in scene.phrases if p.noun.section == "clothing" for c in p.colours}
        if len(one) == 1 and scene.unique(person) and clothes <= one:
            yield MadeQuestion(f"What color is the {person} wearing?", next(iter(one)), "colour")


def _colour(sets: list[set[str]]) -> str | None:
    """The colours that every caption agrees on; a caption may name only some of them."""
    if not sets or max(map(len, sets)) > 2:
        return None
    largest = max(sets, key=len)
    if not all(colours <= largest for colours in sets):
        return None
    if len(largest) == 2 and len(sets) > 2 and sum(colours == largest for colours in sets) == 1:
        return None
    order = ("black", "red", "blue", "green", "brown", "yellow", "orange", "purple", "pink", "tan", "gray", "white")
    return " and ".join(sorted(largest, key=order.index))


def _is_colour(scene: Scene, section: str, name: str, plural: bool, answer: str) -> Iterator[MadeQuestion]:
    verb = "Are" if plural else "Is"
    said = {lexicon().colours.get(word, "") for word in scene.words}
    near = set().union(*(group for group in ALIKE for colour in answer.split(" and ") if colour in group))
    near = near if section == "animal" or " and " in answer else _near(answer)
    choices = [c for c in (ANIMAL_COLOURS if section == "animal" else COLOURS) if c not in said | near]
    if choices:
        yield from both(
            f"{verb} the {name} {answer}?", f"{verb} the {name} {choices[pick(scene, name, len(choices))]}?"
        )


def _near(colour: str) -> set[str]:
    pairs = ("red orange pink", "red brown", "orange yellow brown tan", "blue purple", "green blue", "pink purple red",
             "black brown gray", "black blue", "white tan gray", "yellow green tan", "gray blue")  # fmt: skip
    return {c for pair in pairs if colour in pair.split() for c in pair.split()} | {colour}


def numbers(scene: Scene) -> Iterator[MadeQuestion]:
    words = lexicon()
    for concept in scene.concepts:
        if words.sections[concept] not in ("person", "animal", "vehicle", "thing", "food"):
            continue
        found = [phrases for phrases in scene.per_caption(concept) if phrases]
        if any(len(phrases) > 1 for phrases in found):
            continue
        mentions = [phrases[0] for phrases in found]
        counts = {p.number for p in mentions if p.number}
        if len(counts) != 1 or any(p.vague or p.determiner in ("another", "other", "each") for p in mentions):
            continue
        number = counts.pop()
        if number == 1 or any(not p.noun.plural for p in mentions):
            continue
        if scene.words & word_set("more") or _wider_disagrees(scene, concept, number):
            continue
        plural = words.plurals[mentions[0].noun.word]
        tail = ("are there", "are in the picture", "are there in the picture")[pick(scene, plural, 3)]
        yield MadeQuestion(f"How many {plural} {tail}?", str(number), "number")
        asked = number + 1 + pick(scene, f"more {plural}", 2)
        yield from both(f"Are there {number} {plural}?", f"Are there {asked} {plural}?")


def _wider_disagrees(scene: Scene, concept: str, number: int) -> bool:
    """People, animals, ... are counted otherwise elsewhere, or, for people, others are there."""
    words = lexicon()
    for _, p in scene.phrases:
        if p.concept in words.wider.get(concept, ()) and p.number not in (None, number):
            return True
        if p.noun.section == words.sections[concept] == "person" and concept in ("person", "child"):
            if p.concept != concept and p.number not in (None, number):
                return True
            if p.concept in ("crowd",) or (p.concept != concept and p.noun.plural and p.number is None):
                return True
        if p.noun.section == "animal" == words.sections[concept] and p.number not in (None, number):
            return True
    return False


def _subjects(scene: Scene, said: list[Clause]) -> dict[str, list[Clause]]:
    """Clauses by subject, for subjects that are the only one of their kind."""
    found: dict[str, list[Clause]] = {}
    for clause in said:
        found.setdefault(clause.subject.concept, []).append(clause)
    return {concept: items for concept, items in found.items() if scene.unique(concept) and items[0].subject.one}


def named(phrase: Phrase) -> str:
    """A noun as an answer."""
    return lexicon().plurals[phrase.noun.word] if phrase.noun.plural else phrase.noun.word


def usual_name(scene: Scene, phrase: Phrase) -> str:
    """What most captions call it: a dog rather than a collie."""
    return Counter(called(p.noun) for _, p in scene.phrases if p.concept == phrase.concept).most_common(1)[0][0]


def objects(scene: Scene, said: list[Clause]) -> Iterator[MadeQuestion]:
    words = lexicon()
    for items in _subjects(scene, said).values():
        name = usual_name(scene, items[0].subject)
        for verb in HELD:
            things = [c.thing for c in items if c.verb == verb and c.thing]
            if not things or any(not words.related(things[0].concept, thing.concept) for thing in things):
                continue
            if sum(c.verb == verb for c in items) != len(things) or things[0].noun.section == "place":
                continue
            answer = Counter(map(named, things)).most_common(1)[0][0]
            if _unsure(scene, things[0]) or (verb == "wearing" and len(_worn(scene)) > 1):
                continue
            yield MadeQuestion(f"What is the {name} {verb}?", answer, "object")
            yield from _is_doing(scene, name, verb, things[0])
        sport = most_said(Counter(c.sport for c in items if c.sport))
        if sport and len({c.sport for c in items if c.sport}) == 1:
            yield MadeQuestion(f"What is the {name} playing?", sport, "object")
            choices = [other for other in PLAYED if other not in scene.words]
            other = choices[pick(scene, "other sport", len(choices))]
            yield from both(f"Is the {name} playing {sport}?", f"Is the {name} playing {other}?")


def _unsure(scene: Scene, thing: Phrase) -> bool:
    """A bike that may be a motorcycle."""
    return thing.concept == "bike" and bool(scene.words & word_set("motor"))


def _worn(scene: Scene) -> set[str]:
    return {p.concept for _, p in scene.phrases if p.noun.section == "clothing"}


def _is_doing(scene: Scene, name: str, verb: str, thing: Phrase) -> Iterator[MadeQuestion]:
    if thing.noun.plural or not thing.one:
        return
    if verb == "riding" and thing.concept in RIDDEN:
        choices = [c for c in RIDDEN if c not in scene.concepts and RIDDEN[c] not in scene.words]
        choices = [
            c
            for c in choices
            if not (
                (c == "motorcycle" and scene.words & {"bike", "bikes"}) or ("board" in c and scene.words & {"board"})
            )
        ]
        if choices:
            other = choices[pick(scene, "ridden", len(choices))]
            yield from both(f"Is the {name} riding {a(thing.noun.word)}?", f"Is the {name} riding {a(other)}?")


def places(scene: Scene, said: list[Clause]) -> Iterator[MadeQuestion]:
    for items in _subjects(scene, said).values():
        where = Counter(named(c.place) for c in items if c.place)
        place = most_said(where)
        if place:
            yield MadeQuestion(f"Where is the {usual_name(scene, items[0].subject)}?", place, "place")
    plural = [c for c in said if c.subject.noun.plural and c.subject.noun.section in ("person", "animal")]
    for concept in dict.fromkeys(c.subject.concept for c in plural):
        if len({c.subject.concept for c in said}) > 1:
            continue
        where = Counter(named(c.place) for c in said if c.place)
        place = most_said(where)
        if place:
            subject = next(c.subject for c in plural if c.subject.concept == concept)
            yield MadeQuestion(f"Where are the {named(subject)}?", place, "place")
    inside = [c for c in scene.concepts if c in INSIDE]
    outside = [c for c in scene.concepts if c in OUTSIDE and c not in ("field", "grass", "garden", "sand", "path")]
    sure = len(outside) + sum(scene.concepts[c] for c in outside) > 2 or inside
    if sure and bool(inside) != bool(outside):
        taken = ("indoors", "outdoors") if inside else ("outdoors", "indoors")
        yield from both(f"Was this photo taken {taken[0]}?", f"Was this photo taken {taken[1]}?")


def actions(scene: Scene, said: list[Clause]) -> Iterator[MadeQuestion]:
    for items in _subjects(scene, said).values():
        name = usual_name(scene, items[0].subject)
        done = Counter(action for c in items if (action := _action(scene, c)))
        verbs = {SAME_ACTION.get(c.verb, c.verb) for c in items if c.verb}
        action = most_said(done)
        if action is None or name[:4] == action[:4]:
            continue  # nothing to ask: a skier skis
        if len(done) == 1 or action not in ("standing", "sitting"):
            yield MadeQuestion(f"What is the {name} doing?", action, "action")
            if action in PLAIN or action in STILL:
                yield from _is_acting(scene, name, action, verbs)
    plural = [c for c in said if c.subject.noun.plural and c.subject.noun.animate]
    if plural and len({c.subject.concept for c in said}) == 1:
        done = Counter(action for c in said if (action := _action(scene, c)))
        action = most_said(done)
        if action and action not in ("standing", "sitting"):
            yield MadeQuestion(f"What are the {named(plural[0].subject)} doing?", action, "action")


def _action(scene: Scene, clause: Clause) -> str:
    if clause.verb == "playing":
        return f"playing {clause.sport}" if clause.sport else ""
    if clause.verb == "riding" and clause.thing and not _unsure(scene, clause.thing) and clause.thing.concept in RIDDEN:
        return f"riding {clause.thing.noun.word}"
    return SAME_ACTION.get(clause.verb, clause.verb) if clause.verb in PLAIN | SAME_ACTION.keys() else ""


def _is_acting(scene: Scene, name: str, action: str, verbs: set[str]) -> Iterator[MadeQuestion]:
    if action in MOVING and not scene.words & RESTS:
        other = STILL[pick(scene, "still", 3)]
    elif action in STILL and not verbs & set(MOVING):
        other = MOVING[pick(scene, "moving", 4)]
        if any(word.startswith(other[:4]) for word in scene.words):
            return
    else:
        return
    yield from both(f"Is the {name} {action}?", f"Is the {name} {other}?")
