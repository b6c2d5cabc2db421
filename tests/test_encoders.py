"""Encoders of open_clip and timm: the same numbers as the packages' own calls, and every form of input."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import tokenizers
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

import vlm
from vlm import hub
from vlm.encoders import Encoders, TimmEncoders
from vlm.errors import ArgumentError, ImageError, ModelError
from vlm.image import ImageTransform
from vlm.models.encoders import ContrastivePair, PairConfig, TextConfig

SAMPLES = Path(__file__).parents[1] / "datasets" / "sample"
PHOTOS = [SAMPLES / "cat.jpg", SAMPLES / "coffee.jpg", SAMPLES / "rocket.jpg"]
TEXTS = ["a cat", "a cup of coffee", "a rocket on its pad"]


@pytest.fixture(scope="module")
def pair(small_clip) -> Encoders:
    return vlm.load_encoders(f"open_clip:small/{small_clip / 'small.pt'}")


def theirs(small_clip: Path) -> tuple[Any, Any, Any]:
    made: Any = open_clip.create_model_from_pretrained("small", pretrained=str(small_clip / "small.pt"))
    model, transform = made
    return model.eval(), transform, open_clip.get_tokenizer("small")


@torch.no_grad()
def test_features_equal_open_clips_own_calls(small_clip, pair):
    model, transform, tokenizer = theirs(small_clip)
    pixels = torch.stack([transform(Image.open(photo).convert("RGB")) for photo in PHOTOS])
    torch.testing.assert_close(pair.encode_image(PHOTOS), model.encode_image(pixels, normalize=True))
    torch.testing.assert_close(pair.encode_image(pixels), model.encode_image(pixels, normalize=True))
    torch.testing.assert_close(pair.encode_text(TEXTS), model.encode_text(tokenizer(TEXTS), normalize=True))
    torch.testing.assert_close(pair(pixels, pair.tokenize(TEXTS)), model(pixels, tokenizer(TEXTS)))
    assert pair.dim == 16 and pair.patch_embeddings(PHOTOS).shape == (3, 16, 64)


def test_encode_in_batches_equals_one_pass(pair, capsys):
    with torch.no_grad():
        images, texts = pair.encode_image(PHOTOS), pair.encode_text(TEXTS)
    for size in (1, 2, 3, 32):
        torch.testing.assert_close(pair.encode(PHOTOS, batch_size=size), images)
        torch.testing.assert_close(pair.encode(TEXTS, batch_size=size), texts)
    assert capsys.readouterr().err == ""
    pair.encode(TEXTS, show_progress_bar=True)
    assert "3/3" in capsys.readouterr().err
    assert pair.encode([]).shape == (0, 16)


def test_photos_in_any_form_give_the_same(pair):
    photo = PHOTOS[0]
    array = np.asarray(Image.open(photo).convert("RGB"))
    with torch.no_grad():
        found = pair.encode_image([photo, str(photo), photo.read_bytes(), array, Image.open(photo)])
    torch.testing.assert_close(found, found[:1].expand(5, -1))


def test_gradients_flow_into_both_encoders(pair):
    loss = (pair.encode_image(PHOTOS) * pair.encode_text(TEXTS)).sum()
    loss.backward()
    assert pair.model.visual.conv1.weight.grad.any() and pair.model.token_embedding.weight.grad.any()
    pair.zero_grad()


def test_module_moves_compiles_and_saves(pair, small_clip):
    again: Any = vlm.load_encoders(f"open_clip:small/{small_clip / 'small.pt'}")
    for parameter in again.parameters():
        parameter.data.zero_()
    again.load_state_dict(pair.state_dict())
    pixels, ids = pair.pixels(PHOTOS), pair.tokenize(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(again(pixels, ids), pair(pixels, ids))
        compiled: Any = torch.compile(again, backend="eager")
        torch.testing.assert_close(compiled(pixels, ids), pair(pixels, ids))
        half = again.to(torch.bfloat16)
        assert half.encode_image(pixels.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(half.encode_image(PHOTOS), half.encode_image(pixels.bfloat16()))


@torch.no_grad()
def test_timm_features_equal_timms_own_calls(small_clip):
    encoders = vlm.load_encoders(f"timm:vit_tiny_patch16_224/{small_clip / 'vit.pt'}")
    torch.manual_seed(0)
    model: Any = timm.create_model("vit_tiny_patch16_224").eval()
    pixels = encoders.pixels(PHOTOS[:1])
    assert pixels.shape == (1, 3, 224, 224)
    expected = torch.nn.functional.normalize(model.forward_head(model.forward_features(pixels), pre_logits=True))
    torch.testing.assert_close(encoders.encode_image(PHOTOS[:1]), expected)
    torch.testing.assert_close(encoders.patch_embeddings(pixels), model.forward_features(pixels)[:, 1:])
    assert encoders.dim == 192 and encoders.logit_scale is None
    with pytest.raises(ArgumentError, match="reads photos only; load a pair such as 'tiny' to encode text"):
        encoders.encode_text(TEXTS)


class Other(nn.Module):
    """Batch norms that may be folded, `a` and `d`, and those that may not: `b` reads none, `c` works twice."""

    def __init__(self):
        super().__init__()
        self.a, self.conv_a = nn.BatchNorm2d(4), nn.Conv2d(3, 4, 3, bias=False)
        self.b, self.c = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.conv_c = nn.Conv2d(4, 4, 1)
        self.d, self.conv_d = BatchNormAct2d(4, act_layer=nn.Hardswish), nn.Conv2d(4, 4, 3, groups=4, bias=False)
        self.num_features = 4

    def forward(self, x):
        x = self.b(self.a(self.conv_a(x)).relu())
        x = self.c(self.conv_c(self.c(self.conv_c(x))))
        return self.d(self.conv_d(x)).mean((2, 3))


def with_statistics(model: nn.Module) -> nn.Module:
    """Batch norms as after a training: random statistics and factors."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -1.0), (module.running_var, 0.5), (module.weight, 0.5)):
                assert tensor is not None
                nn.init.uniform_(tensor, low, 1.5)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("make, left", [
    (Other, ["model.b", "model.c"]),  # by hand
    (lambda: timm.create_model("test_efficientnet", num_classes=0), []),
    (lambda: timm.create_model("test_resnet", num_classes=0), []),
    (lambda: timm.create_model("test_vit", num_classes=0), []),
])  # fmt: skip
def test_for_inference_keeps_the_vectors_without_batch_norms(make, left):
    encoders = TimmEncoders("other", with_statistics(make()), ImageTransform(96))
    before, patches, digest = encoders.encode_image(PHOTOS), None, encoders.weights_sha256()
    if make is not Other:
        patches = encoders.patch_embeddings(PHOTOS)
    assert encoders.for_inference() is encoders
    found = encoders.encode_image(PHOTOS)
    torch.testing.assert_close(found, before, atol=1e-5, rtol=0)
    if patches is not None:
        torch.testing.assert_close(encoders.patch_embeddings(PHOTOS), patches, atol=1e-4, rtol=1e-4)
    assert [name for name, module in encoders.named_modules() if isinstance(module, nn.BatchNorm2d)] == left
    assert encoders.weights_sha256() == digest  # an index goes on knowing its model
    torch.testing.assert_close(encoders.for_inference().encode_image(PHOTOS), found)


def test_for_inference_refuses_what_changes_the_vectors():
    class Random(Other):
        def forward(self, x):
            return super().forward(x) + torch.rand(1)

    with pytest.raises(ModelError, match=r"'random' gives other vectors .* folded; load it again"):
        TimmEncoders("random", with_statistics(Random()), ImageTransform(96)).for_inference()


@pytest.mark.parametrize("call, message", [
    (lambda pair: pair.encode_text("a cat"), "encode_text takes a list of sentences"),
    (lambda pair: pair.encode("a cat"), "encode takes a list"),
    (lambda pair: pair.encode(["a cat", PHOTOS[0]]), "not both at once"),
])  # fmt: skip
def test_calls_that_cannot_be_meant(pair, call, message):
    with pytest.raises(ArgumentError, match=message):
        call(pair)


def test_a_photo_that_cannot_be_read_is_named(pair, tmp_path):
    with pytest.raises(ImageError, match=r"gone\.jpg. does not exist"):
        pair.encode([*PHOTOS, tmp_path / "gone.jpg"])


@pytest.mark.parametrize("name, message", [
    ("open_clip:no_such_architecture/x.pt", "'open_clip:no_such_architecture/x.pt' cannot be loaded: "),
    ("open_clip:small", "names no weights; give open_clip:ARCHITECTURE/TAG"),
    ("open_clip:small/no_such_tag", "cannot be loaded: .*no_such_tag"),
    ("timm:no_such_model", "cannot be loaded: .*no_such_model"),
    (str(SAMPLES), "has no text encoder .*pair.json, pair_tokenizer.json, pair.safetensors missing"),
    ("no_such_model", "no model 'no_such_model'"),
])  # fmt: skip
def test_models_that_do_not_exist(small_clip, name, message):
    with pytest.raises(ModelError, match=message):
        vlm.load_encoders(name)


@pytest.fixture
def small_pair(tmp_path) -> Path:
    """A model's folder with a small random pair in it."""
    shutil.copytree(hub.BUNDLED / "tiny", tmp_path / "model")
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "rocket"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    text = TextConfig(vocab_size=len(words), dim=16, layers=1, heads=2, ffn_dim=32, max_positions=6)
    pair = ContrastivePair(PairConfig(patch_dim=1280, dim=8, width=16, text=text))
    hub.save_pair(tmp_path / "model", pair.eval(), tokenizer)
    return tmp_path / "model"


@torch.no_grad()
def test_our_own_pair_reads_the_captioners_tower(small_pair):
    encoders = vlm.load_encoders(str(small_pair))
    model = vlm.load("tiny")
    patches = model.encode_images(model.prepare(PHOTOS[0])[None])
    torch.testing.assert_close(encoders.patch_embeddings(PHOTOS[:1]), patches.flatten(1, 2))
    assert encoders.encode_image(PHOTOS).shape == (3, 8) and encoders.dim == 8
    assert encoders.tokenize(["a cat", "a"]).tolist() == [[2, 4, 5, 3], [2, 4, 3, 0]]
    assert encoders.tokenize(["a cat a cat a cat"]).tolist() == [[2, 4, 5, 4, 5, 3]]  # the end stays
    torch.testing.assert_close(encoders.encode_text(["a cat", "a"])[1:], encoders.encode_text(["a"]))
    torch.testing.assert_close(encoders.encode(PHOTOS, batch_size=2), encoders.encode_image(PHOTOS), atol=1e-5, rtol=0)


@pytest.mark.parametrize("file, change, message", [
    ("pair_tokenizer.json", lambda text: text + b" ", "not the tokenizer that these weights were trained with"),
    ("pair.json", lambda text: text.replace(b'"width": 16', b'"width": 32'), "has shape .* its config says"),
    ("pair.json", lambda text: text.replace(b'"heads": 2', b'"heads": 3'), "does not describe a pair"),
    ("pair.json", lambda text: text.replace(b'"pair"', b'"pear"'), "lacks 'pair'"),
    ("pair.json", lambda text: b"{", "is not JSON"),
    ("pair.safetensors", lambda data: data[:-100], "cannot be read"),
])  # fmt: skip
def test_damaged_files_of_a_pair(small_pair, file, change, message):
    path = small_pair / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ModelError, match=message):
        vlm.load_encoders(str(small_pair))


def test_matrices_of_a_pair_are_stored_in_eight_bits(tmp_path, small_pair):
    torch.manual_seed(3)
    pair, tokenizer = hub.load_pair(small_pair)
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.uniform_(-1, 1)
        pair.text_proj.weight[0] = 0  # a row of zeros has no scale
    hub.save_pair(tmp_path, pair, tokenizer)
    found, exact = hub.load_pair(tmp_path)[0].state_dict(), pair.state_dict()
    stored = load_file(tmp_path / "pair.safetensors")
    for name, tensor in exact.items():
        if tensor.ndim == 2 and name not in ("text.words.weight", "text.positions.weight"):
            assert stored[name].dtype == torch.int8, name
            step = tensor.abs().amax(1, keepdim=True) / 127
        else:
            assert stored[name].dtype == torch.float16, name
            step = tensor.abs() / 1024
        assert ((found[name] - tensor).abs() <= 0.501 * step).all(), name


def test_a_scale_that_does_not_fit_its_matrix(small_pair):
    file = small_pair / "pair.safetensors"
    save_file({**load_file(file), "text_proj.weight_scale": torch.ones(1)}, file)
    with pytest.raises(ModelError, match=r"text_proj.weight_scale has shape \(1,\), not one scale a row of int8"):
        hub.load_pair(small_pair)


def test_weights_of_another_model_are_refused(small_clip):
    with pytest.raises(ModelError, match=r"cannot be loaded"):
        vlm.load_encoders(f"open_clip:small/{small_clip / 'vit.pt'}")


def test_a_malicious_pickle_does_not_run(small_clip, tmp_path):
    class Bad:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"x": Bad()}, tmp_path / "bad.pt")
    with pytest.raises(ModelError, match="cannot be loaded"):
        vlm.load_encoders(f"open_clip:small/{tmp_path / 'bad.pt'}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("device", ["no_such_device", "cuda:99"])
def test_devices_that_are_not_there(small_clip, device):
    with pytest.raises(ArgumentError, match=f"device {device!r} cannot be used"):
        vlm.load_encoders(f"open_clip:small/{small_clip / 'small.pt'}", device=device)
