"""Describe a photo in one German sentence."""

from typing import ClassVar

from vlm.tasks.base import SENTENCE_SEARCH
from vlm.tasks.caption import Caption


class CaptionGerman(Caption):
    """A photo to German sentences, the best first."""

    name = "caption_de"
    does = "caption photos in German"
    language = "de"
    defaults: ClassVar = {"prompt": " was zeigt das bild?", **SENTENCE_SEARCH}
    example_model = None
    metric = "captions"
    reward = None
