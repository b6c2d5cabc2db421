"""Describe a photo in one Chinese sentence."""

from typing import ClassVar

from vlm.tasks.base import SENTENCE_SEARCH
from vlm.tasks.caption import PROMPT_CHINESE, Caption


class CaptionChinese(Caption):
    """A photo to Chinese sentences, the best first."""

    name = "caption_zh"
    does = "caption photos in Chinese"
    language = "zh"
    defaults: ClassVar = {"prompt": PROMPT_CHINESE, **SENTENCE_SEARCH}
    example_model = None
    metric = "captions_chinese"
    reward = None
