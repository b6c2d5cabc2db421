"""What holds for every benchmark: files that are missing or of another layout, and what is refused."""

import json
from pathlib import Path

import pytest

from eval.benchmarks import BENCHMARKS, find
from vlm.errors import ArgumentError, DataError

FOLDERS = ("class_folders", "linear_probe", "text_to_image_fid")  # the user's own, no publisher's


PUBLISHED = [name for name, benchmark in BENCHMARKS.items() if not benchmark.drawn]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_missing_file_is_named_with_what_to_do(tmp_path, name, read):
    with pytest.raises(DataError) as error:
        read(name, tmp_path)
    text = str(error.value)
    assert "\n" not in text
    assert str(tmp_path) in text
    assert "; take it from the publisher's " in text or "; write it as JSON: a list of {" in text or name in FOLDERS


@pytest.mark.parametrize(
    "name, file, record",
    [
        ("captions_json", "captions.json", {"file": "a.jpg", "captions": "a dog"}),
        ("captions_json_zh", "captions.json", {"file": "a.jpg", "zh": "a dog"}),
        ("vqa_json", "vqa.json", {"image": "a.jpg", "question": "what?", "answers": "a dog"}),
        ("vqa_json", "vqa.json", {"file": "a.jpg", "vqa": [{"question": "what?", "answers": "a dog"}]}),
        ("retrieval_json", "captions.json", {"file": "a.jpg", "captions": "a dog"}),
    ],
)
def test_one_text_is_a_list_of_one(tmp_path, name, file, record, read):
    (tmp_path / file).write_text(json.dumps([record]))
    (item,) = read(name, tmp_path)
    assert item.references == ("a dog",)


@pytest.mark.parametrize("captions", [[], [1], None, [["a"]], 3])
def test_captions_that_are_not_texts_are_refused(tmp_path, captions, read):
    (tmp_path / "captions.json").write_text(json.dumps([{"file": "a.jpg", "captions": captions}]))
    with pytest.raises(DataError, match=r"captions\.json' does not have the layout expected"):
        read("captions_json", tmp_path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_folder_that_does_not_exist_is_named(tmp_path, name, read):
    with pytest.raises(DataError, match="is not a folder"):
        read(name, tmp_path / "absent")


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"images": [{}], "annotations": []}', '{"images": 3, "annotations": {}}']
)
def test_a_file_of_another_layout_is_named(tmp_path, text, read):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/captions_val2017.json").write_text(text)
    with pytest.raises(DataError, match=r"captions_val2017\.json'") as error:
        read("coco_caption", tmp_path, "val2017")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["../secret.jpg", "/etc/secret.jpg", "images/../../secret.jpg"])
def test_annotations_cannot_lead_out_of_the_folder(tmp_path, file, read):
    (tmp_path / "captions.json").write_text(json.dumps([{"file": file, "captions": ["A."]}]))
    with pytest.raises(DataError, match="outside"):
        read("captions_json", tmp_path)


def test_ids_that_stand_twice_are_refused(tmp_path, read):
    (tmp_path / "captions.json").write_text(json.dumps([{"file": "a.jpg", "id": 3, "captions": ["A."]}] * 2))
    with pytest.raises(DataError, match="id 3 twice"):
        read("captions_json", tmp_path)


def test_an_empty_set_is_refused(tmp_path, read):
    (tmp_path / "captions.json").write_text(json.dumps([]))
    with pytest.raises(DataError, match="no items"):
        read("captions_json", tmp_path)


def test_cards_and_tasks_exist():
    from eval.models import ABILITIES
    from vlm.tasks import TASKS

    datasets = Path(__file__).resolve().parents[2] / "datasets"
    for benchmark in BENCHMARKS.values():
        assert (datasets / benchmark.card / "README.md").is_file()
        assert benchmark.task in {*TASKS, *ABILITIES}
        assert "\n" not in benchmark.needs


def test_a_name_that_is_nearly_right():
    with pytest.raises(ArgumentError, match="did you mean 'coco_caption'"):
        find("coco_captions")
