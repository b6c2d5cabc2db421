"""Every reader against a hand-made miniature of what its publisher ships."""

import json
import pickle
from pathlib import Path

import pytest

from eval.benchmarks import BENCHMARKS
from eval.benchmarks.grounding import read_pickle
from vlm.errors import DataError


def write(path: Path, data) -> Path:
    """JSON, or text as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data), "utf-8")
    return path


KARPATHY = {
    "dataset": "coco",
    "images": [
        {
            "imgid": number,
            "cocoid": 40 + number,
            "filepath": "val2014",
            "filename": f"COCO_val2014_{40 + number:012d}.jpg",
            "split": split,
            "sentids": [],
            "sentences": [{"raw": f"Caption {place} of {number}.", "tokens": []} for place in range(6)],
        }
        for number, split in enumerate(["train", "restval", "val", "test", "test"])
    ],
}


# Captions


@pytest.mark.parametrize("split, name", [("val2014", "COCO_val2014_000000000042.jpg"), ("val2017", "000000000042.jpg")])
def test_coco_captions_as_published(tmp_path, split, name, read):
    data = {
        "images": [{"id": 42, "file_name": name}, {"id": 7, "file_name": name.replace("42", "07")}],
        "annotations": [
            {"id": 1, "image_id": 7, "caption": "Seven.\n"},
            {"id": 2, "image_id": 42, "caption": "One"},
            {"id": 3, "image_id": 42, "caption": "Two"},
        ],
    }
    write(tmp_path / f"annotations/captions_{split}.json", data)
    items = read("coco_caption", tmp_path, split)
    assert [(item.id, item.references) for item in items] == [(42, ("One", "Two")), (7, ("Seven.\n",))]
    assert items[0].image == tmp_path / split / name


def test_karpathy_test_split_takes_ids_and_raw_captions_of_coco(tmp_path, read):
    write(tmp_path / "dataset_coco.json", KARPATHY)
    items = read("coco_caption", tmp_path)
    assert [item.id for item in items] == [43, 44]
    assert items[0].references[0] == "Caption 0 of 3."
    assert items[0].image == tmp_path / "val2014/COCO_val2014_000000000043.jpg"


def test_nocaps_knows_its_domains(tmp_path, read):
    data = {
        "images": [{"id": 0, "file_name": "a.jpg", "domain": "out-domain", "open_images_id": "a"}],
        "annotations": [{"id": 0, "image_id": 0, "caption": "A walrus."}],
    }
    write(tmp_path / "nocaps_val_4500_captions.json", data)
    (item,) = read("nocaps", tmp_path)
    assert (item.image, item.references) == (tmp_path / "val/a.jpg", ("A walrus.",))
    assert item.groups == {"domain": "out-domain"}


@pytest.mark.parametrize("name", ["flickr8k_caption", "flickr8k_retrieval"])
def test_flickr8k_text_files(tmp_path, name, read):
    write(tmp_path / "Flickr_8k.testImages.txt", "b.jpg\n")
    write(tmp_path / "Flickr8k.token.txt", "a.jpg#0\tA dog .\nb.jpg#0\tA cat .\nb.jpg#1\tThe cat # 1 .\n")
    (item,) = read(name, tmp_path)
    assert (item.id, item.references) == ("b.jpg", ("A cat .", "The cat # 1 ."))
    assert item.image == tmp_path / "Flicker8k_Dataset/b.jpg"


def test_flickr8k_photo_without_caption_is_named(tmp_path, read):
    write(tmp_path / "Flickr_8k.testImages.txt", "b.jpg\n")
    write(tmp_path / "Flickr8k.token.txt", "a.jpg#0\tA dog .\n")
    with pytest.raises(DataError, match=r"no caption of b\.jpg"):
        read("flickr8k_caption", tmp_path)


def test_plain_captions_keep_their_id_or_take_the_file(tmp_path, read):
    data = [{"file": "images/a.jpg", "captions": ["A."]}, {"file": "images/b.jpg", "id": 7, "captions": ["B.", "C."]}]
    write(tmp_path / "captions.json", data)
    items = read("captions_json", tmp_path)
    assert [item.id for item in items] == ["images/a.jpg", 7]
    assert items[1].image == tmp_path / "images/b.jpg"


# Retrieval


@pytest.mark.parametrize("name", ["coco_retrieval_1k", "coco_retrieval_5k"])
def test_coco_retrieval_counts_five_captions_a_photo(tmp_path, name, read):
    write(tmp_path / "dataset_coco.json", KARPATHY)
    items = read(name, tmp_path, "test")
    assert [len(item.references) for item in items] == [5, 5]


def test_flickr30k_photos_lie_in_their_own_folder(tmp_path, read):
    record = {"imgid": 3, "filename": "1.jpg", "split": "test", "sentences": [{"raw": "A dog."}]}
    write(tmp_path / "dataset_flickr30k.json", {"images": [record]})
    (item,) = read("flickr30k_retrieval", tmp_path)
    assert (item.id, item.image) == (3, tmp_path / "flickr30k-images/1.jpg")


def test_plain_retrieval_reads_captions_json(tmp_path, read):
    write(tmp_path / "captions.json", [{"file": "a.jpg", "captions": list("abcdefg")}])
    assert read("retrieval_json", tmp_path)[0].references == tuple("abcde")


def embedded(images, texts):
    """Predictions of an encoder pair from lists of numbers."""
    import numpy as np

    from eval.models import pack

    return [
        {"image": pack(np.array(image)), "texts": [pack(np.array(text)) for text in captions]}
        for image, captions in zip(images, texts, strict=True)
    ]


def test_retrieval_figures_by_hand(tmp_path, read):
    write(tmp_path / "captions.json", [{"file": f"{n}.jpg", "captions": [f"{n}a", f"{n}b"]} for n in range(3)])
    items = read("retrieval_json", tmp_path)
    # captions 0a 1a 1b 2a find their photo first; 0b and 2b find it second, behind photo 1
    texts = [[[1, 0, 0], [0.5, 0.6, 0]], [[0, 1, 0], [0, 1, 0]], [[0, 0, 1], [0, 0.6, 0.5]]]
    scores = BENCHMARKS["retrieval_json"].score(items, embedded([[1, 0, 0], [0, 1, 0], [0, 0, 1]], texts))
    assert scores.figures["text-to-image recall@1"] == pytest.approx(100 * 4 / 6)
    assert scores.figures["text-to-image recall@5"] == pytest.approx(100)
    assert scores.figures["image-to-text recall@1"] == pytest.approx(100)
    assert scores.items["text-to-image recall@1"] == pytest.approx([50, 100, 50])
    assert scores.shown == ["0a", "1a", "2a"]


def test_the_1k_protocol_searches_each_thousand_alone(tmp_path, read):
    from eval.benchmarks.retrieval import scorer

    write(tmp_path / "captions.json", [{"file": f"{n}.jpg", "captions": ["x"]} for n in range(4)])
    items = read("retrieval_json", tmp_path)
    # photos 0 and 2 look alike, and so do 1 and 3: among all four every caption ties with a wrong photo
    vectors = [[1, 0], [0, 1], [1, 0], [0, 1]]
    predictions = embedded(vectors, [[vector] for vector in vectors])
    assert scorer(None)(items, predictions).figures["text-to-image recall@1"] == 0
    assert scorer(2)(items, predictions).figures["text-to-image recall@1"] == pytest.approx(100)


def test_retrieval_submission_lists_neighbours(tmp_path, read):
    write(tmp_path / "captions.json", [{"file": f"{n}.jpg", "captions": ["x", "y"]} for n in range(2)])
    items = read("retrieval_json", tmp_path)
    predictions = embedded([[1, 0], [0, 1]], [[[1, 0], [0.1, 0.9]], [[0, 1], [0.2, 0.8]]])
    made = BENCHMARKS["retrieval_json"].submission(items, predictions)
    assert made["text_to_image"][1] == {"caption": ["0.jpg", 1], "images": ["1.jpg", "0.jpg"]}
    assert made["image_to_text"][0]["captions"][:2] == [["0.jpg", 0], ["1.jpg", 1]]


# Questions


def vqa_files(folder: Path, questions: str, annotations: str | None, subtype: str) -> None:
    asked = [{"question_id": 420, "image_id": 42, "question": "What is it?"}]
    write(folder / questions, {"data_subtype": subtype, "questions": asked})
    if annotations:
        answers = [{"answer": "cat", "answer_confidence": "yes", "answer_id": n} for n in range(1, 4)]
        answers += [{"answer": "dog", "answer_confidence": "yes", "answer_id": n} for n in range(4, 11)]
        record = {"question_id": 420, "image_id": 42, "question_type": "what is", "answer_type": "other"}
        write(folder / annotations, {"annotations": [record | {"answers": answers}]})


def test_vqav2_val(tmp_path, read):
    vqa_files(tmp_path, "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json", "val2014")
    (item,) = read("vqav2", tmp_path)
    assert item.image == tmp_path / "val2014/COCO_val2014_000000000042.jpg"
    assert (item.id, item.question) == (420, "What is it?")
    assert item.references == ("cat",) * 3 + ("dog",) * 7
    assert item.groups == {"answer type": "other", "question type": "what is"}
    # leave one out: with 3 of 10 people, 3 sets see 2 of 3 and 7 sets see all three
    assert BENCHMARKS["vqav2"].score([item], ["cat"]).figures["accuracy"] == pytest.approx(90)
    assert BENCHMARKS["vqav2"].submission([item], ["cat"]) == [{"question_id": 420, "answer": "cat"}]


def test_vqav2_test_dev_has_no_answers_and_photos_of_test2015(tmp_path, read):
    vqa_files(tmp_path, "v2_OpenEnded_mscoco_test-dev2015_questions.json", None, "test-dev2015")
    (item,) = read("vqav2", tmp_path, "test-dev")
    assert item.image == tmp_path / "test2015/COCO_test2015_000000000042.jpg"
    assert item.references == ()
    assert BENCHMARKS["vqav2"].score([item], ["cat"]).figures == {}


def test_okvqa(tmp_path, read):
    vqa_files(tmp_path, "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json", "val2014")
    assert read("okvqa", tmp_path)[0].groups["question type"] == "what is"


def test_a_question_without_answers_is_named(tmp_path, read):
    vqa_files(tmp_path, "OpenEnded_mscoco_val2014_questions.json", None, "val2014")
    write(tmp_path / "mscoco_val2014_annotations.json", {"annotations": []})
    with pytest.raises(DataError, match=r"mscoco_val2014_annotations\.json' lacks 420"):
        read("okvqa", tmp_path)


def test_gqa_compares_the_very_string(tmp_path, read):
    record = {"imageId": "2407890", "question": "Is it red?", "answer": "yes", "types": {"structural": "verify"}}
    write(tmp_path / "testdev_balanced_questions.json", {"07": record, "08": record})
    items = read("gqa", tmp_path)
    assert (items[0].id, items[0].image) == ("07", tmp_path / "images/2407890.jpg")
    assert BENCHMARKS["gqa"].score(items, ["yes", "Yes"]).figures["accuracy"] == 50
    assert BENCHMARKS["gqa"].submission(items[:1], ["yes"]) == [{"questionId": "07", "prediction": "yes"}]


@pytest.mark.parametrize("private", [{}, {"answer": None}])
def test_gqa_without_answers_is_private(tmp_path, private, read):
    record = {"imageId": "2407890", "question": "Is it red?", **private}
    write(tmp_path / "testdev_balanced_questions.json", {"07": record})
    assert [item.references for item in read("gqa", tmp_path)] == [()]


def test_plain_questions_in_three_shapes(tmp_path, read):
    asked = [{"image": "a.jpg", "question_id": 5, "question": "What?", "answers": ["cat"] * 10, "source": "aokvqa"}]
    write(tmp_path / "vqa.json", asked)
    (item,) = read("vqa_json", tmp_path)
    assert (item.id, item.image, len(item.references)) == (5, tmp_path / "a.jpg", 10)
    write(tmp_path / "cocoqa.json", [{"image": "a.jpg", "question": "what?", "answer": "meal"}])
    assert read("vqa_json", tmp_path, "cocoqa")[0].references == ("meal",)
    photo = {"file": "b.jpg", "vqa": [{"question": "what?", "answers": ["chair", "table"]}, asked[0]]}
    write(tmp_path / "vqa.json", [photo])
    items = read("vqa_json", tmp_path)
    assert [item.id for item in items] == ["b.jpg#0", "b.jpg#1"]
    assert BENCHMARKS["vqa_json"].score(items[:1], ["table,chair"]).figures["accuracy"] == 100
    assert BENCHMARKS["vqa_json"].score(items[:1], ["chair"]).figures["accuracy"] == 0


# Grounding


def refcoco_files(folder: Path, name: str = "refcoco", division: str = "unc") -> None:
    instances = {
        "images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "width": 200, "height": 100}],
        "annotations": [{"id": 90, "image_id": 9, "bbox": [20, 10, 100, 50], "category_id": 1}],
    }
    write(folder / f"{name}/instances.json", instances)
    refs = [
        {
            "ref_id": number,
            "ann_id": 90,
            "image_id": 9,
            "split": split,
            "file_name": "COCO_train2014_000000000009_3.jpg",
            "sentences": [{"sent_id": 10 * number + place, "sent": f"the {word}"} for place, word in enumerate("ab")],
        }
        for number, split in enumerate(["val", "testA", "test"])
    ]
    (folder / f"{name}/refs({division}).p").write_bytes(pickle.dumps(refs, protocol=0))


@pytest.mark.parametrize("name, division", [("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")])
def test_refcoco_joins_phrases_and_boxes(tmp_path, name, division, read):
    refcoco_files(tmp_path, name, division)
    items = read(name, tmp_path)
    assert [(item.id, item.question) for item in items] == [(0, "the a"), (1, "the b")]
    assert items[0].image == tmp_path / "train2014/COCO_train2014_000000000009.jpg"
    assert (items[0].box, items[0].size) == ((20, 10, 120, 60), (200, 100))


def test_refcoco_accuracy_by_hand(tmp_path, read):
    refcoco_files(tmp_path)
    items = read("refcoco", tmp_path)
    # the true box, in fractions 0.1 0.1 0.6 0.6; its left half covers exactly one half, a third less than that
    half, third = [0.1, 0.1, 0.35, 0.6], [0.1, 0.1, 0.1 + 0.5 / 3, 0.6]
    assert BENCHMARKS["refcoco"].score(items, [half, third]).items["accuracy@0.5"] == [100, 0]


class Harmful:
    def __reduce__(self):
        return eval, ("open('harmed', 'w')",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([Harmful()], protocol=protocol))
    with pytest.raises(DataError, match=r"it asks for (builtins|__builtin__)\.eval"):
        read_pickle(path)
    assert not Path("harmed").exists()


def test_a_torn_pickle_is_refused(tmp_path):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps(["a long enough text"])[:-5])
    with pytest.raises(DataError, match="not a pickle of plain data"):
        read_pickle(path)


def test_text_of_python_2_is_read(tmp_path):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(b"(lp0\nS'caf\\xc3\\xa9'\np1\na.")
    assert read_pickle(path) == ["café"]


# Entailment


@pytest.mark.parametrize("name, premise", [("snli_ve", ""), ("snli_ve_premise", "A dog.")])
def test_snli_ve(tmp_path, name, premise, read):
    record = {"Flickr30K_ID": "12", "pairID": "12.jpg#0r1n", "sentence1": "A dog.", "sentence2": "An animal."}
    write(tmp_path / "snli_ve_test.jsonl", json.dumps(record | {"gold_label": "entailment"}) + "\n")
    (item,) = read(name, tmp_path)
    assert (item.image, item.question, item.premise) == (tmp_path / "flickr30k-images/12.jpg", "An animal.", premise)
    assert BENCHMARKS[name].score([item], ["neutral"]).figures == {"accuracy": 0}
    assert BENCHMARKS[name].score([item], ["entailment"]).figures == {"accuracy": 100}


def test_snli_ve_unknown_label_is_named(tmp_path, read):
    record = {"Flickr30K_ID": "12", "pairID": "p", "sentence1": "A", "sentence2": "B", "gold_label": "-"}
    write(tmp_path / "snli_ve_test.jsonl", json.dumps(record))
    with pytest.raises(DataError, match="line 1: gold_label '-'"):
        read("snli_ve", tmp_path)


# Classes


def test_class_folders_by_hand(tmp_path, put_photo, read):
    for name in ("val/tabby cat/1.jpg", "val/tabby cat/2.jpg", "val/tabby cat/3.jpg", "val/rocket/1.jpg"):
        put_photo(tmp_path / name)
    items = read("class_folders", tmp_path)
    assert [item.id for item in items] == ["rocket/1.jpg", "tabby cat/1.jpg", "tabby cat/2.jpg", "tabby cat/3.jpg"]
    assert items[0].choices == ("rocket", "tabby cat")
    scores = BENCHMARKS["class_folders"].score(items, [0, 1, 1, 0])
    assert scores.figures == {"accuracy": 75, "mean per class": pytest.approx(100 * (1 + 2 / 3) / 2)}
    assert scores.shown == ["rocket", "tabby cat", "tabby cat", "rocket"]


def test_class_codes_become_words(tmp_path, put_photo, read):
    for code in ("n01", "n02", "n03"):
        put_photo(tmp_path / code / "1.jpg")
    write(tmp_path / "LOC_synset_mapping.txt", "n01 tench, Tinca tinca\nn02 crane\nn03 crane, lifting device\n")
    items = read("class_folders", tmp_path, "all")
    assert items[0].choices == ("tench", "crane", "crane, lifting device")


def test_class_folders_without_splits_say_how(tmp_path, put_photo, read):
    put_photo(tmp_path / "cat/1.jpg")
    with pytest.raises(DataError, match="--split all"):
        read("class_folders", tmp_path)
