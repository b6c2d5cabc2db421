"""Captions of ours and of the reference data, and pycocoevalcap as what our caption metrics are compared with."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

REFERENCE = [
    pytest.param(name, marks=pytest.mark.reference(f"data/{name}/captions.json")) for name in ("coco", "flickr8k")
]


@pytest.fixture(scope="session")
def own_captions() -> dict[str, Any]:
    """Captions of `photos`, German ones (`de`), and the `tokens` that the official tokenizer makes of each."""
    return json.loads((Path(__file__).parents[2] / "golden" / "captions.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session", params=["own", *REFERENCE])
def source(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def photos(source, own_captions, reference) -> list[list[str]]:
    """For each photo of a set, its four to six captions."""
    if source == "own":
        return own_captions["photos"]
    file = reference / "data" / source / "captions.json"
    return [photo["captions"] for photo in json.loads(file.read_text(encoding="utf-8"))]


@pytest.fixture(scope="session")
def photo_tokenize(source, own_captions, request) -> Callable[[Sequence[str]], list[str]]:
    """The official tokenizer for captions of `photos`. Of ours its tokens are recorded, so that Java is not needed."""
    if source == "own":
        return lambda captions: [own_captions["tokens"][caption] for caption in captions]
    return request.getfixturevalue("official_tokenize")


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
