"""Shards written by webdataset itself, whole, damaged and cut off."""

import io
import json
import tarfile
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.writer import TarWriter

from vlm.data.shards import Sample, Skipped, epoch_order, find_shards, read_samples
from vlm.errors import DataError, VLMError


def write_shard(path, records):
    with TarWriter(str(path), encoder=False) as writer:
        for i, record in enumerate(records):
            files = {k: json.dumps(v).encode() if not isinstance(v, bytes) else v for k, v in record.items()}
            writer.write({"__key__": f"photo{i:04}", **files})
    return str(path)


def good(i: int = 0) -> dict:
    return {"jpg": b"JPEG bytes %d" % i, "json": {"captions": [f"photo {i}"]}}


def refusal(shards) -> str:
    with pytest.raises(DataError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        list(read_samples(shards))
    assert str(caught.value).isprintable() and isinstance(caught.value, (VLMError, ValueError))
    return str(caught.value)


def test_every_field_arrives(tmp_path):
    record = {"source": "coco", "split": "val", "squashed": True, "captions": ["A dog.", "狗"], "zh": ["一只狗"]}
    shard = write_shard(tmp_path / "a.tar", [{"jpg": b"bytes", "json": record}])
    [sample] = read_samples([shard])
    assert sample == Sample("photo0000", b"bytes", ("A dog.", "狗"), "coco", "val", True, record)


def test_missing_fields_have_their_defaults(tmp_path):
    shard = write_shard(tmp_path / "a.tar", [{"jpg": b"bytes", "json": {}}])
    assert list(read_samples([shard])) == [Sample("photo0000", b"bytes", (), "", "train", False, {})]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "JPG"])
def test_kinds_of_images(tmp_path, suffix):
    [sample] = read_samples([write_shard(tmp_path / "a.tar", [{suffix: b"bytes", "json": {"captions": "one"}}])])
    assert sample.image == b"bytes"
    assert sample.captions == ("one",)  # a lone string is one caption, not its letters


def test_samples_come_in_the_order_of_the_shards(tmp_path):
    shards = [
        write_shard(tmp_path / f"{name}.tar", [good(i + 10 * j) for i in range(3)]) for j, name in enumerate("ab")
    ]
    assert [s.captions[0] for s in read_samples(shards)] == [f"photo {i}" for i in (0, 1, 2, 10, 11, 12)]


def test_processes_of_one_training_all_read_everything(tmp_path, monkeypatch):
    shard = write_shard(tmp_path / "a.tar", [good(i) for i in range(4)])
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert len(list(read_samples([shard]))) == 4


BAD = {
    "no JSON": {"jpg": b"bytes"},
    "broken JSON": {"jpg": b"bytes", "json": b'{"captions": ["a'},
    "JSON that is no UTF-8": {"jpg": b"bytes", "json": b'{"captions": ["\xff"]}'},
    "no image": {"json": {"captions": ["a"]}},
    "a list": {"jpg": b"bytes", "json": ["a"]},
    "captions that are none": {"jpg": b"bytes", "json": {"captions": None}},
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_record_is_skipped_and_named(tmp_path, bad):
    shard = write_shard(tmp_path / "a.tar", [good(), bad, *[good(i) for i in range(98)]])  # 1 % is still allowed
    with pytest.warns(UserWarning, match=r"skipped .*a\.tar:photo0001") as warned:
        samples = list(read_samples([shard]))
    assert sum(str(warning.message).startswith("skipped") for warning in warned) == 1
    assert len(samples) == 99 and "photo0001" not in {s.key for s in samples}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_more_than_one_percent_of_bad_records_fail(tmp_path, bad):
    shard = write_shard(tmp_path / "a.tar", [good(), bad, *[good(i) for i in range(96)], bad])
    assert "2 of 99 records are bad, the first is" in refusal([shard])
    assert "a.tar:photo0001" in refusal([shard])


def test_a_shard_cut_off_anywhere_is_refused(tmp_path):
    shard = write_shard(tmp_path / "a.tar", [{**good(i), "jpg": bytes([65 + i]) * 700} for i in range(3)])
    whole = Path(shard).read_bytes()

    end = len(whole.rstrip(b"\0"))
    assert len(list(read_samples([shard]))) == 3
    file = tmp_path / "cut.tar"
    for size in [0, 1, 511, 512, 513, *range(600, end, 487), end, end + 500]:
        file.write_bytes(whole[:size])
        assert "cut.tar" in refusal([str(file)]), size


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a"])
@pytest.mark.parametrize("content", [b"", b"no tar file", b"x" * 5000 + bytes(2048), b"\x1f\x8b" + b"x" * 2000])
def test_other_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert name in refusal([str(tmp_path / name)])


def test_compressed_shards_are_read_and_refused_where_cut_off(tmp_path):
    shard = write_shard(tmp_path / "a.tar.gz", [good(i) for i in range(5)])
    assert len(list(read_samples([shard]))) == 5
    data = Path(shard).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(data[: len(data) // 2])
    assert "cut.tar.gz" in refusal([str(tmp_path / "cut.tar.gz")])


def test_two_files_of_one_name_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.jpg", "a.json", "a.json"):
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))
    assert "duplicate file name" in refusal([str(tmp_path / "a.tar")])


def test_a_missing_shard_is_refused(tmp_path):
    assert "nothing.tar" in refusal([str(tmp_path / "nothing.tar")])


def test_finding_shards(tmp_path):
    for name in ("b.tar", "a.tar", "notes.txt"):
        (tmp_path / name).touch()
    assert find_shards(tmp_path) == [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
    assert find_shards(str(tmp_path / "b.tar")) == [str(tmp_path / "b.tar")]
    (tmp_path / "empty").mkdir()
    for nowhere in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(DataError, match=r"no \.tar shards at"):
            find_shards(nowhere)


def test_skipped_photos_are_listed_once_and_limited():
    skipped = Skipped(200)
    for key in ("a", "b", "a"):
        if key not in skipped.keys:
            with pytest.warns(UserWarning, match="skipped photo: 'x' is damaged"):
                skipped.add(Sample(key, b""), ValueError("'x' is damaged"))
        else:
            skipped.add(Sample(key, b""), ValueError("again"))  # a warning would be an error here
    assert skipped.keys == ["a", "b"]
    with pytest.warns(UserWarning), pytest.raises(DataError, match=r"3 of 200 photos cannot be decoded \(a, b, c\)"):
        skipped.add(Sample("c", b""), ValueError("damaged"))


@given(st.integers(0, 200), st.text(max_size=5))
def test_epoch_order_is_a_permutation_of_its_seed_alone(count, seed):
    order = epoch_order(count, seed)
    assert sorted(order) == list(range(count)) and order == epoch_order(count, seed)
    if count > 50:
        assert order != epoch_order(count, seed + "x")


# Data that would poison a training


@pytest.mark.parametrize(
    "record",
    [
        {"captions": [None]},
        {"captions": ["a cat", float("nan")]},
        {"captions": [["a cat"]]},
        {"captions": {"en": "a cat"}},
        {"captions": 3},
        {"caption": [None]},
        {"captions": ["a cat"], "zh": [None]},
        {"captions": ["a cat"], "de": [{"text": "eine Katze"}]},
        {"captions": ["half a pair \ud800"]},
    ],
)
def test_what_is_no_text_is_never_learned(tmp_path, record):
    bad = {"jpg": b"bytes", "json": record}
    shard = write_shard(tmp_path / "a.tar", [bad, *[good(i) for i in range(99)]])
    with pytest.warns(UserWarning, match="photo0000: caption|photo0000: (zh|de)=") as warned:
        assert len(list(read_samples([shard]))) == 99
    shown = [str(one.message) for one in warned if one.category is UserWarning]
    assert len(shown) == 1 and "\n" not in shown[0]
    assert "1 of 2 records are bad" in refusal([write_shard(tmp_path / "b.tar", [bad, good()])])


@pytest.mark.parametrize(
    "given, meant",
    [("train", "train"), ("Training", "train"), ("val", "val"), ("Val", "val"), ("validation", "val"), ("dev", "val"),
     ("VALID", "val"), ("val2017", "val"), ("test", "test"), ("test-dev", "test"), ("Test_2", "test"), (None, "train"),
     ("private", "private"), (3, "3")],
)  # fmt: skip
def test_spellings_of_the_parts(tmp_path, given, meant):
    (sample,) = read_samples([write_shard(tmp_path / "a.tar", [{"jpg": b"x", "json": {"split": given}}])])
    assert sample.split == meant


@pytest.mark.parametrize(
    "files, captions",
    [
        ({"json": {"caption": "a cat"}}, ("a cat",)),  # img2dataset's
        ({"json": {"caption": "a cat", "captions": ["two cats"]}}, ("two cats",)),
        ({"txt": b"a cat\na sofa\n"}, ("a cat", "a sofa")),
        ({"txt": b"a cat", "json": {"source": "web"}}, ("a cat",)),
        ({"txt": b"a cat", "json": {"caption": "two cats"}}, ("two cats",)),
    ],
)
def test_captions_as_other_tools_write_them(tmp_path, files, captions):
    (sample,) = read_samples([write_shard(tmp_path / "a.tar", [{"jpg": b"x", **files}])])
    assert sample.captions == captions


def test_a_photo_without_texts_says_what_is_wanted(tmp_path):
    assert "KEY.json or KEY.txt" in refusal([write_shard(tmp_path / "a.tar", [{"jpg": b"x"}])])
    assert "KEY.jpg" in refusal([write_shard(tmp_path / "b.tar", [{"json": {"captions": ["a"]}}])])


def test_keys_with_dots(tmp_path):
    names = [
        "a.1.jpg",
        "a.1.json",
        "a.2.jpg",
        "a.2.json",
        "b.jpg",
        "b.json",
        "b.mask.png",
        "c.d/e.f.g.jpg",
        "c.d/e.f.g.txt",
    ]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in names:
            data = json.dumps({"captions": [name]}).encode() if name.endswith("json") else name.encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    found = {sample.key: (sample.image, sample.captions) for sample in read_samples([str(tmp_path / "a.tar")])}
    assert found == {
        "a.1": (b"a.1.jpg", ("a.1.json",)),
        "a.2": (b"a.2.jpg", ("a.2.json",)),
        "b": (b"b.jpg", ("b.json",)),
        "c.d/e.f.g": (b"c.d/e.f.g.jpg", ("c.d/e.f.g.txt",)),
    }


def test_texts_as_other_programs_write_them(tmp_path):
    records = [
        {"jpg": b"a", "txt": "\ufeffa cat".encode()},  # with a mark of its byte order
        {"jpg": b"b", "json": {"captions": None, "caption": "a dog"}},
        {"jpg": b"c", "json": {"captions": ["a bird"], "Split": "test"}},
    ]
    found = list(read_samples([write_shard(tmp_path / "a.tar", records)]))
    assert [sample.captions for sample in found] == [("a cat",), ("a dog",), ("a bird",)]
    assert [sample.split for sample in found] == ["train", "train", "test"]


@pytest.mark.parametrize("text", ["NaN", "nan", " null "])
def test_what_stands_for_no_text_is_not_learned(tmp_path, text):
    shard = write_shard(tmp_path / "a.tar", [{"jpg": b"a", "json": {"captions": ["a cat", text]}}])
    assert f"captions holds {text!r}, which some programs write for a missing text; remove it" in refusal([shard])
