"""Small training runs, from shards and configurations made here."""

import io
import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from webdataset.writer import TarWriter

SHARED = {"batch_size": 4, "texts_per_photo": 2, "ema": 0.9}
TINY = {
    "backbone": {
        "vocab_size": 0, "dim": 32, "ffn_dim": 64, "heads": 2, "encoder_layers": 1, "decoder_layers": 2,
        "patch_dim": 256, "max_source_positions": 32, "max_target_positions": 64, "token_bucket_size": 8,
        "image_bucket_size": 4, "code_grid": 4,
    },
    "tower": {"name": "test_efficientnet"}, "image": {"size": 64}, "init": "random", "text_tokens": 400,
    "location_tokens": 16, "precision": "bf16",
    "phases": [
        {**SHARED, "name": "a", "epochs": 6, "tower_lr": 1e-4, "stage": 3, "views": 2},
        {**SHARED, "name": "b", "epochs": 6, "self_critical": {}, "lr": 1e-3, "stage": 3, "views": 2},
        {**SHARED, "name": "c", "epochs": 6, "tower_lr": 1e-4, "hidden_patches": 0.3,
         "cross_entropy": {"hidden_tokens": 0.2}},
    ],
}  # fmt: skip


MIXED = {**SHARED, "name": "d", "mix": {"caption": 1.0, "answer": 0.5}, "epochs": 6, "tower_lr": 1e-4}
ASKED = [{"question": "What is it?", "answers": ["a dog"] * 3 + ["cat"]}, {"question": "Red?", "answers": ["yes"]}]


def write_data(folder: Path, count: int = 20, captions: list[str] | None = None, vqa: list[dict] | None = None) -> Path:
    folder.mkdir()
    rng = random.Random(0)
    words = ["red", "green", "dog", "cat", "bird", "runs", "sits", "flies"]
    with TarWriter(str(folder / "a.tar")) as writer:
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 256, (4, 5, 3)).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).resize((80, 64)).save(buffer, "JPEG")
            texts = captions or [f"A {' '.join(rng.sample(words, 3))}." for _ in range(3)]
            record = {"captions": texts, "source": "set", "split": "val" if i % 10 == 9 else "train", "vqa": vqa or []}
            writer.write({"__key__": f"photo{i:03}", "jpg": buffer.getvalue(), "json": record})
    return folder


def write_config(file: Path, **changes) -> str:
    file.write_text(json.dumps({**TINY, **changes}))
    return str(file)


def command(config: str, data: Path, out: Path) -> list[str]:
    return [config, "--data", str(data), "--out", str(out), "--checkpoint-minutes", "0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("train") / "data")


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("questions") / "data", vqa=ASKED)


@pytest.fixture(scope="session")
def runs() -> SimpleNamespace:
    """What small runs consist of: configurations, shards and arguments."""
    return SimpleNamespace(
        TINY=TINY,
        MIXED=MIXED,
        SHARED=SHARED,
        ASKED=ASKED,
        write_data=write_data,
        write_config=write_config,
        command=command,
    )
