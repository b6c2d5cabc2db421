"""What several test modules share: goldens of the original OFA code, ours and the reference, and small models.

Goldens are recorded numbers. Small ones lie in `tests/golden/`; the reference data lies beside the clone and is large.
The same tests read both: through the fixture `golden`, or for each case that the mark `cases` finds.
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from vlm.diffusion.pipeline import TextToImagePipeline
    from vlm.models.vision_language import VisionLanguageModel
    from vlm.tokenizer import Tokenizer

REFERENCE = Path(__file__).parents[2] / "shared"  # outside of the clone
GOLDENS = {"own": Path(__file__).parent / "golden", "reference": REFERENCE / "ofa_golden"}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `reference(name)` where `name` is not among the reference data."""
    for mark in item.iter_markers("reference"):
        if not (REFERENCE / mark.args[0]).exists():
            pytest.skip(f"needs reference data: {REFERENCE.name}/{mark.args[0]} is not beside the checkout")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that reads a golden with both goldens.

    A test marked `cases(find=..., slow=())` runs with each `case` of `find(golden)`, a dictionary; the keys in `slow`
    are slow. Where the reference is missing, one skipped test stands for its cases.
    """
    if "golden" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("cases")
    found = []
    for name, folder in GOLDENS.items():
        marks = [pytest.mark.reference("ofa_golden")] if name == "reference" else []
        if not mark:
            found.append(pytest.param(name, marks=marks, id=name))
            continue
        cases = mark.kwargs["find"](folder) if folder.is_dir() else {"absent": None}
        for key, case in cases.items():
            slow = [pytest.mark.slow] if key in mark.kwargs.get("slow", ()) else []
            found.append(pytest.param(name, case, marks=[*marks, *slow], id=f"{name}-{key}"))
    metafunc.parametrize(["golden", "case"] if mark else ["golden"], found, indirect=["golden"], scope="session")


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of the reference data, for tests marked `reference`."""
    return REFERENCE


@pytest.fixture(scope="session")
def golden(request) -> Path:
    """The folder of a golden: ours, then the reference."""
    return GOLDENS[request.param]


@cache
def read_arrays(file: Path) -> "dict[str, np.ndarray]":
    import numpy as np
    from safetensors.numpy import load

    npz, packed = file.with_name(f"{file.name}.npz"), file.with_name(f"{file.name}.safetensors.gz")
    return dict(np.load(npz)) if npz.is_file() else load(gzip.decompress(packed.read_bytes()))


@pytest.fixture(scope="session")
def arrays(golden) -> "Callable[[str], dict[str, Tensor]]":
    """`arrays(name)`: what a file of the golden holds, named without its ending."""
    import torch

    return lambda name: {key: torch.from_numpy(values) for key, values in read_arrays(golden / name).items()}


@pytest.fixture(scope="session")
def nano_state(golden, arrays) -> "dict[str, Tensor]":
    """The nano model's parameters by their original names; in our golden without the image tower."""
    import torch

    state = arrays("nano/state")
    if golden == GOLDENS["own"]:
        state = {name: values / 4096 for name, values in state.items()}
        state["encoder.image_proj.weight"] = torch.eye(32, 1024)  # our golden has the photos after the projection
    return state


@pytest.fixture(scope="session")
def nano(golden, nano_state) -> "Callable[..., VisionLanguageModel]":
    """`load(parameters={}, **changes)`: the nano model, by name mapping with nothing missing and nothing left over.

    `parameters` are added to the file's by their original names; `changes` are fields of its configuration.
    """
    import torch

    from vlm.convert.ofa.checkpoint import rename
    from vlm.models.config import Seq2SeqConfig, TowerConfig
    from vlm.models.vision_language import VisionLanguageModel

    class Features(torch.nn.Module):
        """In place of the tower: the golden's photos, which are features already, `[batch, height, width, 32]`."""

        def forward(self, features: "Tensor") -> "Tensor":
            return torch.nn.functional.pad(features, (0, 1024 - 32))

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
        names = {**nano_state, **(parameters or {})}
        if not changes.get("pre_norm", True):
            names = {k: v for k, v in names.items() if not k.startswith(("encoder.layer_norm.", "decoder.layer_norm."))}
        model = VisionLanguageModel(TowerConfig("ofa_resnet", (2, 1, 1)), replace(config, **changes)).eval()
        if golden == GOLDENS["own"]:
            model.tower = Features()  # pyright: ignore[reportAttributeAccessIssue]
        model.load_state_dict({new: values for name, values in names.items() if (new := rename(name))})
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

    # not the tasks' prompts: a new task must not change what the random weights say
    texts = [
        " what does the image describe?",
        ' which region does the text " a dog " describe?',
        "  what does the region describe? region:",
        ' can image and text1 " a cat " imply text2 " two cats on a red sofa "?',
        ' what is the complete text of "a cat "?',
        " what is the complete image? caption: two dogs",
        " what is the summary of article: yes no maybe",
        " was zeigt das bild?",
        "图片描述了什么内容?",
    ]
    module, tokenizer = small_model(texts, 400, 100, 128, 160)
    with torch.no_grad():
        module.backbone.embed.weight *= 20  # otherwise all tokens are nearly as likely
    tasks: dict[str, dict[str, Any]] = {task: {} for task in TASKS}
    tasks["answer"] = {"prefix": "source"}
    folder = tmp_path_factory.mktemp("all_tasks")
    save_bundle(folder, Bundle(module, tokenizer, ImageTransform(64), tasks))
    return folder


@pytest.fixture(scope="session")
def drawing_base(tmp_path_factory, small_model) -> Path:
    """The folder of a small base model with a pair whose text tower knows a few words; all weights are random."""
    import tokenizers
    import torch

    from vlm.files.bundle import Bundle, save_bundle
    from vlm.image import ImageTransform
    from vlm.models.config import PairConfig, TextConfig
    from vlm.models.pair import ContrastivePair

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "green", "blue", "shoe", "shirt", "for", "women"]
    words = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]")
    )
    words.normalizer = tokenizers.normalizers.Lowercase()
    words.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    words.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    text = TextConfig(vocab_size=len(names), dim=16, layers=1, heads=2, ffn_dim=32, max_positions=32)
    module, tokenizer = small_model(["a red shoe for women", " a green shirt"], 300, 16, 64, 32)
    torch.manual_seed(1)
    pair = ContrastivePair(PairConfig(module.tower.dim, 8, 16, text))
    folder = tmp_path_factory.mktemp("drawing_base")
    save_bundle(folder, Bundle(module, tokenizer, ImageTransform(64), pair=pair, pair_tokenizer=words))
    return folder


@pytest.fixture(scope="session")
def drawing(drawing_base) -> "Callable[..., TextToImagePipeline]":
    """`build(states="pair", vae=None, prior=False)`: a pipeline on the small base; its head draws 16 x 16 pixels or
    latents."""
    import torch
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    from vlm.diffusion.pipeline import TextToImagePipeline
    from vlm.diffusion.prior import Prior
    from vlm.diffusion.text import TextEncoder
    from vlm.files.bundle import load_folder
    from vlm.models.config import DenoiserConfig
    from vlm.models.denoiser import Denoiser

    def build(states: Any = "pair", vae: torch.nn.Module | None = None, prior: bool = False) -> TextToImagePipeline:
        text = TextEncoder(load_folder(drawing_base, "small", with_pair=True), states)
        sizes = DenoiserConfig(3 if vae is None else 4, 16, 4, 32, 2, 2, text.dim, text.pooled_dim)
        torch.manual_seed(2)
        denoiser = Denoiser(sizes)
        for parameter in denoiser.parameters():  # those that start at zero would hide what they multiply
            torch.nn.init.normal_(parameter, std=0.1)
        scheduler = FlowMatchEulerDiscreteScheduler(shift=1.5)
        own = Prior(text.pooled_dim).eval() if prior else None
        pipeline = TextToImagePipeline(denoiser.eval(), scheduler, text, vae, own)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return build
