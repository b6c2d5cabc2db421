"""What a made question is, and the grammar that questions share."""

from collections.abc import Iterator
from dataclasses import dataclass

from vlm.data.questions.lexicon import Noun

KINDS = ("colour", "number", "object", "place", "action", "yes_no", "count", "side", "presence")


@dataclass(frozen=True)
class MadeQuestion:
    """A question made from what is known about a photo.

    Attributes:
        text: the question, with its mark.
        answer: lower case, one to three words.
        kind: one of `KINDS`.
    """

    text: str
    answer: str
    kind: str


def a(word: str) -> str:
    """With its article."""
    return f"{'an' if word[0] in 'aeiou' and not word.startswith(('uni', 'one')) else 'a'} {word}"


def be(noun: Noun) -> str:
    return "are" if noun.plural else "is"


def both(true: str, false: str) -> Iterator[MadeQuestion]:
    """A question to say yes to and its false form, to say no to: always the two, so that answers balance."""
    yield MadeQuestion(true, "yes", "yes_no")
    yield MadeQuestion(false, "no", "yes_no")


CALLED = {  # what people are called in captions -> in questions
    "male": "man", "guy": "man", "gentleman": "man", "female": "woman", "youngster": "child", "kid": "child",
    "adult": "person", "someone": "person", "somebody": "person", "human": "person", "individual": "person",
    "pedestrian": "person", "bicyclist": "cyclist",
}  # fmt: skip


def called(noun: Noun) -> str:
    """The singular as questions say it."""
    return CALLED.get(noun.word, noun.word)
