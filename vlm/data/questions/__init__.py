"""Questions and answers made from what is known about a photo: its captions, boxes and Flickr30k Entities phrases.

Rules and hand-made word lists only. They leave out what they aren't sure of: where captions disagree, where it isn't
clear which of two dogs is meant, or where something nobody mentions may still be there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vlm.data.questions.base import KINDS, MadeQuestion
from vlm.data.questions.boxes import box_questions
from vlm.data.questions.captions import caption_questions
from vlm.data.questions.presence import presence_questions
from vlm.data.questions.scene import Scene
from vlm.data.questions.whole import whole_questions

__all__ = ["KINDS", "MadeQuestion", "questions_about"]


def questions_about(
    captions: Sequence[str],
    phrases: Sequence[Mapping[str, Any]] = (),
    boxes: Sequence[Mapping[str, Any]] = (),
    boxes_complete: bool = False,
) -> list[MadeQuestion]:
    """Everything that can be asked about a photo, in a fixed order.

    Args:
        captions: English sentences about the photo.
        phrases: of Flickr30k Entities, as `datasets/training_mix/README.md` describes them.
        boxes: `label` and `box` as fractions of the picture that the model sees: sides come from these.
        boxes_complete: every object of every class has a box.

    Returns:
        Questions, each text once.
    """
    scene = Scene(captions)
    found: dict[str, MadeQuestion] = {}
    made = [
        *caption_questions(scene),
        *whole_questions(scene),
        *box_questions(scene, phrases, boxes, boxes_complete),
        *presence_questions(scene, phrases, boxes, boxes_complete),
    ]
    for question in made:
        found.setdefault(question.text, question)
    return list(found.values())
