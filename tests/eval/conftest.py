"""Photos, a model that answers what a test tells it, and a random one in the layout of `vlm.load`."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

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
def random_model(tmp_path_factory) -> Path:
    """The folder of a small model with random weights."""
    import torch

    from vlm import hub
    from vlm.image import ImageTransform
    from vlm.models.layers import Seq2SeqConfig
    from vlm.models.towers import TowerConfig, build_tower
    from vlm.models.vision_language import VisionLanguageModel
    from vlm.tokenizer import train_tokenizer

    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a dog runs through tall grass", "two cats sit on a red sofa"], 300, 0, 0)
    tower = TowerConfig("test_efficientnet")
    backbone = Seq2SeqConfig(
        vocab_size=tokenizer.vocab_size,
        dim=32,
        heads=2,
        encoder_layers=1,
        decoder_layers=1,
        patch_dim=build_tower(tower).dim,
        max_source_positions=64,
        max_target_positions=64,
        token_bucket_size=16,
        image_bucket_size=16,
        dropout=0.0,
    )
    folder = tmp_path_factory.mktemp("model")
    hub.save_model(folder, VisionLanguageModel(tower, backbone).eval(), tokenizer, ImageTransform(64))
    return folder
