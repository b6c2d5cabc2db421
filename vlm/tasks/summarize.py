"""Summarise a text in a sentence."""

from typing import Any, ClassVar

from vlm.predictor import Photo
from vlm.tasks.base import OFA_BASE, Task
from vlm.tasks.text import clean_input

PROMPT = ' what is the summary of article " {} "?'
PROMPT_CHINESE = "{} 请用一个句子简单总结上文："
MAX_ARTICLE_WORDS = 512


class Summarize(Task):
    """A text to summaries, the best first; text after the first 512 words is ignored."""

    name = "summarize"
    does = "summarise texts"
    example_model = OFA_BASE
    defaults: ClassVar = {
        "prompt": PROMPT,
        "beams": 6,
        "max_tokens": 32,
        "length_penalty": 0.7,
        "no_repeat_ngram": 3,
    }
    photo = "none"
    inputs = ("text",)

    def source(self, photo: Photo | None, *inputs: Any) -> list[int]:
        (text,) = inputs
        clean = clean_input("text", text, MAX_ARTICLE_WORDS).replace("<unk>", "unk")
        return self.tokenizer.encode(self.prompt.format(clean))
