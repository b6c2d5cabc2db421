"""Who does what in a caption: subject, verb, object and place, found by rules."""

from dataclasses import dataclass

from vlm.data.questions.lexicon import lexicon, word_set
from vlm.data.questions.phrases import ADVERBS, GROUPS, Parsed, Phrase

SPORTS = word_set("sports")
AT = ("in", "on", "at", "through", "across", "along", "down", "into")
WITH = ("in", "with", "wearing", "and", ",")
OPENERS = ("of", "as", "while", ",", ".", ";", "watch", "watching", "watches", "with")
NO_PLACES = ("wave", "sky", "city", "school", "hotel", "track", "room", "puddle", "subway", "ice")
SEATS = ("bench", "couch", "bed", "chair", "table", "boat", "toilet", "desk", "sink")


@dataclass(frozen=True)
class Clause:
    """Something that a subject does.

    Attributes:
        subject: who.
        verb: its "-ing" form; "" for a subject that just is somewhere.
        thing: the object, where there is exactly one.
        sport: what is played.
        place: where.
        alone: the object stands by itself, no verb follows that could make it the subject of something else.
    """

    subject: Phrase
    verb: str
    thing: Phrase | None = None
    sport: str = ""
    place: Phrase | None = None


def clauses(parsed: Parsed) -> list[Clause]:
    """The clauses of a caption whose subject the rules are sure of, in order."""
    words = lexicon()
    tokens = parsed.tokens
    inside = {place for phrase in parsed.phrases for place in range(phrase.start, phrase.end)}
    found: list[Clause] = []
    last = 0
    for phrase in parsed.phrases:
        if phrase.noun.animate and phrase.end < len(tokens) and _starts(parsed, phrase):
            place = _place(parsed, phrase.end, phrase.end)
            if place:
                found.append(Clause(phrase, "", place=place))
    for place, token in enumerate(tokens):
        if token not in words.verbs or place in inside or token in ("like", "covered"):
            continue
        subject = _subject(parsed, place)
        if subject is None and found and tokens[place - 1] in ("and", "while") and last:
            between = [p for p in parsed.phrases if last < p.start < place]
            if not any(p.noun.animate for p in between) and found[-1].verb:
                subject = found[-1].subject
        if subject is None:
            last = 0
            continue
        last = place
        found.append(
            Clause(
                subject,
                words.verbs[token],
                _object(parsed, place),
                _sport(tokens, place),
                _place(parsed, place + 1, place),
            )
        )
    return found


def _subject(parsed: Parsed, place: int) -> Phrase | None:
    tokens = parsed.tokens
    helped = False
    while place and (tokens[place - 1] in ADVERBS | {"is", "are"} or tokens[place - 1].endswith("ly")):
        helped = helped or tokens[place - 1] in ("is", "are")
        place -= 1
    if place and tokens[place - 1] in ("who", "that"):
        place -= 1
    phrase = parsed.before(place)
    while phrase and not phrase.noun.animate:  # "a man in a red shirt is ...": back to the man
        if not phrase.start or tokens[phrase.start - 1] not in WITH:
            return None
        if phrase.noun.section not in ("clothing",) and phrase.concept != "hair":
            return None
        phrase = parsed.before(phrase.start - 1)
    return phrase if phrase and phrase.clear and _starts(parsed, phrase) else None


def _starts(parsed: Parsed, phrase: Phrase) -> bool:
    """The phrase begins a clause: it isn't the second of two, nor what something else is beside or on."""
    tokens, start = parsed.tokens, phrase.start
    if not start:
        return True
    if tokens[start - 1] == "of" and start > 1:
        return tokens[start - 2] in GROUPS | {"picture", "photo", "view", "image", "shot", "close-up", "photograph"}
    return tokens[start - 1] in OPENERS and tokens[start - 1] != "with"


def _object(parsed: Parsed, verb: int) -> Phrase | None:
    thing = parsed.at(verb + 1)
    if thing is None or not thing.clear:
        return None
    after = parsed.tokens[thing.end : thing.end + 1]
    return None if after in (("and",), (",",), ("or",), ("'s",), ("of",)) else thing


def _sport(tokens: tuple[str, ...], verb: int) -> str:
    rest = [token for token in tokens[verb + 1 : verb + 4] if token not in ("a", "an", "the", "his", "her", "their")]
    after = tokens[verb + 2 : verb + 3] if rest and tokens[verb + 1] == rest[0] else tokens[verb + 3 : verb + 4]
    if tokens[verb] not in ("playing", "plays", "play") or not rest or rest[0] not in SPORTS:
        return ""
    return "" if after and (after[0] in lexicon().nouns or after[0] in ("and", "video", "game")) else rest[0]


def _place(parsed: Parsed, start: int, after: int) -> Phrase | None:
    """The first place after a verb, up to the next person, animal or verb."""
    tokens = parsed.tokens
    for index in range(start, min(len(tokens), start + 7)):
        if tokens[index] in (
            "and",
            "while",
            "as",
            ",",
            ".",
            "who",
            "that",
            "with",
            "near",
            "behind",
            "by",
            "to",
            "for",
        ):
            return None
        if index > after and tokens[index] in lexicon().verbs and parsed.at(index) is None and index != start:
            return None
        phrase = parsed.at(index + 1)
        if phrase and phrase.noun.animate:
            return None
        if tokens[index] in AT and phrase and phrase.clear:
            known = phrase.noun.section == "place" and phrase.concept not in NO_PLACES
            seat = phrase.concept in SEATS and tokens[index] in ("in", "on", "at")
            return phrase if (known or seat) and phrase.determiner not in ("another", "each") else None
    return None
