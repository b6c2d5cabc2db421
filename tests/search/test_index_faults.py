"""What harms an index: two runs at once, odd metadata, folders reached through links or deleted."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tasks import retrieve
from vlm.encoders import Encoders
from vlm.errors import ArgumentError
from vlm.files.lock import LOCK, locked
from vlm.search.build import BuildReport, build, prune
from vlm.search.index import open_index


class Brightness(Encoders):
    """Sees the mean of each colour."""

    logit_scale = None

    def __init__(self):
        super().__init__("brightness", 3, self.transform)
        self.weight = torch.nn.Parameter(torch.ones(3))

    def transform(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.asarray(image.resize((4, 4)), dtype=np.float32)).permute(2, 0, 1) / 255

    def image_vectors(self, pixels: Tensor) -> Tensor:
        return pixels.mean((2, 3)) * self.weight


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(["a.png", "b.png", "sub/c.png"]):
        Image.new("RGB", (8, 8), (200, 60 * number, 20)).save(folder / name)
    return folder


def counts(report: BuildReport) -> tuple[int, int, int, int]:
    return report.photos, report.new, report.unchanged, report.dropped


def rows(where: Path) -> list[str]:
    return open_index(where).table.search().select(["path"]).limit(None).to_arrow()["path"].to_pylist()


def test_a_second_run_is_refused_while_one_writes(photos, tmp_path):
    where = tmp_path / "i"
    with locked(where), pytest.raises(ArgumentError, match="another run is writing into") as refused:
        build(photos, where, Brightness())
    assert "\n" not in str(refused.value)
    assert counts(build(photos, where, Brightness())) == (3, 3, 0, 0)
    with locked(where), pytest.raises(ArgumentError, match="another run"):
        prune(where)


def test_a_refused_place_is_left_as_it_was(photos, tmp_path):
    with pytest.raises(ArgumentError, match="a folder with other files"):
        build(photos, photos, Brightness())
    assert not (photos / LOCK).exists()


@pytest.mark.parametrize("times", [1, 2])
def test_a_doubled_index_heals(photos, tmp_path, times):
    where = tmp_path / "i"
    build(photos, where, Brightness())
    table = open_index(where).table
    for _ in range(times):  # what runs at once without a lock did
        table.add(table.to_arrow().slice(0, 2))
    assert len(rows(where)) == 3 + 2 * times
    report = build(photos, where, Brightness())
    assert report.photos == 3 and sorted(rows(where)) == sorted(map(str, photos.rglob("*.png")))
    assert len(open_index(where).nearest(torch.ones(3))) == 3


def test_a_handle_that_was_opened_before_adds_nothing_twice(photos, tmp_path):
    where = tmp_path / "i"
    build(photos / "sub", where, Brightness())
    early = open_index(where)
    build(photos, where, Brightness())
    assert len(early) == 3 and len(early.known()) == 3
    early.put([{"path": path, "size": 1, "mtime": 1, "vector": [1.0, 0, 0], "caption": "x"} for path in early.known()])
    assert len(rows(where)) == 3


@pytest.mark.parametrize("year", [2312, 2400, 1700])
def test_any_date_is_indexed(photos, tmp_path, year, monkeypatch):
    real, seconds = os.stat, (year - 1970) * 31_556_952

    class Odd:
        """The state of a file with another date, which not every file system can hold."""

        def __init__(self, state):
            self.state, self.st_mtime_ns = state, seconds * 10**9

        def __getattr__(self, name):
            return getattr(self.state, name)

    def stat(path, *args, **options):
        state = real(path, *args, **options)
        return Odd(state) if os.fspath(path).endswith("a.png") else state

    monkeypatch.setattr("vlm.search.build.os.stat", stat)
    assert counts(build(photos, tmp_path / "i", Brightness())) == (3, 3, 0, 0)
    assert counts(build(photos, tmp_path / "i", Brightness())) == (3, 0, 3, 0)  # and it is known again


def test_a_folder_reached_through_a_link_is_one(photos, tmp_path):
    (tmp_path / "link").symlink_to(photos, target_is_directory=True)
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "inside").symlink_to(photos / "sub", target_is_directory=True)
    where = tmp_path / "i"
    build(photos, where, Brightness())
    assert counts(build(tmp_path / "link", where, Brightness())) == (3, 0, 3, 0)
    assert counts(build(tmp_path / "album", where, Brightness())) == (3, 0, 1, 0)
    assert sorted(rows(where)) == sorted(map(str, photos.rglob("*.png")))


def test_photos_of_a_deleted_folder_can_be_dropped(photos, tmp_path, capsys):
    where = tmp_path / "i"
    build(photos, where, Brightness())
    shutil.rmtree(photos / "sub")
    assert retrieve.main(["info", str(where)]) == 0
    out = capsys.readouterr().out
    assert "photos: 3" in out and "files that are gone: 1" in out and f"  2  {photos}\n" in out
    assert retrieve.main(["prune", str(where)]) == 0
    assert "2 photos (1 dropped)" in capsys.readouterr().out
    assert retrieve.main(["info", str(where), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["photos"] == 2 and record["gone"] == 0 and record["folders"] == {str(photos): 2}
    assert retrieve.main(["prune", str(where), "--folder", str(tmp_path / "other"), str(photos)]) == 0
    assert "0 photos (2 dropped)" in capsys.readouterr().out


def test_a_folder_that_may_not_be_read_is_not_pruned(photos, tmp_path, monkeypatch):
    where = tmp_path / "i"
    build(photos, where, Brightness())
    real = os.stat

    def stat(path, *args, **options):
        if os.fspath(path).endswith("c.png"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *args, **options)

    monkeypatch.setattr("vlm.search.build.os.stat", stat)
    (photos / "a.png").unlink()
    assert prune(where) == 1 and len(rows(where)) == 2


def test_options_of_an_index_without_meaning(photos, tmp_path, capsys):
    for options, words in [
        (["--exact-rows", "-1"], "--exact-rows -1 is below 0"),
        (["--batch-size", "0"], "--batch-size 0 is below 1"),
        (["--max-megapixels", "nan"], "--max-megapixels nan"),
    ]:
        assert retrieve.main(["index", str(photos), "--out", str(tmp_path / "i"), *options]) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1
