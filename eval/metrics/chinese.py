"""Tokens of Chinese captions: characters, since Chinese writes no blanks between words.

Character tokens need no word segmenter, so that the figures depend on no dictionary and on no version of one.
"""

import re
import unicodedata

from vlm.errors import DataError

_CHARACTER = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # CJK ideographs
_TOKEN = re.compile(rf"[{_CHARACTER}]|[^\W_{_CHARACTER}]+")


def tokenize(caption: str) -> list[str]:
    """Each Chinese character is a token, and so is each run of other letters and digits, in lower case.

    Punctuation is dropped, as it is from English captions. Full-width letters and digits count as ordinary ones (NFKC).

    Raises:
        DataError: the caption is not text.
    """
    if not isinstance(caption, str):
        raise DataError(f"a caption must be text, not {type(caption).__name__}")
    return _TOKEN.findall(unicodedata.normalize("NFKC", caption).lower())
