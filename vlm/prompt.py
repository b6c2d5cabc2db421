"""Tasks as data: the instruction that the model reads, and how text is made ready for it.

The instructions are those of OFA (Wang et al., 2022), whose leading blank belongs to the string.
"""

import re
from typing import Any

CAPTION = " what does the image describe?"

_PUNCTUATION = re.compile(r"[^\w\s'-]|_|(?<![^\W_])['-]+|['-]+(?![^\W_])")
_BLANKS = re.compile(r"\s+")


def clean_caption(caption: str) -> str:
    """A caption as the model learns it: lower case, no punctuation but hyphens and apostrophes inside words."""
    return _BLANKS.sub(" ", _PUNCTUATION.sub(" ", caption.lower().replace("’", "'"))).strip()


# how captions are searched; 3-gram repeats are never wanted in one sentence
CAPTION_OPTIONS: dict[str, Any] = {"beams": 5, "max_tokens": 20, "no_repeat_ngram": 3}
