"""An index of photos: what search finds, and what a second run, a kill and damaged files leave of it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from vlm.decoding.answer import Answer
from vlm.encoders import Encoders
from vlm.errors import ArgumentError, DataError, ImageError, ModelError
from vlm.model import Model
from vlm.search.build import build, find_photos
from vlm.search.index import Index, Maker, maker_of, open_index, open_or_create, query_vector

COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}


class Colours(Encoders):
    """Sees the mean colour of a photo and reads the three words of it; counts the photos that it is given."""

    logit_scale = None

    def __init__(self, name: str = "colours", brightness: float = 1.0, delay: float = 0.0):
        super().__init__(name, 3, self.transform)
        self.weight = torch.nn.Parameter(torch.full((3,), brightness))
        self.delay, self.seen = delay, 0

    def transform(self, image: Image.Image) -> Tensor:
        time.sleep(self.delay)
        return torch.from_numpy(np.asarray(image.resize((4, 4)), dtype=np.float32)).permute(2, 0, 1) / 255

    def image_vectors(self, pixels: Tensor) -> Tensor:
        self.seen += len(pixels)
        return pixels.mean((2, 3)) * self.weight

    def tokenize(self, texts) -> Tensor:
        return torch.tensor([[name in text for name in COLOURS] for text in texts], dtype=torch.long)

    def text_vectors(self, ids: Tensor) -> Tensor:
        return ids.float() * self.weight


def paint(path: Path, colour: tuple[int, int, int]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)
    return str(path)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three photos, one of them in a subfolder, and things that are no photos."""
    folder = tmp_path / "photos"
    for name, colour in COLOURS.items():
        paint(folder / ("sub" if name == "blue" else "") / f"{name}.png", colour)
    paint(folder / ".hidden" / "x.png", (0, 0, 0))
    paint(folder / "._red.png", (0, 0, 0))
    (folder / "notes.txt").write_text("no photo")
    return folder


def names(index: Index) -> list[str]:
    return sorted(os.path.basename(path) for path in index.known())


def counts(report) -> tuple[int, int, int, int, int]:
    return report.new, report.changed, report.unchanged, report.dropped, len(report.unreadable)


def test_each_word_finds_its_photo(photos, tmp_path):
    model = Colours()
    report = build(photos, tmp_path / "i", model)
    assert counts(report) == (3, 0, 0, 0, 0) and report.photos == 3 and report.recall is None
    index = open_index(tmp_path / "i")
    for name in COLOURS:
        hits = index.search(model, f"something {name}", top=99)  # more than there are: all there are
        assert len(hits) == 3 and os.path.basename(hits[0].path) == f"{name}.png" and hits[0].caption is None
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    # by hand: (220, 20, 20) against (1, 0, 0) and against (0, 1, 0), over its length
    length = (220**2 + 2 * 20**2) ** 0.5
    scores = {os.path.basename(hit.path): hit.score for hit in index.search(model, "red")}
    assert scores == pytest.approx(
        {"red.png": 220 / length, "green.png": 20 / length, "blue.png": 20 / length}, abs=1e-5
    )
    assert [hit.path for hit in index.search(model, "red", top=1)] == [str(photos / "red.png")]


def test_words_and_photos_add_up(photos, tmp_path):
    model = Colours()
    build(photos, tmp_path / "i", model)
    index = open_index(tmp_path / "i")
    (like,) = index.search(model, images=[photos / "green.png"], top=1)
    assert like.path == str(photos / "green.png") and like.score == pytest.approx(1, abs=1e-5)
    yellow = paint(tmp_path / "yellow.png", (200, 200, 0))
    (found,) = index.search(model, images=[yellow], minus=["red"], top=1)
    assert found.path == str(photos / "green.png")
    (found,) = index.search(model, "blue", images=[yellow], minus=["green", "red"], top=1)
    assert found.path == str(photos / "sub" / "blue.png")
    half = 0.5**0.5  # the sum of two unit vectors that stand square, and its unit length
    with torch.no_grad():
        red = Image.new("RGB", (4, 4), (255, 0, 0))
        torch.testing.assert_close(query_vector(model, "green", images=[red]), torch.tensor([half, half, 0]))
        torch.testing.assert_close(query_vector(model, "red", minus=["blue"]), torch.tensor([half, 0, -half]))


def test_only_what_changed_is_encoded_again(photos, tmp_path):
    model = Colours()
    build(photos, tmp_path / "i", model)
    assert counts(build(photos, tmp_path / "i", model)) == (0, 0, 3, 0, 0) and model.seen == 3
    paint(photos / "red.png", COLOURS["blue"])
    os.utime(photos / "red.png", ns=(0, 12345))
    paint(photos / "new.png", COLOURS["green"])
    (photos / "sub" / "blue.png").unlink()
    assert counts(build(photos, tmp_path / "i", model)) == (1, 1, 1, 1, 0) and model.seen == 5
    index = open_index(tmp_path / "i")
    assert names(index) == ["green.png", "new.png", "red.png"]
    assert index.known()[str(photos / "red.png")][1] == 12345
    assert index.search(model, "blue", top=1)[0].path == str(photos / "red.png")


def test_other_folders_of_an_index_stay(photos, tmp_path):
    model = Colours()
    paint(tmp_path / "photos2" / "a.png", (9, 9, 9))  # a name that begins like the other folder's
    build(photos, tmp_path / "i", model)
    assert counts(build(tmp_path / "photos2", tmp_path / "i", model)) == (1, 0, 0, 0, 0)
    assert counts(build(photos / "sub", tmp_path / "i", model)) == (0, 0, 1, 0, 0)
    assert len(open_index(tmp_path / "i")) == 4


NAMES = [
    'it\'s "x".jpg',
    "'; DROP TABLE photos; --.png",
    "a\\'.png",
    "%_?*[].png",
    "日本 ô\u0301.png",
    "new\nline.png",
    "$1.png",
]


def test_names_of_files_are_only_names(tmp_path):
    folder, model = tmp_path / "p", Colours()
    for name in [*NAMES, "kept.png"]:
        paint(folder / name, COLOURS["red"])
    build(folder, tmp_path / "i", model)
    assert names(open_index(tmp_path / "i")) == sorted([*NAMES, "kept.png"])
    for number, name in enumerate(NAMES):
        (folder / name).unlink()
        assert counts(build(folder, tmp_path / "i", model)) == (0, 0, len(NAMES) - 1 - number + 1, 1, 0)
    assert names(open_index(tmp_path / "i")) == ["kept.png"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.text(min_size=1), min_size=1, max_size=8), st.data())
def test_any_text_is_put_and_dropped_as_itself(tmp_path, paths, data):
    index = open_or_create(tmp_path / "i", Colours())
    index.drop(list(index.known()))
    row = {"size": 1, "mtime": 2, "vector": [1.0, 0.0, 0.0], "caption": None}
    for _ in range(2):  # the second time replaces
        index.put([{"path": path, **row} for path in paths])
    assert index.known() == dict.fromkeys(paths, (1, 2, False))
    gone = data.draw(st.sets(st.sampled_from(sorted(paths))))
    index.drop(sorted(gone))
    assert set(index.known()) == paths - gone


def test_unreadable_photos_are_reported_and_nothing_else_is_lost(photos, tmp_path):
    model = Colours()
    (photos / "a.png").write_bytes((photos / "red.png").read_bytes()[:40])
    (photos / "sub" / "b.jpg").write_text("<html>")
    (photos / "dangling.png").symlink_to("nowhere")
    (photos / os.fsdecode(b"latin1-\xe4.png")).write_bytes((photos / "red.png").read_bytes())
    Image.new("1", (10_000, 10_001)).save(photos / "huge.png")  # 100 megapixels
    Image.new("1", (1, 201)).save(photos / "line.png")
    Image.new("RGB", (200, 1), COLOURS["green"]).save(photos / "green.png")
    report = build(photos, tmp_path / "i", model, batch_size=2)
    assert counts(report) == (3, 0, 0, 0, 6) and names(open_index(tmp_path / "i")) == [
        "blue.png",
        "green.png",
        "red.png",
    ]
    lines = "\n".join(sorted(map(str, report.unreadable)))
    assert all(
        word in lines
        for word in ["a.png", "b.jpg", "dangling.png", "huge.png", "max_pixels", "latin1", "rename", "1x201"]
    )
    assert len(lines.splitlines()) == 6
    # the limit is the caller's; and a photo that became unreadable is no longer found by what it was
    paint(photos / "huge.png", COLOURS["red"])
    assert "huge.png" in str(build(photos, tmp_path / "j", model, max_pixels=63).unreadable)
    (photos / "red.png").write_bytes(b"broken")
    assert counts(build(photos, tmp_path / "i", model)) == (1, 0, 2, 1, 6)
    assert names(open_index(tmp_path / "i")) == ["blue.png", "green.png", "huge.png"]


def test_links_are_followed_and_loops_end(photos, tmp_path):
    (photos / "sub" / "loop").symlink_to(photos, target_is_directory=True)
    (photos / "a-loop").symlink_to(photos / "sub", target_is_directory=True)
    paint(tmp_path / "elsewhere" / "e.png", (1, 2, 3))
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (photos / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (photos / "self.png").symlink_to("self.png")
    found, failed = find_photos(photos)
    shown = [os.path.relpath(path, photos) for path in found]
    assert shown == ["green.png", "red.png", "sub/blue.png", "../elsewhere/e.png"]
    assert list(failed) == [str(photos / "self.png")]


def test_a_folder_that_cannot_be_listed_keeps_its_photos(photos, tmp_path, monkeypatch):
    model = Colours()
    build(photos, tmp_path / "i", model)
    real = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root may list what it likes
    report = build(photos, tmp_path / "i", model)
    assert counts(report) == (0, 0, 2, 0, 1) and "sub" in str(report.unreadable[0]) and report.photos == 3


def test_a_folder_without_photos_changes_nothing(photos, tmp_path):
    model = Colours()
    build(photos, tmp_path / "i", model)
    shutil.move(photos, tmp_path / "moved")
    photos.mkdir()  # as a disk that is not mounted
    for folder, word in [
        (photos, "no photo"),
        (tmp_path / "gone", "No such file"),
        (tmp_path / "moved/red.png", "Not a"),
    ]:
        with pytest.raises(ImageError, match=word):
            build(folder, tmp_path / "i", model)
    assert len(open_index(tmp_path / "i")) == 3


def test_another_model_is_refused_with_both_names(photos, tmp_path):
    model, other = Colours("first"), Colours("second", brightness=2.0)
    build(photos, tmp_path / "i", model)
    index = open_index(tmp_path / "i")
    assert (index.maker.model, index.maker.dim) == ("first", 3)
    with pytest.raises(ModelError, match=r"made by 'first' .* not by 'second'"):
        index.search(other, "red")
    with pytest.raises(ModelError, match=r"made by 'first' .* not by 'second'"):
        build(photos, tmp_path / "i", other)
    assert index.search(Colours("the same by another name"), "red", top=1)[0].path == str(photos / "red.png")


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({}, "nothing to search for"),
        ({"text": ""}, "empty"),
        ({"text": " \t\n"}, "empty"),
        ({"text": "red", "minus": [" "]}, "empty"),
        ({"minus": ["red"]}, "nothing to search for"),
        ({"text": "red", "minus": ["red"]}, "cancels"),
        ({"text": "red\udce4"}, "UTF-8"),
        ({"text": "red", "top": 0}, "top=0"),
    ],
)
def test_queries_without_meaning(photos, tmp_path, arguments, word):
    model = Colours()
    build(photos, tmp_path / "i", model)
    with pytest.raises(ArgumentError, match=word):
        open_index(tmp_path / "i").search(model, **arguments)


def test_what_is_no_index(photos, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, word in [
        ("nothing", "does not exist"),
        ("file", "is a file"),
        ("empty", "holds no index"),
        ("photos", "holds no"),
    ]:
        with pytest.raises(DataError, match=word):
            open_index(tmp_path / name)
    assert not (tmp_path / "nothing").exists()  # looking makes no folder
    for name, word in [("file", "is a file"), ("photos", "a folder with other files")]:
        with pytest.raises(ArgumentError, match=word):
            build(photos, tmp_path / name, Colours())
    import lancedb

    lancedb.connect(tmp_path / "theirs").create_table("photos", [{"vector": [1.0, 2.0]}])
    with pytest.raises(DataError, match="which model"):
        open_index(tmp_path / "theirs")


def spoil(folder: Path, how: str) -> None:
    for file in folder.iterdir():
        data = file.read_bytes()
        file.write_bytes(
            {"cut": data[: len(data) // 2], "empty": b"", "zeros": bytes(len(data)), "noise": b"x" * len(data)}[how]
        )


@pytest.mark.parametrize("how", ["cut", "empty", "zeros", "noise"])
@pytest.mark.parametrize("part", ["data", "_versions"])
def test_a_damaged_index_is_one_line(photos, tmp_path, part, how):
    model = Colours()
    build(photos, tmp_path / "i", model)
    spoil(tmp_path / "i" / "photos.lance" / part, how)
    for use in (lambda: open_index(tmp_path / "i").search(model, "red"), lambda: build(photos, tmp_path / "i", model)):
        with pytest.raises(DataError) as error:
            use()
        assert len(str(error.value).splitlines()) == 1 and repr(str(tmp_path / "i")) in str(error.value)


def test_an_index_whose_creation_was_cut_short_is_made_anew(photos, tmp_path):
    (tmp_path / "i" / "photos.lance" / "data").mkdir(parents=True)
    build(photos, tmp_path / "i", Colours())
    assert len(open_index(tmp_path / "i")) == 3


def test_a_stopped_run_keeps_what_it_did(photos, tmp_path):
    class Stopped(Colours):
        def image_vectors(self, pixels):
            if self.seen == 2:
                raise KeyboardInterrupt
            return super().image_vectors(pixels)

    with pytest.raises(KeyboardInterrupt):
        build(photos, tmp_path / "i", Stopped(), batch_size=1, commit_seconds=1e9)
    assert names(open_index(tmp_path / "i")) == ["green.png", "red.png"]
    assert counts(build(photos, tmp_path / "i", Colours())) == (1, 0, 2, 0, 0)


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from test_index import Colours, build
build(sys.argv[2], sys.argv[3], Colours(delay=0.1), batch_size=4, commit_seconds=0)
"""


def test_a_killed_run_leaves_a_usable_index(tmp_path):
    folder, model = tmp_path / "p", Colours()
    rng = np.random.default_rng(0)
    for number in range(120):
        paint(folder / f"{number:03}.png", tuple(rng.integers(0, 256, 3).tolist()))
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(folder), str(tmp_path / "i")]
    child = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    try:
        deadline = time.monotonic() + 300
        while True:  # until some photos are written
            assert time.monotonic() < deadline and child.poll() is None
            time.sleep(0.05)
            try:
                if len(open_index(tmp_path / "i")) >= 8:
                    break
            except DataError:
                continue
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    index = open_index(tmp_path / "i")
    kept = len(index)
    assert 8 <= kept < 120 and len(index.search(model, "red", top=5)) == 5
    assert counts(build(folder, tmp_path / "i", model)) == (120 - kept, 0, kept, 0, 0)
    build(folder, tmp_path / "j", model)
    query = torch.tensor([1.0, 0.5, 0.2])
    found = [hit for where in "ij" for hit in open_index(tmp_path / where).nearest(query, 120)]
    assert sorted(map(repr, found[:120])) == sorted(map(repr, found[120:]))


def test_captions_are_kept_and_written_where_they_lack(photos, tmp_path):
    asked: list[str] = []

    class Captioner(Model):
        def __init__(self):
            pass

        def stream(self, task, images, **_):
            assert task == "caption"
            for path in images:
                asked.append(path)
                yield [[Answer(f"of {os.path.basename(path)}", 0.0)]]

    model, captioner = Colours(), Captioner()
    build(photos, tmp_path / "i", model)
    (photos / "z.png").write_text("broken")
    assert counts(build(photos, tmp_path / "i", model, captioner=captioner)) == (0, 3, 0, 0, 1)
    index = open_index(tmp_path / "i")
    assert index.search(model, "red", top=1)[0].caption == "of red.png"
    assert counts(build(photos, tmp_path / "i", model, captioner=captioner)) == (0, 0, 3, 0, 1)
    assert len(asked) == 3


def test_the_maker_is_known_by_its_weights(photos):
    first, second = maker_of(Colours()), maker_of(Colours(brightness=1.0 + 2**-20))
    assert first == maker_of(Colours()) and first.weights_sha256 != second.weights_sha256
    assert isinstance(first, Maker) and len(first.weights_sha256) == 64
    assert first.weights_sha256 == maker_of(Colours("renamed")).weights_sha256
