"""Tasks as data: the instruction that the model reads, how text is made ready for it, how its answer is read back.

The instructions are those of OFA (Wang et al., 2022, arXiv:2202.03052). A leading blank belongs to the string; where
one has a gap, `str.format` fills it. Answers begin with a blank too, save summaries.
"""

import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vlm.tokenizer import BOS, EOS, PAD, Tokenizer

CAPTION = " what does the image describe?"
CLASSIFY = CAPTION  # the answer is a label
QUESTION = " {}"
OBJECTS = " object: {}"  # encoded by itself and put behind a question: names of things seen in the photo
GROUND = ' which region does the text " {} " describe?'
REGION = "  what does the region describe? region:"  # the four locations follow
ENTAIL = ' does the image describe " {} "?'
ENTAIL_WITH_CAPTION = ' can image and text1 " {} " imply text2 " {} "?'
SUMMARIZE = ' what is the summary of article " {} "?'
GENERATE_IMAGE = " what is the complete image? caption: {}"
CAPTION_CHINESE = "图片描述了什么内容?"
GROUND_CHINESE = '这段文字" {} "描述的是哪个区域？'
SUMMARIZE_CHINESE = "{} 请用一个句子简单总结上文："

ENTAIL_ANSWERS = {"entailment": " yes", "contradiction": " no", "neutral": " maybe"}

# how captions are searched; 3-gram repeats are never wanted in one sentence
CAPTION_OPTIONS: dict[str, Any] = {"beams": 5, "max_tokens": 20, "no_repeat_ngram": 3}

LOCATION_PIXELS = 512  # what the last location stands for, also where photos are resized to fewer

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
        max_words: what is behind so many words is cut off.
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


def box_locations(tokenizer: Tokenizer, box: Sequence[float], width: int, height: int, size: int) -> list[int]:
    """A box as OFA writes it.

    Args:
        tokenizer: the model's.
        box: left, top, right and bottom, in pixels of the photo.
        width: of the photo.
        height: of the photo.
        size: side of the square that the photo is resized to.

    Returns:
        Four ids.
    """
    scales = (size / width, size / height) * 2
    return tokenizer.locations(value * scale / LOCATION_PIXELS for value, scale in zip(box, scales, strict=True))


def read_box(
    tokenizer: Tokenizer, ids: Iterable[int], width: int, height: int, size: int
) -> tuple[float, float, float, float] | None:
    """The box in an answer, in pixels of the photo; None where the answer does not hold four locations.

    Args:
        tokenizer: the model's.
        ids: the answer.
        width: of the photo.
        height: of the photo.
        size: side of the square that the photo was resized to.
    """
    values = tokenizer.coordinates(ids)
    if len(values) != 4:
        return None
    x, y = LOCATION_PIXELS * width / size, LOCATION_PIXELS * height / size
    return values[0] * x, values[1] * y, values[2] * x, values[3] * y


@dataclass(frozen=True)
class Example:
    """One question and its answer as the networks read them, in ids.

    Attributes:
        source: what the encoder reads.
        prefix: what the decoder is given before it writes, start token first.
        previous: what the decoder reads in training: the prefix and the answer.
        target: what it shall write then, end token last; padding where the prefix goes on.
    """

    source: list[int]
    prefix: list[int]
    previous: list[int]
    target: list[int]


def example(
    instruction: Sequence[int], answer: Sequence[int], prefix: Literal["none", "source", "source_and_end"] = "none"
) -> Example:
    """Put an instruction and an answer together.

    Args:
        instruction: ids of the filled instruction.
        answer: ids of the answer.
        prefix: what the decoder is given: nothing, or the instruction again (OFA's VQA and SNLI-VE models), or that
            with its end token.
    """
    source = [BOS, *instruction, EOS]
    start = {"none": source[:1], "source": source[:-1], "source_and_end": source}[prefix]
    return Example(source, start, [*start, *answer], [PAD] * (len(start) - 1) + [*answer, EOS])
