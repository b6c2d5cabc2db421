"""Describe a photo in one sentence."""

import random
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch

from vlm.data.shards import LANGUAGES, Sample, texts_of
from vlm.decoding.answer import Answer
from vlm.encoders import reranking
from vlm.errors import ArgumentError, DataError
from vlm.predictor import Photo, Predictor
from vlm.tasks.base import OFA_BASE, SENTENCE_SEARCH, Task, TrainingExample, choose
from vlm.tasks.text import clean_caption, strip_punctuation

PROMPT = " what does the image describe?"  # OFA's (Wang et al., 2022, arXiv:2202.03052)
PROMPT_CHINESE = "图片描述了什么内容?"
OFA_CAPTION_WORDS = 20


class Caption(Task):
    """A photo to sentences, the best first.

    Captions in another language than English are learned from the field of a sample's record that `language` names.

    The setting `rerank` is the weight that the contrastive pair has in which sentence is the best, see
    `vlm.encoders.reranking`.
    """

    name = "caption"
    count_name = "num_captions"
    does = "caption photos"
    example_model = OFA_BASE
    defaults: ClassVar = {"prompt": PROMPT, **SENTENCE_SEARCH}
    extra = ("rerank",)
    metric = "captions"
    reward = "cider"
    one_source = True
    language: ClassVar[str] = "en"

    def run(
        self,
        predictor: Predictor,
        photos: Sequence[Photo] | None,
        *columns: Sequence[Any],
        num_captions: int = 1,
        rerank: float | None = None,
        **options: Any,
    ) -> list[list[Answer]]:
        """Describe photos.

        Args:
            predictor: the model.
            photos: encoded photos.
            columns: none.
            num_captions: sentences a photo, the best first.
            rerank: weight of the agreement of photo and sentence in the order of the sentences found; 0 leaves it
                out; None: as the settings say, where the model has encoders.
            options: as in `Task.run`.

        Raises:
            ArgumentError: options that exclude each other, or the model has no encoders to rerank by.
        """
        if rerank is None:
            reads = predictor.encoders is not None and self.language == "en"  # which the pair's text tower reads
            rerank = self.settings.get("rerank", 0.0) if reads else 0.0
        weight = reranking.check_weight(rerank)
        if weight and predictor.encoders is None:
            raise ArgumentError(f"{predictor.name!r} has no encoders to rerank by; leave rerank out")
        assert photos is not None
        found = super().run(predictor, photos, *columns, count=num_captions, **options)
        if weight and predictor.encoders is not None and found:
            patches = torch.stack([photo.patches for photo in photos])
            found = reranking.rerank(predictor.encoders, patches, found, weight)
        return [captions[:num_captions] for captions in found]

    @classmethod
    def in_sample(cls, sample: Sample) -> bool:
        return any(map(clean_caption, cls.sentences(sample)))

    @classmethod
    def sentences(cls, sample: Sample) -> Sequence[str]:
        """What people said about a sample in the task's language."""
        if cls.language == "en":
            return sample.captions
        try:
            return texts_of(sample.fields, cls.language)
        except DataError as error:
            raise DataError(f"sample {sample.key!r}: {error}") from None

    @classmethod
    def texts(cls, sample: Sample) -> Iterator[str]:
        for caption in sample.captions:
            yield " " + clean_caption(caption)
        yield from (" " + text for language in LANGUAGES for text in texts_of(sample.fields, language))

    def examples(self, sample: Sample, rng: random.Random, count: int) -> list[TrainingExample]:
        source = self.source(None)
        return [self.example(source, ids) for ids in choose(self.caption_ids(self.sentences(sample)), count, rng)]

    def caption_ids(self, captions: Sequence[str]) -> list[list[int]]:
        """Cleaned captions as ids; too long ones are left out while there is a shorter one, and cut off otherwise."""
        longest = self.rules.max_tokens
        if self.rules.ofa_captions:
            clean = [strip_punctuation(caption, OFA_CAPTION_WORDS) for caption in captions]
        else:
            clean = [clean_caption(caption) for caption in captions]
        ids = self.tokenizer.encode_batch([" " + text for text in dict.fromkeys(filter(None, clean))])
        return [row for row in ids if len(row) <= longest] or [row[:longest] for row in ids]

    def checks(self, sample: Sample) -> Iterator[tuple[tuple[Any, ...], Sequence[str]]]:
        if sentences := self.sentences(sample):
            yield (), sentences
