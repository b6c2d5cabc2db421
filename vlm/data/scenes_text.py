"""What is said about a made scene: captions, questions and phrases that hold for its things without any doubt."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlm.data.scenes_draw import COLOURS, CUTOUTS, SHAPES, Box, Thing

KINDS = ("count", "colour", "relation", "shape", "presence")
NUMBERS = ("no", "one", "two", "three", "four", "five")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
WORDS = {"left": ("left of", "to the left of"), "right": ("right of", "to the right of")}
_AXES = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}  # y points downwards
EXTREMES = {"left": "leftmost", "right": "rightmost", "above": "topmost", "below": "lowest"}


@dataclass(frozen=True)
class Question:
    """A question, its one right answer in lower case, and its kind, one of `KINDS`."""

    text: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Phrase:
    """Words that name exactly one thing, and its box in fractions of width and height."""

    text: str
    box: Box


def offset(a: Thing, b: Thing, direction: str) -> float:
    """How far `a` lies from `b` in a direction, between centres; negative on the other side."""
    axis, sign = _AXES[direction]
    return sign * (a.box[axis] + a.box[axis + 2] - b.box[axis] - b.box[axis + 2]) / 2


def is_clear(a: Thing, b: Thing, direction: str) -> bool:
    """Whether `a` is left of (right of, above, below) `b` by more than their sizes, so that nobody denies it."""
    axis, _ = _AXES[direction]
    return offset(a, b, direction) > 1.1 * max(a.box[axis + 2] - a.box[axis], b.box[axis + 2] - b.box[axis])


def is_not(a: Thing, b: Thing, direction: str) -> bool:
    """Whether nobody would say that `a` is in this direction of `b`."""
    return offset(a, b, direction) <= 0


def matching(things: Sequence[Thing], colour: str = "", name: str = "", size: str = "") -> list[Thing]:
    """The things of a colour, name and size; an empty word fits all, and the name "shape" all that are no cut-outs."""
    return [
        thing
        for thing in things
        if colour in ("", thing.colour)
        and (name in ("", thing.name) or (name == "shape" and thing.name in SHAPES))
        and size in ("", thing.size)
    ]


def plural(name: str) -> str:
    return f"{name}es" if name == "cross" else f"{name}s"


def with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def words(*parts: str) -> str:
    """The parts that are not empty, with blanks between them."""
    return " ".join(filter(None, parts))


def joined(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


# Phrases


def names_of(thing: Thing, things: Sequence[Thing]) -> list[str]:
    """Names without "the" that fit this thing alone, the plainest ones last."""
    found = []
    for colour in dict.fromkeys(("", thing.colour)):
        for size in dict.fromkeys(("", thing.size)):
            for name in _kinds(thing, things, colour):
                if matching(things, colour, name, size) == [thing]:
                    found.append(words(size, colour, name))
    return found[::-1]


def _kinds(thing: Thing, things: Sequence[Thing], colour: str = "") -> tuple[str, ...]:
    """What a thing is, from narrow to wide; beside a cut-out, which has a shape too, "shape" needs a colour."""
    is_shape = thing.name in SHAPES and (colour or all(other.name in SHAPES for other in things))
    return (thing.name, "shape") if is_shape else (thing.name,)


def extremes_of(thing: Thing, things: Sequence[Thing]) -> list[str]:
    """Names such as "leftmost circle", where it clearly is."""
    found = []
    for name in _kinds(thing, things):
        others = [other for other in matching(things, "", name) if other is not thing]
        for direction, word in EXTREMES.items():
            if others and all(is_clear(thing, other, direction) for other in others):
                found.append(f"{word} {name}")
    return found


def phrases(things: Sequence[Thing], rng: random.Random) -> tuple[Phrase, ...]:
    """For each thing that can be named, up to two names; first one name of each thing, then the others."""
    rounds: tuple[list[Phrase], list[Phrase]] = [], []
    for thing in things:
        plain = names_of(thing, things)
        full = [name for name in plain if thing.colour in name and thing.name in name]
        placed = extremes_of(thing, things)
        first = rng.choice(full or placed or plain) if full or placed or plain else ""
        rest = [name for name in plain + placed if name != first]
        for name, texts in zip([first, *rng.sample(rest, min(1, len(rest)))], rounds, strict=False):
            if name:
                texts.append(Phrase(f"the {name}", thing.box))
    for texts in rounds:
        rng.shuffle(texts)
    return (*rounds[0], *rounds[1])


# Captions


def groups(things: Sequence[Thing], with_size: bool = False) -> list[str]:
    """Things that are called the same, counted: "two red circles", "a cat"."""
    called: dict[tuple[str, str, str], int] = {}
    for thing in things:
        key = (thing.size if with_size else "", thing.colour, thing.name)
        called[key] = called.get(key, 0) + 1
    return [_counted(count, words(size, colour), name) for (size, colour, name), count in called.items()]


def _counted(count: int, before: str, name: str) -> str:
    return with_article(words(before, name)) if count == 1 else words(NUMBERS[count], before, plural(name))


def captions(things: Sequence[Thing], background: str, rng: random.Random) -> tuple[str, ...]:
    """Two to five different texts; the first names all things, the second is short."""
    order = list(things)
    rng.shuffle(order)
    listed, shapes = joined(groups(order)), matching(things, "", "shape")
    behind = {"stripes": " on a striped background", "noise": " on a mottled background"}.get(background, "")
    found = [_sentence(listed + behind), listed if len(listed.split()) <= 8 else _short(things)]
    if len(shapes) == len(things):
        counted = {name: len(matching(things, "", name)) for name in dict.fromkeys(thing.name for thing in order)}
        kinds = joined([_counted(count, "", name) for name, count in counted.items()])
        number = f"There {'is one shape' if len(things) == 1 else f'are {NUMBERS[len(things)]} shapes'}"
        found.append(f"{number}: {kinds}." if rng.random() < 0.5 else f"The picture shows {kinds}.")
    if any(thing.size for thing in things):
        found.append(_sentence(joined(groups(order, with_size=True))))
    for a, b, direction in clear_pairs(order):
        one, other = (words(thing.colour, thing.name) for thing in (a, b))
        if one in names_of(a, things) and other in names_of(b, things):
            found.append(_sentence(f"{with_article(one)} is {_direction(direction, rng)} {with_article(other)}"))
            break
    return tuple(dict.fromkeys(found))


def _short(things: Sequence[Thing]) -> str:
    shapes = len(matching(things, "", "shape"))
    colours = {thing.colour for thing in things}
    if shapes < len(things):
        return f"{NUMBERS[len(things)]} things"
    return f"{NUMBERS[shapes]} {next(iter(colours))} shapes" if len(colours) == 1 else f"{NUMBERS[shapes]} shapes"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _direction(direction: str, rng: random.Random) -> str:
    return rng.choice(WORDS.get(direction, (direction,)))


def clear_pairs(things: Sequence[Thing]) -> Iterator[tuple[Thing, Thing, str]]:
    """Things of which nobody denies that the first is left of (right of, above, below) the second."""
    for a in things:
        for b in things:
            for direction in OPPOSITE:
                if a is not b and is_clear(a, b, direction):
                    yield a, b, direction


# Questions


def questions(things: Sequence[Thing], rng: random.Random) -> tuple[Question, ...]:
    """Up to two questions of each kind, in random order; those of a kind start with a random one."""
    makers = {
        "count": _counts,
        "colour": _colours,
        "relation": _relations,
        "shape": _shapes,
        "presence": _presences,
    }
    found = [
        Question(text, answer, kind)
        for kind, make in makers.items()
        for text, answer in _two(list(dict.fromkeys(make(things, rng))), rng)
    ]
    rng.shuffle(found)
    return tuple(found)


def _two(pairs: list[tuple[str, str]], rng: random.Random) -> list[tuple[str, str]]:
    """Two questions, with different answers where possible."""
    if len(pairs) < 2:
        return pairs
    first = rng.choice(pairs)
    others = [pair for pair in pairs if pair[1] != first[1]] or [pair for pair in pairs if pair != first]
    return [first, rng.choice(others)]


def _counts(things: Sequence[Thing], rng: random.Random) -> Iterator[tuple[str, str]]:
    asked: dict[str, int] = {}
    if len(matching(things, "", "shape")) == len(things):
        asked["shapes"] = len(things)
    for thing in things:
        for colour in dict.fromkeys(("", thing.colour)):
            asked[words(colour, plural(thing.name))] = len(matching(things, colour, thing.name))
        if thing.colour:
            asked[f"{thing.colour} shapes"] = len(matching(things, thing.colour, "shape"))
    many = [what for what, count in asked.items() if count > 1]
    ones = [what for what, count in asked.items() if count == 1]
    rng.shuffle(ones)
    if len(many) > 1 and rng.random() < 0.6:
        ones = []
    for what in many + ones[:1]:  # most things stand alone, so that "1" would be most answers
        ending = rng.choice(("are there", "are there", "can you see", "are in the picture"))
        yield f"How many {what} {ending}?", str(asked[what])


def _colours(things: Sequence[Thing], rng: random.Random) -> Iterator[tuple[str, str]]:
    for thing in things:
        if not thing.colour:
            continue
        for name in [*names_of(thing, things), *extremes_of(thing, things)]:
            if thing.colour not in name.split():
                yield f"What color is the {name}?", thing.colour
        same = matching(things, "", thing.name)
        if len(same) > 1 and {other.colour for other in same} == {thing.colour}:
            yield f"What color are the {plural(thing.name)}?", thing.colour


def _shapes(things: Sequence[Thing], rng: random.Random) -> Iterator[tuple[str, str]]:
    shapes = matching(things, "", "shape")
    for thing in shapes:
        for name in [*names_of(thing, things), *extremes_of(thing, things)]:
            if name == "shape":  # the only thing
                yield "What shape is it?", thing.name
            elif name.endswith(" shape"):
                yield f"What is the {name}?", thing.name
        if matching(shapes, thing.colour) == [thing] and len(shapes) > 1:
            yield f"Which shape is {thing.colour}?", thing.name


def _relations(things: Sequence[Thing], rng: random.Random) -> Iterator[tuple[str, str]]:
    named = {thing: words(thing.colour, thing.name) for thing in things}
    full = {thing: name for thing, name in named.items() if name in names_of(thing, things)}
    only_shapes = all(thing.name in SHAPES for thing in things)
    for a, b, direction in clear_pairs(things):
        if b not in full:
            continue
        other = f"the {full[b]}"
        if a in full:
            one = f"the {full[a]}"
            said, answer = rng.choice(((direction, "yes"), (OPPOSITE[direction], "no")))
            yield f"Is {one} {_direction(said, rng)} {other}?", answer
            either = sorted((direction, OPPOSITE[direction]), reverse=rng.random() < 0.5)
            after = " of" if direction in WORDS else ""
            yield f"Is {one} {' or '.join(either)}{after} {other}?", direction
        rest = [thing for thing in things if thing not in (a, b)]
        if a.colour and only_shapes and all(is_not(thing, b, direction) for thing in rest):
            where = f"{_direction(direction, rng)} {other}"
            yield f"What color is the shape {where}?", a.colour
            yield f"Which shape is {where}?", a.name


def _presences(things: Sequence[Thing], rng: random.Random) -> Iterator[tuple[str, str]]:
    """As many questions whose answer is no as yes; half of the former ask about a colour and a shape of two things."""
    shown = rng.choice(things)
    yes = words(shown.colour if rng.random() < 0.7 else "", shown.name)
    colours, names = {thing.colour for thing in things} - {""}, {thing.name for thing in things}
    # a ring or a round cut-out might be called a circle
    round_ones = {"circle", "ring", *CUTOUTS}
    absent = [name for name in SHAPES if name not in names and not (name in round_ones and names & round_ones)]
    swapped = [
        f"{colour} {name}"
        for colour in sorted(colours)
        for name in sorted(names - set(CUTOUTS))
        if not matching(things, colour, name)
    ]
    other = words(rng.choice(("", *COLOURS)), rng.choice(absent))
    no = rng.choice(swapped) if swapped and rng.random() < 0.6 else other
    for what, answer in ((yes, "yes"), (no, "no")):
        yield rng.choice((f"Is there {with_article(what)}?", f"Is there {with_article(what)} in the picture?")), answer
