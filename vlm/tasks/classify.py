"""Give a photo one of the user's labels, by scoring each label as an answer."""

from collections.abc import Sequence
from typing import Any, ClassVar

from vlm.decoding.answer import Answer
from vlm.encoders.zero_shot import warn_of_alike
from vlm.predictor import Photo, Predictor
from vlm.tasks.base import OFA_BASE, Task, patches_of
from vlm.tasks.caption import PROMPT
from vlm.tasks.text import distinct


class Classify(Task):
    """A photo and labels to all of these with their log-probabilities, the likeliest first."""

    name = "classify"
    inputs = ("labels",)
    does = "give photos labels"
    example_model = OFA_BASE
    defaults: ClassVar = {"prompt": PROMPT}  # the answer is a label

    def run(
        self, predictor: Predictor, photos: Sequence[Photo] | None, *columns: Sequence[Any], **options: Any
    ) -> list[list[Answer]]:
        """Score labels as answers to what each photo shows.

        Args:
            predictor: the model.
            photos: encoded photos.
            columns: the labels to choose from, a list for each photo; photos with equal labels are scored together.
            options: none.

        Raises:
            ArgumentError: there are no labels, or an option is given.
        """
        self.no_search(options)
        assert photos is not None
        groups: dict[tuple[str, ...], list[int]] = {}
        for row, (labels, _) in enumerate(zip(columns[0], photos, strict=True)):
            groups.setdefault(tuple(distinct("label", labels)), []).append(row)
        found: dict[int, list[Answer]] = {}
        source = self.tokenizer.encode(self.prompt)
        for labels, rows in groups.items():
            warn_of_alike(predictor.name, "labels", labels, predictor.answer_ids(labels))
            patches = patches_of([photos[row] for row in rows])
            scored = predictor.score([source] * len(rows), patches, labels, prefix=self.prefix)
            found.update(zip(rows, scored, strict=True))
        return [found[row] for row in range(len(photos))]

    def prediction(self, found: list[Answer], *inputs: Any) -> int:
        """The number of the likeliest label."""
        (labels,) = inputs
        return [label.strip() for label in labels].index(found[0].text)
