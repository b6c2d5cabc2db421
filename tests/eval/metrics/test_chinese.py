"""Tokens of Chinese captions by hand."""

import pytest

from eval.metrics.chinese import tokenize
from vlm.errors import DataError


@pytest.mark.parametrize(
    "caption, tokens",
    [
        ("一个男孩。", ["一", "个", "男", "孩"]),
        ("穿T恤的人，2个", ["穿", "t", "恤", "的", "人", "2", "个"]),
        ("“NIKE 88”、ＡＢ", ["nike", "88", "ab"]),  # full-width letters are ordinary ones
        ("𠀀 狗", ["𠀀", "狗"]),  # a character outside the basic plane
        ("。", []),
    ],
)
def test_characters_and_runs_of_letters(caption, tokens):
    assert tokenize(caption) == tokens


def test_what_is_not_text_is_refused():
    with pytest.raises(DataError, match="must be text, not int"):
        tokenize(3)  # type: ignore[arg-type]
