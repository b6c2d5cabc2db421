"""What a made question is, and the grammar that questions share."""

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
