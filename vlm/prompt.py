"""Tasks as data: the instruction that the model reads, how text is made ready for it, how its answer is read back.

The instructions are those of OFA (Wang et al., 2022, arXiv:2202.03052). A leading blank belongs to the string; where
one has a gap, `str.format` fills it. Answers begin with a blank too, save summaries.
"""

import math
import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vlm.errors import ArgumentError
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
COMPLETE = ' what is the complete text of "{} "?'  # the text begins with a blank, as answers do
GENERATE_IMAGE = " what is the complete image? caption: {}"
CAPTION_CHINESE = "图片描述了什么内容?"
GROUND_CHINESE = '这段文字" {} "描述的是哪个区域？'
SUMMARIZE_CHINESE = "{} 请用一个句子简单总结上文："

ENTAIL_ANSWERS = {"entailment": " yes", "contradiction": " no", "neutral": " maybe"}

# how captions are searched; 3-gram repeats are never wanted in one sentence
CAPTION_OPTIONS: dict[str, Any] = {"beams": 5, "max_tokens": 20, "no_repeat_ngram": 3}

LOCATION_PIXELS = 512  # what the last location stands for, also where photos are resized to fewer
MAX_WORDS = 80  # of a question, phrase or sentence; OFA cuts off the rest
MAX_ARTICLE_WORDS = 512
MAX_OBJECTS = 30
MAX_IMAGE_WORDS = 64  # of the text of a picture

Prefix = Literal["none", "source", "source_and_end"]

# What models can do, and how each is asked and its answer searched where a model's config.json says nothing else:
# `prompt`, `prefix` (see `example`), `box_pixels` (the `size` of `box_locations`; None: that of the model's transform),
# `rerank` (of captions, see `vlm.reranking`), and the fields of `GenerationConfig`. The searches are those of OFA's
# evaluation scripts.
TASKS: dict[str, dict[str, Any]] = {
    "caption": {"prompt": CAPTION, **CAPTION_OPTIONS},
    "answer": {"prompt": QUESTION, "prefix": "none", "beams": 5, "max_tokens": 30, "normalize": False},
    "ground": {
        "prompt": GROUND,
        "box_pixels": LOCATION_PIXELS,
        "beams": 5,
        "min_tokens": 4,
        "max_tokens": 4,
        "no_repeat_ngram": 3,
    },
    "describe_region": {"prompt": REGION, "box_pixels": LOCATION_PIXELS, **CAPTION_OPTIONS},
    "entail": {"prompt": ENTAIL, "prompt_with_caption": ENTAIL_WITH_CAPTION, "prefix": "none"},
    "classify": {"prompt": CLASSIFY},
    "summarize": {"prompt": SUMMARIZE, "beams": 6, "max_tokens": 32, "length_penalty": 0.7, "no_repeat_ngram": 3},
    "complete": {"prompt": COMPLETE, "beams": 5, "max_tokens": 100, "no_repeat_ngram": 3},
    "generate_image": {"prompt": GENERATE_IMAGE, "sample": True, "top_k": 256},
}
ASKED = ("prompt", "prompt_with_caption", "prefix", "box_pixels", "rerank")  # settings that are not about the search

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


def distinct(kind: str, texts: Sequence[str]) -> list[str]:
    """Answers or labels to choose from, without blanks around them, each once.

    Raises:
        ArgumentError: there are none, one is empty, or `texts` is one string; they are called `kind`.
    """
    if isinstance(texts, str):
        raise ArgumentError(f"{kind}s are a list of strings; put {texts[:40]!r} into one, or split it at its commas")
    found = list(dict.fromkeys(text.strip() for text in texts))
    if not found or "" in found:
        raise ArgumentError(f"{f'the {kind}s hold an empty one' if found else f'there are no {kind}s'}; name some")
    return found


def words(kind: str, text: str, max_words: int | None = MAX_WORDS) -> str:
    """`clean_sentence` of what a user wrote.

    Raises:
        ArgumentError: nothing is left of it; it is called `kind`.
    """
    clean = clean_sentence(text, max_words)
    if not clean:
        raise ArgumentError(f"the {kind} {text[:40]!r} holds no words; write some")
    return clean


def fill_question(question: str, instruction: str = QUESTION) -> str:
    """The instruction of a question, which ends with its mark in any case.

    Raises:
        ArgumentError: the question holds no words.
    """
    text = clean_question(question, MAX_WORDS)
    if not text.rstrip("?？ "):
        raise ArgumentError(f"the question {question[:40]!r} holds no words; write some")
    return instruction.format(text if text.endswith(("?", "？")) else text + "?")


def question_ids(
    tokenizer: Tokenizer, question: str, objects: Sequence[str] = (), instruction: str = QUESTION
) -> list[int]:
    """Ids of a question, and of things that were seen in the photo, which some of OFA's models read behind it.

    Raises:
        ArgumentError: the question holds no words.
    """
    ids = tokenizer.encode(fill_question(question, instruction))
    return ids + tokenizer.encode(OBJECTS.format(" ".join(objects[:MAX_OBJECTS]))) if objects else ids


def gap_ids(tokenizer: Tokenizer, text: str, instruction: str = COMPLETE) -> list[int]:
    """Ids of an instruction around a text with gaps, each written `<mask>`.

    A gap stands for one word or several; a sign that follows it without a blank stays so.

    Raises:
        ArgumentError: the text has no gap, or nothing else.
    """
    parts = [re.sub(r"\s+", " ", part) for part in f" {text.lower().strip()}".split("<mask>")]
    if len(parts) < 2 or not "".join(parts).strip():
        raise ArgumentError(f"the text {text[:40]!r} has no gap between words; write <mask> where words are missing")
    before, after = instruction.split("{}")
    ids = tokenizer.encode(before)
    for number, part in enumerate(parts):
        ids += [tokenizer.mask_id] * bool(number) + tokenizer.encode(part.rstrip())
    return ids + tokenizer.encode(after)


def image_instruction(text: str, instruction: str = GENERATE_IMAGE) -> str:
    """The instruction to draw a picture of a text, of which OFA reads the first words as they are.

    Raises:
        ArgumentError: the text holds no words.
    """
    read = text.split()[:MAX_IMAGE_WORDS]
    if not read:
        raise ArgumentError("there is nothing to draw; write some words")
    return instruction.format(" ".join(read))


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


def clip_box(box: Sequence[float], width: int, height: int) -> tuple[float, float, float, float]:
    """A box that a user gave, without what lies outside of the photo; arguments as in `box_locations`.

    Raises:
        ArgumentError: it is no box, or none in this photo.
    """
    if len(box) == 4 and all(map(math.isfinite, box)):
        left, right = (min(max(x, 0), width) for x in box[::2])
        top, bottom = (min(max(y, 0), height) for y in box[1::2])
        if left < right and top < bottom:
            return left, top, right, bottom
    shown = ",".join(f"{value:g}" for value in box)
    raise ArgumentError(f"{shown} is no box in a photo of {width}x{height} pixels; give left, top, right, bottom")


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


def example(instruction: Sequence[int], answer: Sequence[int], prefix: Prefix = "none") -> Example:
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
