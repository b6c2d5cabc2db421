"""What several test modules share: the nano model of the golden files made by the original OFA code."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import Tensor

    from vlm.models.vision_language import VisionLanguageModel
    from vlm.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[2] / "shared" / "ofa_golden"


@pytest.fixture(scope="session")
def nano() -> "Callable[..., VisionLanguageModel]":
    """`load(parameters={}, **changes)`: the nano model, by name mapping with nothing missing and nothing left over.

    `parameters` are added to the file's by their original names; `changes` are fields of its configuration.
    """
    if not GOLDEN.is_dir():
        pytest.skip("the golden numbers of the original are not beside the checkout")
    import numpy as np
    import torch

    from vlm.convert.ofa.checkpoint import rename
    from vlm.models.config import Seq2SeqConfig, TowerConfig
    from vlm.models.vision_language import VisionLanguageModel

    file = dict(np.load(GOLDEN / "nano" / "state.npz"))
    config = Seq2SeqConfig(
        vocab_size=360,
        dim=32,
        ffn_dim=64,
        encoder_layers=2,
        decoder_layers=2,
        max_source_positions=80,
        max_target_positions=48,
        token_bucket_size=8,
        image_bucket_size=8,
        code_grid=4,
        dropout=0.0,
    )

    def load(parameters: dict[str, Any] | None = None, **changes: Any) -> VisionLanguageModel:
        names = {**file, **(parameters or {})}
        if not changes.get("pre_norm", True):
            names = {k: v for k, v in names.items() if not k.startswith(("encoder.layer_norm.", "decoder.layer_norm."))}
        model = VisionLanguageModel(TowerConfig("ofa_resnet", (2, 1, 1)), replace(config, **changes)).eval()
        model.load_state_dict({new: torch.from_numpy(v.copy()) for k, v in names.items() if (new := rename(k))})
        return model

    return load


@pytest.fixture(scope="session")
def assert_same_sums() -> "Callable[[dict[str, Tensor], dict[str, Tensor], int], None]":
    """`check(actual, expected, terms)`: float64 tensors that are the same sums, added up in another order.

    Processors differ in the order in which they add (the width of their vectors, the blocks of a matrix product, fused
    multiply-add), and each addition rounds to half a unit in the last place. Two orders of a sum of `terms` numbers can
    differ by `terms * eps` times the size of the numbers (Higham, Accuracy and Stability of Numerical Algorithms, 4.2).
    That size is the largest entry of all tensors: a small entry is a rest of large terms, so that a tolerance relative
    to the entry itself, or float32, would hold on one machine by chance.
    """
    import torch

    def check(actual: "dict[str, Tensor]", expected: "dict[str, Tensor]", terms: int) -> None:
        assert actual.keys() == expected.keys()
        assert {tensor.dtype for tensor in expected.values()} == {torch.float64}
        size = max(tensor.abs().max().item() for tensor in expected.values())
        tolerance = terms * torch.finfo(torch.float64).eps * size
        for name, tensor in expected.items():
            torch.testing.assert_close(
                actual[name], tensor, atol=tolerance, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
            )

    return check


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory) -> Path:
    """A folder with the weights of a small random CLIP, `small.pt`, and of a timm model, `vit.pt`.

    From now on open_clip knows the architecture `small`.
    """
    import open_clip
    import timm
    import torch

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    path = tmp_path_factory.mktemp("open_clip")
    (path / "small.json").write_text(json.dumps(config))
    open_clip.add_model_config(path / "small.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("small").state_dict(), path / "small.pt")
    torch.manual_seed(0)
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), path / "vit.pt")
    return path


@pytest.fixture(scope="session")
def small_model() -> "Callable[..., tuple[VisionLanguageModel, Tokenizer]]":
    """`build(texts, pieces, bins, source, target, codes)`: a small model with random weights, and its tokenizer.

    `source` and `target` are the longest sequences of encoder and decoder; a picture is 4 x 4 of `codes` codes.
    """
    import torch

    from vlm.models.config import Seq2SeqConfig, TowerConfig
    from vlm.models.towers import build_tower
    from vlm.models.vision_language import VisionLanguageModel
    from vlm.tokenizer import train_tokenizer

    def build(texts, pieces: int, bins: int, source: int, target: int, codes: int = 0):
        torch.manual_seed(0)
        tokenizer = train_tokenizer(texts, pieces, codes, bins)
        tower = TowerConfig("test_efficientnet")
        backbone = Seq2SeqConfig(
            vocab_size=tokenizer.vocab_size,
            dim=32,
            heads=2,
            encoder_layers=1,
            decoder_layers=1,
            patch_dim=build_tower(tower).dim,
            max_source_positions=source,
            max_target_positions=target,
            token_bucket_size=16,
            image_bucket_size=16,
            code_grid=4,
            dropout=0.0,
        )
        return VisionLanguageModel(tower, backbone).eval(), tokenizer

    return build


@pytest.fixture(scope="session")
def all_tasks(tmp_path_factory, small_model) -> Path:
    """The folder of a small model with random weights, which says that it was trained for every task.

    Its decoder is given the question before it answers one, as in OFA's models for VQA.
    """
    import torch

    from vlm.files.bundle import Bundle, save_bundle
    from vlm.image import ImageTransform
    from vlm.tasks import TASKS

    asked = [value for task in TASKS.values() for value in task.defaults.values() if isinstance(value, str)]
    texts = [*asked, " yes", " no", " maybe", " a dog", " two cats on a red sofa"]
    module, tokenizer = small_model(texts, 400, 100, 128, 160)
    with torch.no_grad():
        module.backbone.embed.weight *= 20  # otherwise all tokens are nearly as likely
    tasks: dict[str, dict[str, Any]] = {task: {} for task in TASKS}
    tasks["answer"] = {"prefix": "source"}
    folder = tmp_path_factory.mktemp("all_tasks")
    save_bundle(folder, Bundle(module, tokenizer, ImageTransform(64), tasks))
    return folder
