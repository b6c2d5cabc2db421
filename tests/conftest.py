"""What several test modules share: the nano model of the golden files made by the original OFA code."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vlm.models.vision_language import VisionLanguageModel

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

    from vlm.convert.ofa import rename
    from vlm.models.layers import Seq2SeqConfig
    from vlm.models.towers import TowerConfig
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
