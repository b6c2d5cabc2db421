"""Write out a text with gaps (text infilling)."""

import random
import re
from typing import Any, ClassVar

from vlm.data.shards import Sample
from vlm.errors import ArgumentError
from vlm.predictor import Photo
from vlm.tasks.base import OFA_BASE, Task, TrainingExample, choose
from vlm.tasks.text import clean_caption

PROMPT = ' what is the complete text of "{} "?'  # the text begins with a blank, as answers do
GAP = "<mask>"
HIDDEN = 0.3  # share of a text's words that training hides, in one gap or two


class Complete(Task):
    """A text with gaps, each written `<mask>`, to the whole text, the best first; a photo helps where there is one."""

    name = "complete"
    does = "fill gaps in texts"
    example_model = OFA_BASE
    defaults: ClassVar = {"prompt": PROMPT, "beams": 5, "max_tokens": 100, "no_repeat_ngram": 3}
    photo = "optional"
    inputs = ("text",)

    def source(self, photo: Photo | None, *inputs: Any) -> list[int]:
        """Ids of the instruction around a text with gaps.

        A gap stands for one word or several; a sign that follows it without a blank stays so.

        Raises:
            ArgumentError: the text has no gap, or nothing else.
        """
        (text,) = inputs
        parts = [re.sub(r"\s+", " ", part) for part in f" {text.lower().strip()}".split(GAP)]
        if len(parts) < 2 or not "".join(parts).strip():
            raise ArgumentError(f"the text {text[:40]!r} has no gap between words; write {GAP} where words are missing")
        before, after = self.prompt.split("{}")
        ids = self.tokenizer.encode(before)
        for number, part in enumerate(parts):
            ids += [self.tokenizer.mask_id] * bool(number) + self.tokenizer.encode(part.rstrip())
        return ids + self.tokenizer.encode(after)

    @classmethod
    def in_sample(cls, sample: Sample) -> bool:
        return any(len(clean_caption(caption).split()) > 2 for caption in sample.captions)

    def examples(self, sample: Sample, rng: random.Random, count: int) -> list[TrainingExample]:
        texts = [text for caption in sample.captions if len((text := clean_caption(caption)).split()) > 2]
        found: list[TrainingExample] = []
        for text in choose(texts, count, rng):
            answer = self.tokenizer.encode(f" {text}")[: self.rules.max_tokens]
            found.append(self.example(self.source(None, with_gaps(text, rng)), answer))
        return found


def with_gaps(text: str, rng: random.Random) -> str:
    """A text of three words or more of which about a third is hidden, in one gap or two."""
    words = text.split()
    for _ in range(rng.choice((1, 2))):
        length = max(1, round(len(words) * HIDDEN / 2 * rng.uniform(0.5, 2)))
        first = rng.randrange(len(words) - length + 1)
        words[first : first + length] = [GAP]
    gaps = " ".join(words)
    return gaps if set(words) != {GAP} else f"{text.split()[0]} {GAP}"
