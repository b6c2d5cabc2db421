"""Say how likely it is that a sentence fits a photo (image-text matching)."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from vlm.data.negatives import alike, changed_sentences
from vlm.data.shards import Sample
from vlm.predictor import Photo, Predictor, Prefix
from vlm.tasks.base import Task, TrainingExample, choose, patches_of
from vlm.tasks.entail import PROMPT
from vlm.tasks.text import clean_caption, clean_input

ALIKE = "alike"  # field of a sample's record: captions of alike photos
NUM_ALIKE = 4  # photos
CHANGED = 0.6  # share of the sentences to refuse that are changed captions; the others are those of alike photos


class Match(Task):
    """A photo and a sentence to the probability that the sentence fits.

    It is learned from captions, half of them true; the others have one thing changed, or belong to an alike photo.
    """

    name = "match"
    inputs = ("sentence",)
    does = "say whether sentences fit photos"
    defaults: ClassVar = {"prompt": PROMPT, "prefix": "none"}
    metric = "probabilities"

    def source(self, photo: Photo | None, *inputs: Any) -> list[int]:
        (sentence,) = inputs
        return self.tokenizer.encode(self.prompt.format(clean_input("sentence", sentence)))

    def run(
        self,
        predictor: Predictor,
        photos: Sequence[Photo] | None,
        *columns: Sequence[Any],
        prefix: Prefix | None = None,
        **options: Any,
    ) -> list[float]:
        """Judge one sentence about each photo.

        Args:
            predictor: the model.
            photos: encoded photos.
            columns: the sentences, one for each photo.
            prefix: what the decoder is given before it answers; None: as the settings say.
            options: none.

        Returns:
            For each photo the probability of "yes" against "no".

        Raises:
            ArgumentError: a sentence contains no words, or an option is given.
        """
        options.pop("choices", None)
        self.no_search(options)
        sources = [self.source(None, sentence) for sentence in columns[0]]
        found = predictor.score(sources, patches_of(photos), ["yes", "no"], prefix=prefix or self.prefix)
        return [math.exp(next(answer.score for answer in answers if answer.text == "yes")) for answers in found]

    def prediction(self, found: float, *inputs: Any) -> float:
        return found

    @classmethod
    def in_sample(cls, sample: Sample) -> bool:
        return bool(clean_captions(sample))

    @classmethod
    def annotate(cls, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Add captions of alike photos."""
        found = alike([sample.captions for sample in samples], NUM_ALIKE)
        captions = [[samples[i].captions for i in photos] for photos in found]
        return [
            replace(sample, fields={**sample.fields, ALIKE: texts}) if texts else sample
            for sample, texts in zip(samples, captions, strict=True)
        ]

    def examples(self, sample: Sample, rng: random.Random, count: int) -> list[TrainingExample]:
        yes, no = self.tokenizer.encode_batch([" yes", " no"])
        found: list[TrainingExample] = []
        for number, caption in enumerate(choose(clean_captions(sample), count, rng)):
            wrong = self._wrong(caption, sample, rng) if (number + rng.randrange(2)) % 2 else None
            found.append(self.example(self.source(None, wrong or caption), no if wrong else yes))
        return found

    def checks(self, sample: Sample) -> Iterator[tuple[tuple[Any, ...], Sequence[str]]]:
        rng = random.Random(sample.key)
        for caption in clean_captions(sample)[:2]:
            yield (caption,), ["yes"]
            if wrong := self._wrong(caption, sample, rng):
                yield (wrong,), ["no"]

    @staticmethod
    def _wrong(caption: str, sample: Sample, rng: random.Random) -> str | None:
        """A sentence that does not fit the sample's photo."""
        others = [clean_caption(text) for texts in sample.fields.get(ALIKE) or () for text in texts]
        if (not others or rng.random() < CHANGED) and (found := changed_sentences(caption, sample.captions, rng)):
            return found[0]
        return rng.choice(others) if others else None


def clean_captions(sample: Sample) -> list[str]:
    """The captions of a sample that hold words, as models read them."""
    return [clean for caption in sample.captions if (clean := clean_caption(caption))]
