"""Text as models read and learn it: captions, questions and sentences cleaned, and answers to choose from checked."""

import re
import string
from collections.abc import Sequence

from vlm.errors import ArgumentError

MAX_WORDS = 80  # of a question, phrase or sentence; OFA cuts off the rest

_PUNCTUATION = re.compile(r"[^\w\s'-]|_|(?<![^\W_])['-]+|['-]+(?![^\W_])")
_BLANKS = re.compile(r"\s+")
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean_caption(caption: str) -> str:
    """A caption as the model learns it: lower case, no punctuation but hyphens and apostrophes inside words."""
    return _BLANKS.sub(" ", _PUNCTUATION.sub(" ", caption.lower().replace("’", "'"))).strip()


def clean_question(question: str, max_words: int | None = None) -> str:
    """A question as OFA reads it: lower case, split at hyphens and slashes, no punctuation in front.

    Args:
        question: any text.
        max_words: text after so many words is cut off.
    """
    text = question.lower().lstrip(",.!?*#:;~").replace("-", " ").replace("/", " ")
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])


def clean_sentence(sentence: str, max_words: int | None = None) -> str:
    """A phrase, hypothesis or article as OFA reads it: as `clean_question`, and nobody is called `<person>`."""
    return clean_question(sentence, max_words).replace("<person>", "person")


def strip_punctuation(caption: str, max_words: int | None = None) -> str:
    """A caption as OFA learns it: without ASCII punctuation, at most `max_words` words."""
    return " ".join(caption.translate(_ASCII_PUNCTUATION).split()[:max_words])


def clean_input(kind: str, text: str, max_words: int | None = MAX_WORDS) -> str:
    """`clean_sentence` of what a user wrote.

    Raises:
        ArgumentError: nothing is left of the text; it is called `kind`.
    """
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(f"the {kind} {text!r:.40} is no text; give one string")
    clean = clean_sentence(text, max_words)
    if not clean:
        raise ArgumentError(f"the {kind} {text[:40]!r} contains no words; write some")
    return clean


def distinct(kind: str, texts: Sequence[str]) -> list[str]:
    """Answers or labels to choose from, without blanks around them, each once.

    Raises:
        ArgumentError: there are none, one is empty, or `texts` is one string; they are called `kind`.
    """
    if isinstance(texts, str):
        raise ArgumentError(f"{kind}s are a list of strings; put {texts[:40]!r} into one, or split it at its commas")
    if bad := [text for text in texts if not isinstance(text, str)]:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(f"the {kind}s hold {bad[0]!r:.40}, which is no text; give strings")
    found = list(dict.fromkeys(text.strip() for text in texts))
    if not found or "" in found:
        raise ArgumentError(f"{f'the {kind}s hold an empty one' if found else f'there are no {kind}s'}; name some")
    return found
