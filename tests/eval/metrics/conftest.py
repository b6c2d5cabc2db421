"""Captions of the shared data sets, and pycocoevalcap as the reference that our caption metrics are held against."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

DATA = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture(scope="session", params=["coco", "flickr8k"])
def photos(request) -> list[list[str]]:
    """For each photo of a set, its five or six captions."""
    file = DATA / request.param / "captions.json"
    if not file.is_file():
        pytest.skip(f"the shared captions (../shared/data/{request.param}) are not beside the checkout")
    return [photo["captions"] for photo in json.loads(file.read_text(encoding="utf-8"))]


@pytest.fixture(scope="session")
def official_tokenize() -> Callable[[Sequence[str]], list[str]]:
    """The Java tokenizer of pycocoevalcap: captions to tokens joined by blanks."""
    if not shutil.which("java"):
        pytest.skip("the official tokenizer needs a java command")
    from pycocoevalcap.tokenizer import ptbtokenizer as module

    def tokenize(captions: Sequence[str]) -> list[str]:
        found = module.PTBTokenizer().tokenize({i: [{"caption": caption}] for i, caption in enumerate(captions)})
        return [found[i][0] for i in range(len(captions))]

    return tokenize
