"""Noun phrases of a caption, found by rules: head noun, determiner, number and the colours bound to it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlm.data.questions.lexicon import LONGEST_NAME, Lexicon, Noun, lexicon, word_set

TOKEN = re.compile(r"'s\b|[a-z0-9]+(?:-[a-z0-9]+)*|[^\sa-z0-9]")
DETERMINERS = word_set("determiners")
PREPOSITIONS = word_set("prepositions")
LINKS = word_set("links")
ADVERBS = word_set("adverbs")
GROUPS = word_set("groups")
VAGUE = word_set("vague")


@dataclass(frozen=True)
class Phrase:
    """A noun phrase.

    Attributes:
        noun: the head.
        start, end: token positions; `end` is one after the head.
        determiner: "a", "the", "his", ... or "".
        number: how many it says; None where it doesn't say.
        vague: several, but nobody knows how many.
        colours: bound to the head, named as answers name them.
        modifiers: every word before the head.
        clear: what follows cannot continue the phrase, so the head is surely the head.
    """

    noun: Noun
    start: int
    end: int
    determiner: str
    number: int | None
    vague: bool
    colours: tuple[str, ...]
    modifiers: tuple[str, ...]
    clear: bool

    @property
    def concept(self) -> str:
        return self.noun.concept

    @property
    def one(self) -> bool:
        """It names exactly one thing."""
        return not self.noun.plural and not self.vague and self.number in (None, 1) and self.determiner not in MORE


MORE = {"another", "other", "each", "every", "both", "no", "all", "these", "those", "different"}


@dataclass(frozen=True)
class Parsed:
    """A caption as tokens and the noun phrases among them, from left to right."""

    tokens: tuple[str, ...]
    phrases: tuple[Phrase, ...]

    def at(self, start: int) -> Phrase | None:
        """The phrase that begins at a token."""
        return next((phrase for phrase in self.phrases if phrase.start == start), None)

    def before(self, end: int) -> Phrase | None:
        """The phrase that ends just before a token."""
        return next((phrase for phrase in self.phrases if phrase.end == end), None)


def parse(caption: str) -> Parsed:
    """Tokens and noun phrases of a caption."""
    words = lexicon()
    tokens = TOKEN.findall(caption.lower().replace("’", "'"))
    phrases: list[Phrase] = []
    place = 0
    while place < len(tokens):
        found = head_at(words, tokens, place)
        if found is None:
            place += 1
            continue
        noun, end = found
        if _is_verb(words, tokens, place, noun):
            place = end
            continue
        following = head_at(words, tokens, end)
        if following and not _is_verb(words, tokens, end, following[0], noun) and tokens[end] not in DETERMINERS:
            place = end  # "dog house": the first noun only modifies the second
            continue
        phrases.append(_phrase(words, tokens, place, noun, end))
        place = end
    return Parsed(tuple(tokens), tuple(phrases))


def head_at(words: Lexicon, tokens: Sequence[str], place: int) -> tuple[Noun, int] | None:
    """The longest noun that begins at a token, and where it ends."""
    for length in range(LONGEST_NAME, 0, -1):
        name = " ".join(tokens[place : place + length])
        if place + length <= len(tokens) and name in words.nouns:
            return words.nouns[name], place + length
    return None


def _is_verb(words: Lexicon, tokens: Sequence[str], place: int, noun: Noun, before: Noun | None = None) -> bool:
    """A word that may be a noun or a verb ("slides", "fish") is a verb after a noun that can act, or after "to"."""
    token = tokens[place]
    if token in words.colours:
        return token != "orange" or not place or tokens[place - 1] not in ("an", "the", "peeled", "sliced")
    if token not in words.verbs:
        return False
    previous = tokens[place - 1] if place else ""
    if before is None and previous in words.nouns:
        before = words.nouns[previous]
    if before is not None:
        # "dogs race" and "dog jumps" against "dog race" and "dogs jumps"
        return before.animate and before.plural != (token.endswith("s") and token != "dress")
    return previous in ("to", "who", "that", "and", "they")


def _phrase(words: Lexicon, tokens: Sequence[str], place: int, noun: Noun, end: int) -> Phrase:
    start = place
    bare = False  # a word that separates a colour from the head stood in between
    colours: list[str] = []
    number: int | None = None
    while start:
        token = tokens[start - 1]
        if token in words.colours:
            if not bare:
                colours.insert(0, words.colours[token])
        elif (
            token in ("and", ",", "&", "/")
            and colours
            and not bare
            and start > 1
            and tokens[start - 2] in words.colours
        ):
            pass
        elif token in words.numbers:
            number = words.numbers[token]
            start -= 1
            break
        elif token in words.nouns:
            bare = bare or words.nouns[token].animate or noun.animate
        elif token == "-" or token in words.shades or token in words.adjectives:
            bare = bare or token == "haired"
        elif "-" in token and token.split("-")[-1] in ("sleeved", "colored", "up", "down", "sized", "piece", "decker"):
            pass
        else:
            break
        start -= 1
    determiner = tokens[start - 1] if start and tokens[start - 1] in DETERMINERS else ""
    if number is not None and start and tokens[start - 1] in DETERMINERS:
        determiner = tokens[start - 1]
    if determiner:
        start -= 1
    vague = determiner in VAGUE
    if start > 1 and tokens[start - 1] == "of" and tokens[start - 2] in GROUPS:
        vague, number = True, None
    if start > 1 and tokens[start - 1] in ("and", ",") and tokens[start - 2] in words.colours:
        colours = []  # "a black and a white dog": two dogs, nobody knows which
        vague = True
    nearby = tokens[end] if end < len(tokens) else "."
    clear = (
        not re.match(r"[a-z0-9]", nearby)
        or nearby in PREPOSITIONS | LINKS | ADVERBS | DETERMINERS
        or nearby in words.verbs
        or nearby.endswith(("ing", "ly"))
    )
    modifiers = tuple(tokens[start + bool(determiner) : place])
    if number is None and determiner in ("a", "an") and noun.plural:
        vague = True  # "a pants": the parser took a wrong turn
    return Phrase(noun, start, end, determiner, number, vague, tuple(dict.fromkeys(colours)), modifiers, clear)
