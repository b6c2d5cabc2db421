"""Photos, a model that answers what a test tells it, and a random one in the layout of `vlm.load`."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from eval.benchmark import Item

SAMPLES = Path(__file__).resolve().parents[2] / "datasets/sample"


class FakeModel:
    """Answers by the photo's file name; whatever is not told is `default`.

    Attributes:
        sizes: of the batches that it was asked for.
        most: items of a batch above which memory "runs out".
    """

    def __init__(self, told: Mapping[str, str] | None = None, default: str = "a photo", weights: str = "0" * 64):
        self.told, self.default, self.weights = dict(told or {}), default, weights
        self.name = "fake"
        self.sizes: list[int] = []
        self.most = 10**9

    def prepare(self, image: Path) -> Path:
        from vlm.image import load_image

        load_image(image)
        return image

    def settings(self, task: str) -> dict[str, Any]:
        return {"prompt": f" {task}?", "beams": 1}

    def _reply(self, keys: Sequence[str]) -> list[str]:
        self.sizes.append(len(keys))
        if len(keys) > self.most:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return [self.told.get(key, self.default) for key in keys]

    def caption(self, images: Sequence[Path]) -> list[str]:
        return self._reply([image.stem for image in images])

    def answer(self, images: Sequence[Path], questions: Sequence[str]) -> list[str]:
        return self._reply(questions)


@pytest.fixture
def fake() -> type[FakeModel]:
    return FakeModel


@pytest.fixture
def put_photo() -> Callable[[Path, str], Path]:
    """Copy a sample photo, such as `cat`, to a path, whose folders are made."""

    def put(path: Path, name: str = "cat") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SAMPLES / f"{name}.jpg", path)
        return path

    return put


@pytest.fixture(scope="session")
def random_model(tmp_path_factory, small_model) -> Path:
    """The folder of a small model with random weights."""
    from vlm.files.bundle import Bundle, save_bundle
    from vlm.image import ImageTransform

    texts = ["a dog runs through tall grass", "two cats sit on a red sofa"]
    model, tokenizer = small_model(texts, 300, 0, 64, 64)
    folder = tmp_path_factory.mktemp("model")
    save_bundle(folder, Bundle(model, tokenizer, ImageTransform(64)))
    return folder


@pytest.fixture
def read() -> Callable[..., list[Item]]:
    """`read(name, folder, split=None)`: the items of a benchmark, checked as a run checks them."""
    from eval.benchmark import check_items
    from eval.benchmarks import BENCHMARKS

    def items(name: str, folder: Path, split: str | None = None) -> list[Item]:
        benchmark = BENCHMARKS[name]
        found = benchmark.read(folder, split or benchmark.splits[0])
        check_items(found, name)
        return found

    return items
