"""The retrieval command with a small random open_clip pair, as a user types it."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import open_clip
import pytest
from PIL import Image

from tasks import retrieve
from tasks.__main__ import commands

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "datasets" / "sample"
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """Name of the pair; beside its weights lie others, `other.pt`."""
    import torch

    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "retrieval-test.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / "retrieval-test.json")
    for seed, name in enumerate(["one.pt", "other.pt"]):
        torch.manual_seed(seed)
        torch.save(open_clip.create_model("retrieval-test").state_dict(), folder / name)
    return f"open_clip:retrieval-test/{folder / 'one.pt'}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name in ("cat", "coffee", "rocket"):
        shutil.copy(SAMPLE / f"{name}.jpg", folder)
    (folder / "sub").mkdir()
    Image.new("RGB", (20, 20), (200, 0, 0)).save(folder / "sub" / '<b>"it\'s" & co.png')
    return folder


@pytest.fixture(scope="module")
def index(model, photos, tmp_path_factory) -> str:
    where = str(tmp_path_factory.mktemp("index") / "my.index")
    assert retrieve.main(["index", str(photos), "--out", where, "--model", model]) == 0
    return where


def lines(capsys) -> list[dict]:
    out, err = capsys.readouterr()
    assert err == ""
    return [json.loads(line) for line in out.splitlines()]


def test_index_says_what_it_did_and_repeats_nothing(model, photos, tmp_path, capsys):
    folder, where = tmp_path / "p", str(tmp_path / "i")
    shutil.copytree(photos, folder)
    assert retrieve.main(["index", str(folder), "--out", where, "--model", model]) == 0
    out, err = capsys.readouterr()
    told = r"4 photos \(4 new, 0 changed, 0 unchanged, 0 dropped, 0 unreadable\); [\d.,]+ photos/s\n"
    assert re.fullmatch(re.escape(where) + ": " + told, out)
    assert "4/4" in err and "photo/s" in err
    (folder / "cat.jpg").unlink()
    assert retrieve.main(["index", str(folder), "--out", where]) == 0  # the index knows its model
    assert "3 photos (0 new, 0 changed, 3 unchanged, 1 dropped, 0 unreadable)\n" in capsys.readouterr().out


def test_unreadable_photos_are_listed_at_the_end(model, photos, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / "p")
    (tmp_path / "p" / "a.jpg").write_bytes(b"\xff\xd8\xff broken")
    command = [
        "index",
        str(tmp_path / "p"),
        "--out",
        str(tmp_path / "i"),
        "--model",
        model,
        "--max-megapixels",
        "0.001",
    ]
    assert retrieve.main(command) == 1
    out, err = capsys.readouterr()
    assert "1 photos (1 new, 0 changed, 0 unchanged, 0 dropped, 4 unreadable)" in out
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4 and err.endswith(errors[-1] + "\n")
    assert ["a.jpg" in line for line in errors].count(True) == 1 and "--max-megapixels 0.001" in err
    assert retrieve.main([*command[:-1], "64000000"]) == 1  # only what had failed
    assert "4 photos (3 new, 0 changed, 1 unchanged, 0 dropped, 1 unreadable)" in capsys.readouterr().out


def test_a_photo_finds_itself(index, photos, capsys):
    assert retrieve.main(["search", index, "--image", str(photos / "cat.jpg"), "--top", "2"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"1.000  {photos / 'cat.jpg'}" and float(second.split()[0]) < 1


@pytest.mark.parametrize("query", ["a dog in the snow", "狗在雪地里", "собака в снегу", "🐕❄️", "x" * 5000])
def test_any_language_gets_an_answer(index, query, capsys):
    assert retrieve.main(["search", index, query, "--json", "--top", "100"]) == 0
    found = lines(capsys)
    assert len(found) == 4 and set(found[0]) == {"path", "score", "caption"}  # all there are
    assert sorted((hit["score"] for hit in found), reverse=True) == [hit["score"] for hit in found]


def test_sentences_and_photos_are_added_and_subtracted(index, model, photos, capsys):
    from vlm.encoders import load_encoders

    options = [
        "a red square",
        "--image",
        str(photos / "cat.jpg"),
        "--image",
        str(photos / "rocket.jpg"),
        "--minus",
        "a dog",
    ]
    assert retrieve.main(["search", index, *options, "--json"]) == 0
    found = {hit["path"]: hit["score"] for hit in lines(capsys)}
    pair = load_encoders(model)
    texts = pair.encode(["a red square", "a dog"])
    pictures = pair.encode([Path(path) for path in found])
    given = pair.encode([photos / "cat.jpg", photos / "rocket.jpg"])
    query = texts[0] - texts[1] + given[0] + given[1]
    assert list(found.values()) == pytest.approx((pictures @ (query / query.norm())).tolist(), abs=1e-5)


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def test_page_of_thumbnails_stands_alone_and_escapes(index, photos, tmp_path, capsys):
    query = '</title><script>alert("x")</script>'
    file = tmp_path / "new" / "out.html"
    options = ["--image", str(photos / "cat.jpg"), "--html", str(file), "--minus", "<i>"]
    assert retrieve.main(["search", index, query, *options]) == 0
    page = Page(file.read_text(encoding="utf-8"))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 5 and all(image["src"].startswith("data:image/jpeg;base64,") for image in images)
    assert not {"script", "i", "link"} & {tag for tag, _ in page.tags}
    strange = photos / "sub" / '<b>"it\'s" & co.png'
    assert query in page.words and str(strange) in page.words
    assert {a["href"] for tag, a in page.tags if tag == "a"} == {p.as_uri() for p in [*photos.glob("*.jpg"), strange]}
    scores = [word for word in page.words if re.fullmatch(r"-?[01]\.\d{3}", word)]
    assert scores == [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert retrieve.main(["search", index, "x", "--html", str(photos / "cat.jpg" / "out.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_approximate_index_reports_its_recall(model, tmp_path, capsys):
    for number in range(40):
        colour = (number * 7 % 256, number * 31 % 256, number * 101 % 256)
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"{number}.png")
    where = str(tmp_path / "i")
    assert retrieve.main(["index", str(tmp_path), "--out", where, "--model", model, "--exact-rows", "39"]) == 0
    recall = re.search(r"recall@10 .*: ([\d.]+) %\n$", capsys.readouterr().out)
    assert recall and 90 <= float(recall[1]) <= 100
    assert retrieve.main(["search", where, "--image", str(tmp_path / "7.png"), "--top", "3"]) == 0
    assert f"1.000  {tmp_path / '7.png'}\n" in capsys.readouterr().out


def test_captions_are_kept_where_asked_for(model, tmp_path, capsys):
    folder, where = tmp_path / "p", str(tmp_path / "i")
    folder.mkdir()
    shutil.copy(SAMPLE / "cat.jpg", folder)
    assert retrieve.main(["index", str(folder), "--out", where, "--model", model, "--caption"]) == 0
    capsys.readouterr()
    assert retrieve.main(["search", where, "a cat", "--json"]) == 0
    (hit,) = lines(capsys)
    assert len(hit["caption"].split()) >= 3
    assert retrieve.main(["search", where, "a cat"]) == 0
    assert capsys.readouterr().out.endswith(f"{folder / 'cat.jpg'}  {hit['caption']}\n")


@pytest.mark.parametrize(
    "command, words",
    [
        (["search", "{index}", ""], ["empty"]),
        (["search", "{index}"], ["nothing to search for"]),
        (["search", "{index}", "x", "--top", "0"], ["--top 0"]),
        (["search", "{index}", "x", "--device", "nosuch"], ["nosuch", "cpu"]),
        (["search", "{index}", "--image", "gone.jpg"], ["gone.jpg", "does not exist"]),
        (["search", "{index}", "x", "--model", "{other}"], ["one.pt", "other.pt"]),
        (["search", "{photos}", "x"], ["holds no index"]),
        (["search", "{photos}/gone", "x"], ["does not exist", "vlm retrieve index"]),
        (["index", "{photos}", "--out", "{index}", "--model", "{other}"], ["one.pt", "other.pt"]),
        (["index", "{photos}", "--out", "{photos}", "--model", "{other}"], ["a folder with other files"]),
        (["index", "{photos}/gone", "--out", "{index}"], ["gone", "No such file"]),
        (["index", "{index}", "--out", "{index}"], ["no photo"]),
        (["index", "{photos}", "--out", "{index}", "--batch-size", "0"], ["--batch-size 0"]),
    ],
)
def test_bad_input_is_one_line(command, words, index, photos, model, capsys):
    names = {"index": index, "photos": photos, "other": model.replace("one.pt", "other.pt")}
    assert retrieve.main([part.format(**names) for part in command]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and err.startswith("error: ")
    assert all(word in err for word in words), err
    assert retrieve.main(["search", index, "x", "--json"]) == 0 and len(lines(capsys)) == 4  # as it was


def test_help_imports_nothing_heavy():
    code = "import sys, tasks.retrieve as r\ntry: r.main(['search', '--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted(m for m in ('torch', 'timm', 'numpy', 'lancedb', 'pyarrow') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--minus" in done.stdout and done.stdout.splitlines()[-1] == "[]"
    assert commands()["retrieve"].startswith("Find photos")
