"""What comes out of the decoder, as text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """A text that a model generated or chose.

    Attributes:
        text: the text.
        score: its log-probability. Where a task searches with `normalize`, as captions do, the mean over its tokens
            (the sum, divided by the length to the power of `length_penalty`). Captions that were reranked have their
            agreement with the photo added, see `vlm.encoders.reranking`.
        ids: its tokens, where it was generated.
    """

    text: str
    score: float
    ids: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.text
