"""Say whether a sentence follows from a photo, contradicts it, or neither (visual entailment)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from vlm.decoding.answer import Answer
from vlm.predictor import Photo, Predictor, Prefix
from vlm.tasks.base import OFA_BASE, Task, patches_of
from vlm.tasks.text import clean_input

PROMPT = ' does the image describe " {} "?'
PROMPT_WITH_CAPTION = ' can image and text1 " {} " imply text2 " {} "?'
LABELS = {"yes": "entailment", "no": "contradiction", "maybe": "neutral"}  # by what the decoder generates


class Entail(Task):
    """A photo, a sentence and perhaps a caption of the photo to the three labels with their probabilities.

    The setting `prompt_with_caption` is the instruction where there is a caption.
    """

    name = "entail"
    inputs = ("sentence",)
    optional_inputs = ("caption",)
    does = "judge sentences about photos"
    example_model = OFA_BASE
    defaults: ClassVar = {"prompt": PROMPT, "prompt_with_caption": PROMPT_WITH_CAPTION, "prefix": "none"}
    extra = ("prompt_with_caption",)

    def source(self, photo: Photo | None, *inputs: Any) -> list[int]:
        hypothesis, caption = inputs
        sentences = [clean_input("sentence", hypothesis)]
        if caption.strip():
            sentences.insert(0, clean_input("caption", caption))
        instruction = self.settings["prompt_with_caption" if len(sentences) > 1 else "prompt"]
        return self.tokenizer.encode(instruction.format(*sentences))

    def run(
        self,
        predictor: Predictor,
        photos: Sequence[Photo] | None,
        *columns: Sequence[Any],
        prefix: Prefix | None = None,
        **options: Any,
    ) -> list[list[Answer]]:
        """Judge one sentence about each photo.

        Args:
            predictor: the model.
            photos: the same photo as often as it is asked about.
            columns: the sentences, one for each photo; and what is known of each photo, its caption, which is judged
                with it. An empty caption, or none: the photo alone.
            prefix: what the decoder is given before it answers; None: as the settings say.
            options: none.

        Returns:
            For each sentence `entailment`, `contradiction` and `neutral`, the likeliest first.

        Raises:
            ArgumentError: a sentence contains no words, or an option is given.
        """
        self.no_search(options)
        assert photos is not None
        hypotheses = columns[0]
        captions = columns[1] if len(columns) > 1 else [""] * len(hypotheses)
        sources = [self.source(*row) for row in zip(photos, hypotheses, captions, strict=True)]
        found = predictor.score(sources, patches_of(photos), list(LABELS), prefix=prefix or self.prefix)
        return [[replace(answer, text=LABELS[answer.text]) for answer in answers] for answers in found]
