"""Write out a text with gaps (text infilling)."""

import re
from typing import Any, ClassVar

from vlm.errors import ArgumentError
from vlm.predictor import Photo
from vlm.tasks.base import Task

PROMPT = ' what is the complete text of "{} "?'  # the text begins with a blank, as answers do
GAP = "<mask>"


class Complete(Task):
    """A text with gaps, each written `<mask>`, to the whole text, the best first."""

    name = "complete"
    does = "fill gaps in texts"
    defaults: ClassVar = {"prompt": PROMPT, "beams": 5, "max_tokens": 100, "no_repeat_ngram": 3}
    photo = "none"
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
