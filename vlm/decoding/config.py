"""How answers are searched, and what is found."""

import math
from dataclasses import dataclass

from vlm.errors import ArgumentError
from vlm.models.config import NUM_SPECIALS

MAX_BEAMS = 10_000  # more would take gigabytes without finding anything better


@dataclass(frozen=True)
class GenerationConfig:
    """How answers are searched; the defaults describe captions.

    Attributes:
        beams: beam width, and the number of answers; 1 is greedy search. With `sample`, independent draws a sample.
        max_tokens: longest answer, end token not counted, plus `max_tokens_per_source` for each prompt token.
        min_tokens: shortest answer, end token not counted.
        length_penalty: exponent of the length by which a score is divided; below 1 favours short answers.
        normalize: divide scores by the length at all.
        no_repeat_ngram: forbid a second occurrence of any n-gram of this length; 0: allow.
        temperature: divides the logits.
        unk_penalty: subtracted from the log-probability of the unknown token.
        allowed: ids `(start, end)` that may be written beside the four special ones; None: all. Costs less than all.
        mask_after_softmax: apply `allowed` and a trie after the softmax over all ids, not before ("zero-shot").
        sample: draw tokens instead of searching for the best.
        top_k: draw among the k most probable tokens; 0: all.
        top_p: draw among the fewest tokens that hold this probability together; 0: all.
    """

    beams: int = 5
    max_tokens: int = 16
    max_tokens_per_source: float = 0.0
    min_tokens: int = 1
    length_penalty: float = 1.0
    normalize: bool = True
    no_repeat_ngram: int = 0
    temperature: float = 1.0
    unk_penalty: float = 0.0
    allowed: tuple[int, int] | None = None
    mask_after_softmax: bool = False
    sample: bool = False
    top_k: int = 0
    top_p: float = 0.0

    def __post_init__(self):
        least = {
            "beams": 1,
            "max_tokens": 0,
            "max_tokens_per_source": 0,
            "min_tokens": 0,
            "no_repeat_ngram": 0,
            "top_k": 0,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(
                value, int if name != "max_tokens_per_source" else int | float
            ):
                raise ArgumentError(f"{name}={value!r} is not a whole number; give {bound} or more")
            if getattr(self, name) < bound:
                raise ArgumentError(f"{name}={getattr(self, name)} is below {bound}; give {bound} or more")
        if self.beams > MAX_BEAMS:
            raise ArgumentError(f"beams={self.beams} is above {MAX_BEAMS}; give fewer")
        if not 0 < self.temperature < math.inf:
            raise ArgumentError(
                f"temperature={self.temperature} is not a number above 0; for the likeliest tokens set beams=1"
            )
        if not 0 <= self.top_p <= 1:
            raise ArgumentError(f"top_p={self.top_p} is not a probability; give a value from 0 to 1")
        if self.top_k and self.top_p:
            raise ArgumentError(f"top_k={self.top_k} and top_p={self.top_p} exclude each other; give one of them")
        if (self.top_k or self.top_p) and not self.sample:
            raise ArgumentError("top_k and top_p have no meaning in a beam search; set sample=True or leave them out")
        if self.allowed is not None and not NUM_SPECIALS <= self.allowed[0] < self.allowed[1]:
            raise ArgumentError(
                f"allowed={self.allowed} is not a range (start, end) with {NUM_SPECIALS} <= start < end"
            )

    def token_limit(self, source_words: int) -> int:
        """Longest answer to a batch of prompts padded to `source_words` tokens, end token not counted."""
        limit = int(self.max_tokens_per_source * source_words + self.max_tokens)
        if self.min_tokens > limit:
            raise ArgumentError(
                f"max_tokens={self.max_tokens} leaves no room for the shortest answer, of {self.min_tokens} tokens; "
                "raise it"
            )
        return limit


@dataclass(frozen=True)
class Hypothesis:
    """A finished answer.

    Attributes:
        ids: its tokens, without start and end token.
        score: sum of the token scores, divided by the length where configured.
        token_scores: log-probability of each token, the end token last.
    """

    ids: tuple[int, ...]
    score: float
    token_scores: tuple[float, ...]
