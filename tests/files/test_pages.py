"""Pages that stand alone: what is put into a template is escaped, and photos become small copies inside it."""

import base64
import io
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateNotFound, UndefinedError
from PIL import Image

from vlm.errors import ArgumentError
from vlm.files.pages import THUMBNAIL, template, thumbnail

SAMPLES = Path(__file__).parents[2] / "datasets" / "sample"
EMPTY = {"title": "like a photo", "examples": [], "minus": [], "index": "photos.index", "cards": []}
SEARCH = template("search.html")
HIT = {"thumbnail": None, "link": "file:///a.jpg", "score": 0.5, "caption": None, "path": "/a.jpg"}


class Page(HTMLParser):
    """Tags, values of attributes and words in their order, as a browser reads them."""

    def __init__(self, text: str):
        super().__init__()
        self.found = [""]
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found += [f"<{tag}>", *(f"{name}={value}" for name, value in attrs), ""]

    def handle_endtag(self, tag):
        self.found += [f"</{tag}>", ""]

    def handle_data(self, data):
        self.found[-1] += data


def opened(address: str) -> Image.Image:
    """The photo that a `data:` address holds."""
    kind, _, data = address.partition(";base64,")
    assert kind == "data:image/jpeg"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


# characters that HTML and its parser keep as they are: no controls, no ends of lines other than \n
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]) | st.sampled_from("<>&\"'`{}%\n"), min_size=1)


def with_everywhere(page: Any, text: str) -> list[str]:
    """What is read of a page that shows a text wherever it can show one."""
    cards = [{**HIT, "caption": text, "path": text, "link": text}]
    values = {**EMPTY, "title": text, "minus": [text], "index": text, "cards": cards}
    return Page(page.render(values)).found


@given(TEXTS)
def test_any_text_is_shown_as_itself(text):
    expected = with_everywhere(SEARCH, "A_TEXT")
    assert sum(part.count("A_TEXT") for part in expected) == 7  # title, heading, lead (2), and link, caption and path
    assert with_everywhere(SEARCH, text) == [part.replace("A_TEXT", text) for part in expected]


def test_markup_is_text():
    script = "</title><script>alert(1)</script>"
    text = SEARCH.render({**EMPTY, "title": script, "cards": [{**HIT, "link": '"><script>'}]})
    assert "<script" not in text
    assert "&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in text and 'href="&#34;&gt;&lt;script&gt;"' in text


def test_a_page_asks_for_nothing_else():
    text = SEARCH.render({**EMPTY, "cards": [{**HIT, "thumbnail": "data:image/jpeg;base64,AAAA"}]})
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    assert '<img src="data:image/jpeg;base64,AAAA" alt="">' in text and "photo cannot be shown" not in text
    assert not {"<script>", "<link>", "<iframe>"} & set(Page(text).found)


def test_a_photo_that_is_gone_is_said_so():
    text = SEARCH.render({**EMPTY, "cards": [HIT]})
    assert "photo cannot be shown" in text and "<img" not in text


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(UndefinedError, match="'cards' is undefined"):
        SEARCH.render({name: value for name, value in EMPTY.items() if name != "cards"})


def test_templates_of_a_package_extend_the_common_base():
    page = template("compare.html", "eval", figure=str)
    assert page.name == "compare.html" and page.environment.get_template("base.html").name == "base.html"
    with pytest.raises(TemplateNotFound, match=r"compare\.html"):
        template("compare.html")


def test_without_jinja2_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ArgumentError, match=r"pages need jinja2; install it: pip install 'vlm-foundation\[eval\]'"):
        template("search.html")


@pytest.mark.parametrize(
    "size, expected",
    [((720, 360), (360, 180)), ((100, 900), (40, 360)), ((360, 360), (360, 360)), ((50, 20), (50, 20))],
)
def test_a_thumbnail_is_smaller_and_keeps_its_shape(tmp_path, size, expected):
    path = tmp_path / "photo.png"
    Image.new("RGB", size, (200, 30, 40)).save(path)
    small = opened(str(thumbnail(str(path))))
    assert small.size == expected and max(small.size) <= THUMBNAIL
    pixel = small.getpixel((expected[0] // 2, expected[1] // 2))
    assert isinstance(pixel, tuple) and all(abs(a - b) <= 4 for a, b in zip(pixel, (200, 30, 40), strict=True))


def test_a_thumbnail_of_a_real_photo_looks_like_it():
    path = SAMPLES / "cat.jpg"
    small, photo = opened(str(thumbnail(str(path)))), Image.open(path)
    assert small.mode == "RGB" and max(small.size) == THUMBNAIL
    assert small.width / small.height == pytest.approx(photo.width / photo.height, rel=0.01)


@pytest.mark.parametrize("content", [None, b"", b"<html>", b"\xff\xd8\xff\xe0broken"])
def test_a_photo_that_cannot_be_read_has_no_thumbnail(tmp_path, content):
    path = tmp_path / "photo.jpg"
    if content is not None:
        path.write_bytes(content)
    assert thumbnail(str(path)) is None
