"""Our models in other harnesses: through the real packages where they are installed, beside stand-ins elsewhere."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval import models
from eval.adapters.__main__ import main
from vlm.errors import ArgumentError, ImageError, ModelError

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("cat", "rocket", "stairs")
NEEDS_LMMS_EVAL = "needs lmms-eval (pip install lmms-eval)"
NEEDS_CLIP_BENCHMARK = "needs clip-benchmark (pip install clip-benchmark)"


def adapter(name: str, monkeypatch, stand_in: dict[str, ModuleType]) -> Iterator[Any]:
    """An adapter over its package or, where that is not installed, over a stand-in, which is gone after the test."""
    if find_spec(name):
        yield import_module(f"eval.adapters.{name}")
        return
    for module, content in stand_in.items():
        monkeypatch.setitem(sys.modules, module, content)
    try:
        yield import_module(f"eval.adapters.{name}")
    finally:
        sys.modules.pop(f"eval.adapters.{name}")


@pytest.fixture
def lmms(monkeypatch) -> Iterator[Any]:
    class Base:
        def __init__(self):
            self.task_dict, self.rank = {}, 0

    model = ModuleType("lmms_eval.api.model")
    model.lmms = Base  # type: ignore[attr-defined]
    packages = {name: ModuleType(name) for name in ("lmms_eval", "lmms_eval.api")}
    yield from adapter("lmms_eval", monkeypatch, packages | {"lmms_eval.api.model": model})


@pytest.fixture
def clip(monkeypatch) -> Iterator[Any]:
    yield from adapter("clip_benchmark", monkeypatch, {"clip_benchmark": ModuleType("clip_benchmark")})


def give(monkeypatch, model) -> None:
    """Let every name stand for `model`."""

    def load(name, task, device):
        models.check(model, task)
        return model

    monkeypatch.setattr(models, "load", load)


class Widths:
    """Looks how wide a photo is."""

    name, weights = "widths", "0" * 64

    def __init__(self):
        self.prepared, self.sizes = [], []

    def prepare(self, image):
        if image.width > 99:
            raise ImageError("the photo is too wide")
        self.prepared.append(image.width)
        return image.width


class Captions(Widths):
    name = "captions"

    def caption(self, images):
        self.sizes.append(len(images))
        return [f"{width} wide\n\nand more" for width in images]


class Answers(Captions):
    def answer(self, images, questions):
        return [f"{question} {width}" for width, question in zip(images, questions, strict=True)]


def wrap(lmms, monkeypatch, model, documents, **options) -> Any:
    give(monkeypatch, model)
    wrapper = lmms.VLM(batch_size=2, **options)
    wrapper.task_dict["widths"] = {"test": documents}
    return wrapper


def ask(document: int, context: str = "", second: Any = None, see=lambda doc: [photo(doc)]) -> Any:
    """A request as lmms-eval builds it."""
    args = (context, {} if second is None else second, see, document, "widths", "test")
    return SimpleNamespace(args=args, task_name="widths")


def photo(width: int) -> Image.Image:
    return Image.new("RGB", (width, 8))


# --- without the packages ---


@pytest.mark.parametrize("name, package", [("lmms_eval", "lmms-eval"), ("clip_benchmark", "clip-benchmark")])
def test_without_its_package_one_line_says_what_to_install(name, package, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, f"eval.adapters.{name}", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "argv", [])
    with pytest.raises(ArgumentError, match=f"^{package} cannot be imported .*; pip install {package}$"):
        import_module(f"eval.adapters.{name}")
    assert main([name, "--help"]) == 2
    assert re.fullmatch(f"error: {package} cannot be imported .*; pip install {package}\n", capsys.readouterr().err)


def test_an_unknown_harness_is_told_the_known_ones(capsys):
    assert main(["helm"]) == 2
    assert capsys.readouterr().err == "error: no harness 'helm'; choose one of: lmms_eval, clip_benchmark\n"


def test_help_shows_both_commands(capsys):
    assert main([]) == main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "eval.adapters lmms_eval --model vlm" in out and "clip_benchmark eval --model_type vlm" in out


def test_nothing_else_imports_the_adapters():
    adapters = ROOT / "eval/adapters"
    files = [path for folder in ("vlm", "tasks", "eval") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 20
    imports = re.compile(r"^\s*(from|import)\s.*\badapters\b", re.MULTILINE)
    assert [path for path in files if adapters not in path.parents and imports.search(path.read_text("utf-8"))] == []


def test_captions_whatever_the_context_says(lmms, monkeypatch):
    model = Captions()
    wrapper = wrap(lmms, monkeypatch, model, [10, 20, 30])
    requests = [ask(2, "Describe it."), ask(0, "And this?", {"until": ["\n\n"]}), ask(1, "", {"until": " wide"})]
    assert wrapper.generate_until(requests) == ["30 wide\n\nand more", "10 wide", "20"]
    assert model.sizes == [2, 1]


def test_answers_where_the_model_can(lmms, monkeypatch):
    requests = [ask(0, "How wide?\nAnswer the question using a single word or phrase."), ask(1, "Wider?")]
    wrapper = wrap(lmms, monkeypatch, Answers(), [10, 20])
    assert wrapper.generate_until(requests) == ["How wide? 10", "Wider? 20"]
    wrapper = wrap(lmms, monkeypatch, Answers(), [10, 20], task="caption")
    assert wrapper.generate_until(requests)[1] == "20 wide\n\nand more"


@pytest.mark.parametrize(
    "context, question",
    [
        ("What is it?\nAnswer the question using a single word or phrase.", "What is it?"),
        ("What is it?  Please answer the question using a single word or phrase.", "What is it?"),
        (" Is the answer a single word? ", "Is the answer a single word?"),
        (
            "Answer the question using a single word or phrase.\nWho?",
            "Answer the question using a single word or phrase.\nWho?",
        ),
    ],
)
def test_the_common_instruction_is_no_part_of_a_question(lmms, context, question):
    assert lmms.question(context) == question


def test_a_model_that_only_answers(lmms, monkeypatch):
    class OnlyAnswers(Widths):
        answer = Answers.answer

    assert wrap(lmms, monkeypatch, OnlyAnswers(), [10]).generate_until([ask(0, "Wide?")]) == ["Wide? 10"]
    with pytest.raises(ArgumentError, match=r"model 'widths' cannot caption photos .*it can do: answer;"):
        lmms.VLM(task="caption")


def test_a_model_that_does_neither(lmms, monkeypatch):
    give(monkeypatch, Widths())
    with pytest.raises(ArgumentError, match=r"model 'widths' cannot .*it can do: nothing;"):
        lmms.VLM()


def test_every_input_is_of_a_task(lmms):
    from vlm.tasks import TASKS

    assert lmms.INPUTS.keys() <= TASKS.keys()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"task": "ground"}, r"task=ground is unknown; choose one of: answer, caption"),
        ({"task": "answer"}, r"model 'captions' cannot answer questions .*it can do: caption"),
        ({"batch_size": "auto"}, r"batch_size=auto"),
        ({"batch_size": 0}, r"batch_size=0"),
    ],
)
def test_options_of_a_model_that_cannot_be(lmms, monkeypatch, options, message):
    give(monkeypatch, Captions())
    with pytest.raises(ArgumentError, match=message):
        lmms.VLM(**options)


@pytest.mark.parametrize(
    "visuals, what",
    [([], "nothing to look at"), (None, "nothing to look at"), ([photo(1)] * 2, "Image, Image"), (["a.mp4"], "str")],
)
def test_documents_must_have_one_photo(lmms, monkeypatch, visuals, what):
    wrapper = wrap(lmms, monkeypatch, Captions(), [10])
    with pytest.raises(ArgumentError, match=rf"task 'widths': document 0 has {what}; .* one photo"):
        wrapper.generate_until([ask(0, see=lambda doc: visuals)])


def test_a_photo_that_cannot_be_used_is_named(lmms, monkeypatch):
    wrapper = wrap(lmms, monkeypatch, Captions(), [10, 100])
    with pytest.raises(ImageError, match=r"task 'widths', document 1: the photo is too wide"):
        wrapper.generate_until([ask(0), ask(1)])


@pytest.mark.parametrize("method, what", [("loglikelihood", "score"), ("generate_until_multi_round", "hold a conv")])
def test_requests_that_the_model_cannot_fulfil(lmms, monkeypatch, method, what):
    wrapper = wrap(lmms, monkeypatch, Captions(), [10])
    with pytest.raises(ArgumentError, match=f"model 'captions' cannot {what}.* task 'widths'.*generate_until"):
        getattr(wrapper, method)([ask(0, "", " a")])


def test_a_captioner_is_no_pair_of_encoders(clip, random_model):
    with pytest.raises(ArgumentError, match=r"cannot embed photos and sentences .*it can do: caption"):
        clip.load("vlm", str(random_model))


def test_the_label_of_the_results_must_not_be_another_model(clip):
    with pytest.raises(ArgumentError, match=r"--model is 'ViT-B-32'; .* give --model vlm --pretrained NAME"):
        clip.load("ViT-B-32", "tiny")


def test_photos_that_do_not_form_batches_are_refused(clip):
    model = SimpleNamespace(name="odd", prepare=lambda image: image)
    with pytest.raises(ModelError, match="model 'odd' prepares photos as Image; clip-benchmark needs tensors"):
        clip.Pair(model, "cpu").transform(photo(8))


# --- a random open_clip pair as an Embedder ---


@pytest.fixture(scope="module")
def open_pair() -> Any:
    import open_clip
    import torch

    torch.manual_seed(0)
    vision: Any = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32}
    text: Any = {"layers": 1, "width": 32, "heads": 2}
    module = open_clip.model.CLIP(16, vision, text).eval()
    transform: Any = open_clip.image_transform(32, is_train=False)
    tokenize = open_clip.SimpleTokenizer()

    class Embedder:
        name, weights = "open", "0" * 64

        def prepare(self, image):
            return transform(image)

        def encode_image(self, images):
            with torch.inference_mode():
                return module.encode_image(torch.stack(list(images)), normalize=True)

        def encode_text(self, texts):
            with torch.inference_mode():
                return module.encode_text(tokenize(list(texts)), normalize=True).numpy()

    return SimpleNamespace(module=module, transform=transform, tokenize=tokenize, embedder=Embedder())


def test_features_are_those_of_the_model(clip, monkeypatch, open_pair, put_photo, tmp_path):
    import torch

    give(monkeypatch, open_pair.embedder)
    pair, transform, tokenize = clip.load("vlm", "any")
    photos = [Image.open(put_photo(tmp_path / f"{name}.jpg", name)) for name in NAMES]
    images = torch.stack([transform(image) for image in photos])
    texts = ["a cat", "a rocket"]
    with torch.inference_mode():
        expected = [open_pair.module.encode_image(images), open_pair.module.encode_text(open_pair.tokenize(texts))]
    found = [pair.eval().encode_image(images), pair.encode_text(tokenize(texts).to("cpu"))]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs / theirs.norm(dim=-1, keepdim=True), rtol=0, atol=1e-6)


def clip_benchmark_run(monkeypatch, pair, out: Path, *args: str) -> dict:
    """Metrics of clip-benchmark's own command line with the pair as our model, on photos in the order of the files."""
    give(monkeypatch, pair.embedder)
    monkeypatch.setattr(sys, "argv", [])
    model = ("--model_type", "vlm", "--model", "vlm", "--pretrained", "pair")
    run = ("--output", str(out), "--num_workers", "0", "--batch_size", "2", "--no_amp", "--quiet")
    assert main(["clip_benchmark", "eval", *model, *run, *args]) == 0
    result = json.loads(out.read_text())
    assert (result["model"], result["pretrained"]) == ("vlm", "pair")
    return result["metrics"]


def own_run(pair, dataset: str, task: str, **options) -> dict:
    """The same metrics from clip-benchmark's functions with the open_clip model itself."""
    from clip_benchmark.datasets.builder import (  # pyright: ignore[reportMissingImports]
        build_dataset,
        get_dataset_collate_fn,
    )
    from torch.utils.data import DataLoader

    data: Any = build_dataset(dataset, transform=pair.transform, split="test", task=task, **options)
    loader = DataLoader(data, batch_size=2, collate_fn=get_dataset_collate_fn(dataset))
    metric = import_module(f"clip_benchmark.metrics.{task}")
    if task == "zeroshot_retrieval":
        return metric.evaluate(pair.module, loader, pair.tokenize, "cpu", amp=False, recall_k_list=[1, 2])
    return metric.evaluate(pair.module, loader, pair.tokenize, data.classes, data.templates, "cpu", amp=False)


def test_zero_shot_retrieval_of_clip_benchmark(monkeypatch, open_pair, put_photo, tmp_path):
    pytest.importorskip("clip_benchmark", reason=NEEDS_CLIP_BENCHMARK)
    for name in NAMES:
        put_photo(tmp_path / f"photos/{name}.jpg", name)
    captions = tmp_path / "captions.txt"
    lines = [f"{name}.jpg,{text} {name}" for name in NAMES for text in ("a photo of a", "one, and only one,")]
    captions.write_text("\n".join(["image,caption", *lines]))
    args = ("--dataset", "flickr8k", "--dataset_root", str(tmp_path / "photos"), "--annotation_file", str(captions))
    metrics = clip_benchmark_run(monkeypatch, open_pair, tmp_path / "out.json", *args, "--recall_k", "1", "2")
    options = {"root": str(tmp_path / "photos"), "annotation_file": str(captions)}
    assert metrics == own_run(open_pair, "flickr8k", "zeroshot_retrieval", **options)
    assert len(metrics) == 4 and 0 < metrics["image_retrieval_recall@2"] < 1


def test_zero_shot_classification_of_clip_benchmark(monkeypatch, open_pair, put_photo, tmp_path):
    pytest.importorskip("clip_benchmark", reason=NEEDS_CLIP_BENCHMARK)
    if np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("clip-benchmark makes numbers of arrays, which needs numpy<2.4")
    for name in NAMES:
        put_photo(tmp_path / f"photos/{name}/{name}.jpg", name)
    (tmp_path / "classes.json").write_text(json.dumps({"imagenet_sketch": list(NAMES)}))
    (tmp_path / "templates.json").write_text(json.dumps({"imagenet_sketch": ["a photo of a {c}.", "the {c}"]}))
    files = {
        "custom_classname_file": str(tmp_path / "classes.json"),
        "custom_template_file": str(tmp_path / "templates.json"),
    }
    args = [word for name, path in files.items() for word in (f"--{name}", path)]
    root = str(tmp_path / "photos")
    metrics = clip_benchmark_run(
        monkeypatch, open_pair, tmp_path / "out.json", "--dataset", "imagenet_sketch", "--dataset_root", root, *args
    )
    expected = own_run(open_pair, "imagenet_sketch", "zeroshot_classification", root=root, **files)
    assert metrics["acc1"] == expected["acc1"]
    assert metrics["mean_per_class_recall"] == expected["mean_per_class_recall"]


# --- lmms-eval itself, on a task of our own ---

TASK = """\
task: our_captions
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: question
doc_to_target: target
process_results: !function utils.process_results
metric_list:
  - metric: length
    aggregation: mean
    higher_is_better: true
"""
UTILS = """\
from PIL import Image

def doc_to_visual(doc):
    return [Image.open(doc["file"])]

def process_results(doc, results):
    return {"length": len(results[0])}
"""


def test_captions_in_lmms_eval(put_photo, random_model, tmp_path):
    pytest.importorskip("lmms_eval", reason=NEEDS_LMMS_EVAL)
    import vlm

    photos = [put_photo(tmp_path / f"{name}.jpg", name) for name in NAMES]
    data, tasks, out = tmp_path / "data.json", tmp_path / "tasks", tmp_path / "out"
    data.write_text(json.dumps([{"file": str(file), "question": "What?", "target": ""} for file in photos]))
    tasks.mkdir()
    (tasks / "utils.py").write_text(UTILS)
    (tasks / "our_captions.yaml").write_text(TASK.format(data=data))
    model = ["--model", "vlm", "--model_args", f"pretrained={random_model}", "--batch_size", "2"]
    args = ["--tasks", "our_captions", "--include_path", str(tasks), "--output_path", str(out), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-m", "eval.adapters", "lmms_eval", *model, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | offline,
    )
    files = list(out.rglob("*samples_our_captions.jsonl"))
    assert len(files) == 1, result.stderr[-2000:]  # the harness ends with status 0 after errors, too
    found = {sample["doc_id"]: sample["filtered_resps"] for sample in map(json.loads, files[0].open())}
    captions = vlm.load(str(random_model)).captions(photos)
    assert found == {number: best.text for number, (best, *_) in enumerate(captions)}
    (results,) = out.rglob("*results.json")
    figure = json.loads(results.read_text())["results"]["our_captions"]["length,none"]
    assert figure == pytest.approx(sum(map(len, found.values())) / len(photos))
