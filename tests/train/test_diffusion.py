"""Training of the denoiser inside one process."""

import io
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

import vlm
from vlm.data.augment import View
from vlm.data.shards import Sample, Skipped
from vlm.diffusion.flow import add_noise, draw_shares, velocity_loss
from vlm.errors import ArgumentError, DataError, ModelError
from vlm.files.bundle import load_bundle
from vlm.train.build import build
from vlm.train.config import TrainConfig, from_json
from vlm.train.diffusion import DiffusionTrainer, interleave, prepare_pictures, prompts_of
from vlm.train.kept import ALIGN_DIM, ALIGN_GRID, keep_features, keep_pictures, keep_texts, square
from vlm.train.plan import split_samples
from vlm.train.run import read_config, train

COLOURS = {"red": (200, 0, 0), "green": (0, 180, 0), "blue": (0, 0, 220)}
SIZES = {"patch_size": 4, "dim": 32, "heads": 2, "layers": 2}
SHARED = {"epochs": 2, "batch_size": 4, "lr": 1e-3, "ema": 0.9}
PHASES = [
    {**SHARED, "name": "a", "sources": {"caption": ["set"]}, "diffusion": {"size": 8, "align": 0.5, "align_layer": 1}},
    {**SHARED, "name": "b", "diffusion": {"size": 16, "no_text": 0.5}},
]
HEAD = "diffusion/denoiser/diffusion_pytorch_model.safetensors"


def samples(count: int, source: str = "set", split: str = "train") -> list[Sample]:
    """Shoes and shirts of three colours; the shirts are stripes."""
    found = []
    for i in range(count):
        colour, thing = list(COLOURS)[i % 3], ("shoe", "shirt")[i % 2]
        pixels = np.full((24, 32, 3), COLOURS[colour], np.uint8)
        if thing == "shirt":
            pixels[:, ::8] = 255
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        texts = (f"a {colour} {thing}", f"A {thing} for women.")
        found.append(Sample(f"{source}{split}{i}", buffer.getvalue(), texts, source, split))
    return found


def config(base: Path, phases=PHASES, **changes) -> TrainConfig:
    return from_json({"init": str(base), "denoiser": SIZES, "precision": "no", "phases": phases, **changes})


def trainer(base: Path, out: Path, run: TrainConfig, photos: list[Sample], val=()) -> DiffusionTrainer:
    bundle, filled = build(run, photos, out)
    return DiffusionTrainer(filled, bundle, photos, val, out, checkpoint_minutes=0)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    AcceleratorState._reset_state(True)


@pytest.fixture
def photos() -> list[Sample]:
    return [*samples(8), *samples(4, "more")]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, drawing_base) -> Path:
    AcceleratorState._reset_state(True)
    out = tmp_path_factory.mktemp("unbroken")
    photos = [*samples(8), *samples(4, "more")]
    trainer(drawing_base, out, config(drawing_base), photos, samples(3, "set", "val")).run()
    return out


# phase a has two epochs of two steps, phase b of three
@pytest.mark.parametrize("stops", [[(0, 1)], [(0, 4), (1, 5)]], ids=str)
def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(
    tmp_path, drawing_base, photos, unbroken, stops, run_until
):
    val = samples(3, "set", "val")
    for stop in stops:
        run_until(trainer(drawing_base, tmp_path, config(drawing_base), photos, val), *stop)
    trainer(drawing_base, tmp_path, config(drawing_base), photos, val).run()
    for phase in "ab":
        assert (tmp_path / phase / HEAD).read_bytes() == (unbroken / phase / HEAD).read_bytes()


def test_a_phase_writes_a_model_that_draws(unbroken, drawing_base):
    for phase, size in (("a", 8), ("b", 16)):
        pipe = vlm.load_pipeline(unbroken / phase)
        assert pipe("a red shoe", num_inference_steps=1).images[0].size == (size, size)
        weights = load_file(unbroken / phase / HEAD)
        assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
        assert (unbroken / phase / "pair.safetensors").read_bytes() == (drawing_base / "pair.safetensors").read_bytes()
        assert vlm.load(unbroken / phase).encoders is not None  # the base works as before
    sheets = sorted(path.name for path in (unbroken / "samples").iterdir())
    assert sheets == ["a-1.png", "a-2.png", "b-1.png", "b-2.png"]
    assert Image.open(unbroken / "samples/b-2.png").size == (3 * 16, 2 * 16)  # three photos above what was drawn
    resolved = json.loads((unbroken / "config.resolved.json").read_text())
    assert resolved["denoiser"]["text_dim"] == 16 and resolved["phases"][1]["diffusion"]["no_text"] == 0.5


def test_training_goes_on_from_a_head(unbroken, tmp_path, photos):
    phase = {**SHARED, "name": "c", "lr": 1e-9, "weight_decay": 0.0, "diffusion": {"size": 16}}
    run = trainer(unbroken / "b", tmp_path, config(unbroken / "b", [phase], denoiser=None), photos)
    run.run()
    before, after = load_file(unbroken / "b" / HEAD), load_file(tmp_path / "c" / HEAD)
    assert before.keys() == after.keys()
    for name in before:  # hardly anything is learned at this rate
        torch.testing.assert_close(after[name], before[name], atol=2e-3, rtol=2e-3)


def test_the_loss_of_a_step_is_that_of_its_noise_and_texts(drawing_base, tmp_path, photos):
    run = trainer(drawing_base, tmp_path, config(drawing_base), photos)
    phase = run.config.phases[1]
    batch = next(run._batches(1, phase, run.plan(1, phase), 0, 1, None))
    step = run._step(phase, batch, "seed")
    torch.nn.init.normal_(run.denoiser.out.weight, std=0.1)
    with torch.no_grad():
        loss, figures = run.loss(run.module, step)
    again = run._step(phase, batch, "seed")
    clean = again.images.float() / 127.5 - 1
    clean = torch.stack([one.flip(-1) if text.mirrored else one for one, text in zip(clean, batch.texts, strict=True)])
    share = draw_shares(4, 0.4, 1.0, again.generator)
    noise = torch.randn(clean.shape, generator=again.generator)
    texts = list(run.numbers)
    found = []
    with torch.no_grad():
        for row, text in enumerate(batch.texts):  # one by one, with states that are computed anew
            states = run.pipeline.text_encoder.encode([texts[text.number]])
            one = slice(row, row + 1)
            noisy = add_noise(clean[one], noise[one], share[one])
            predicted, _ = run.denoiser.predict(noisy, share[one], states.states, states.pooled, states.mask)
            found.append(velocity_loss(predicted, clean[one], share[one]))
    torch.testing.assert_close(loss, torch.cat(found).mean(), atol=1e-3, rtol=1e-3)
    assert figures == {"flow": loss.item()}


def test_alignment_stops_and_moves_no_weight_of_the_tower(drawing_base, tmp_path, photos):
    run = trainer(drawing_base, tmp_path, config(drawing_base), photos)
    phase = run.config.phases[0]
    batch = next(run._batches(0, phase, run.plan(0, phase), 0, 1, None))
    loss, figures = run.loss(run.module, run._step(phase, batch, "seed", 0.0))
    assert loss.item() == pytest.approx(figures["flow"] + 0.5 * figures["align"], rel=1e-5)
    loss.backward()
    assert not any(parameter.grad is not None for parameter in run.tower.parameters())
    assert "align" not in run.loss(run.module, run._step(phase, batch, "seed", 0.7))[1]


def test_texts_are_long_short_or_dropped_in_their_shares(drawing_base, tmp_path, photos):
    run = trainer(drawing_base, tmp_path, config(drawing_base), photos)
    phase = run.config.phases[0]
    phase = replace(phase, objective=replace(phase.objective, long_texts=0.5, no_text=0.2))
    rng, texts = random.Random(0), list(run.numbers)
    drawn = [texts[run.texts(0, "caption", phase, rng, View())[0].number] for _ in range(2000)]
    short, long = prompts_of(photos[0], run.pipeline.text_encoder)
    assert short == ["a red shoe", "A shoe for women"] and long == "a red shoe. A shoe for women"
    shares = {text: drawn.count(text) / 2000 for text in ["", long, *short]}
    for text, share in {"": 0.2, long: 0.4, short[0]: 0.2, short[1]: 0.2}.items():
        assert shares[text] == pytest.approx(share, abs=0.04)


def test_vectors_of_photos_stand_in_place_of_texts_in_their_share(drawing_base, tmp_path, photos):
    phase = {**SHARED, "name": "a", "diffusion": {"size": 8, "no_text": 0.1, "photo_vectors": 0.4}}
    run = trainer(drawing_base, tmp_path, config(drawing_base, [phase]), photos)
    texts, rng, kind = list(run.numbers), random.Random(0), run.config.phases[0]
    drawn = [run.texts(0, "caption", kind, rng, View())[0] for _ in range(2000)]
    shares = {
        (by_photo, empty): sum(text.by_photo == by_photo and (texts[text.number] == "") == empty for text in drawn)
        / 2000
        for by_photo in (True, False)
        for empty in (True, False)
    }
    expected = {(True, True): 0.2, (True, False): 0.2, (False, True): 0.1, (False, False): 0.5}
    assert shares == pytest.approx(expected, abs=0.04)

    batch = next(run._batches(0, kind, run.plan(0, kind), 0, 1, None))
    torch.nn.init.normal_(run.denoiser.out.weight, std=0.1)
    torch.nn.init.normal_(run.denoiser.modulation.weight, std=0.1)
    losses = []
    for by_photo in (True, False):
        changed = batch._replace(texts=[text._replace(by_photo=by_photo) for text in batch.texts])
        seen: list[tuple] = []

        def note(module: torch.nn.Module, given: tuple, seen: list[tuple] = seen) -> None:
            seen.append(given)

        handle = run.denoiser.pooled_proj.register_forward_pre_hook(note)
        with torch.no_grad():
            losses.append(run.loss(run.module, run._step(kind, changed, "seed"))[0].item())
        handle.remove()
        vectors = run.pipeline.text_encoder.encode_image([square(photos[number]) for number in batch.photos])
        if by_photo:
            torch.testing.assert_close(seen[0][0], vectors, atol=2e-3, rtol=2e-3)
        else:
            assert torch.equal(seen[0][0], run.texts_kept.read([t.number for t in batch.texts], vectors.device).pooled)
    assert losses[0] != losses[1]


def test_a_prior_comes_nearer_to_the_photos_than_their_texts(drawing_base, tmp_path, photos):
    phase = {**SHARED, "name": "a", "epochs": 1, "diffusion": {"size": 8, "photo_vectors": 0.2}}
    val = samples(3, "set", "val")
    trainer(drawing_base, tmp_path, config(drawing_base, [phase]), photos, val).run()
    figures = json.loads((tmp_path / "validation.json").read_text())
    found = json.dumps(figures)
    assert "cosine_prior" in found and "cosine_text" in found
    pipe, encoders = vlm.load_pipeline(tmp_path / "a"), vlm.load_encoders(drawing_base)
    with torch.no_grad():
        images = encoders.encode_image([square(sample) for sample in photos])
        texts = encoders.encode_text([sample.captions[0] for sample in photos])
        assert (pipe.prior(texts) * images).sum(1).mean() > (texts * images).sum(1).mean() + 0.1
    picture = pipe(variations_of=[square(photos[0])], num_inference_steps=1).images[0]
    assert picture.size == (8, 8)


def test_titles_are_texts_and_too_long_ones_are_left_out(drawing):
    encoder = drawing().text_encoder  # which reads 32 tokens
    sample = Sample("x", b"", ("a shoe .", "red " * 40, "a " * 28), fields={"title": "Red Shoe"})
    assert prompts_of(sample, encoder) == (["a shoe", ("a " * 28).strip(), "Red Shoe"], "a shoe. Red Shoe")


def test_a_small_denoiser_learns_colours(drawing_base, tmp_path):
    photos = [replace(sample, captions=sample.captions[:1]) for sample in samples(6)[::2]]  # a shoe of each colour
    phase = {"name": "a", "epochs": 60, "batch_size": 12, "lr": 1e-2, "ema": 0.9, "weight_decay": 0.0,
             "diffusion": {"size": 8, "long_texts": 0.0, "noise_mean": 1.0}}  # fmt: skip
    trainer(drawing_base, tmp_path, config(drawing_base, [phase], repeats={"set": 8}), photos).run()
    pipe = vlm.load_pipeline(tmp_path / "a")
    for channel, colour in enumerate(COLOURS):
        (picture,) = pipe(f"a {colour} shoe", num_inference_steps=10, guidance_scale=2.0, output_type="pt").images
        means = picture.mean((1, 2))
        assert means.argmax() == channel and means[channel] > 2 * means[[i for i in range(3) if i != channel]].max()


def test_kept_pictures_are_the_middle_of_the_photos(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 4:12] = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    found = [Sample("wide", buffer.getvalue()), *(Sample(f"k{i}", buffer.getvalue()) for i in range(200))]
    found[5] = Sample("bad", b"no picture")
    skipped = Skipped(len(found))
    with pytest.warns(UserWarning, match="'bad'"):
        kept = keep_pictures(tmp_path, found, 8, skipped)
    assert np.array_equal(kept[0], pixels[:, 4:12].transpose(2, 0, 1)) and not kept[5].any()
    assert skipped.keys == ["bad"]
    stamp = (tmp_path / "pictures.npy").stat().st_mtime_ns
    with pytest.warns(UserWarning, match="'bad'"):
        keep_pictures(tmp_path, found, 8, other := Skipped(len(found)))
    assert other.keys == ["bad"] and (tmp_path / "pictures.npy").stat().st_mtime_ns == stamp


def test_kept_texts_are_what_the_encoder_says(drawing, tmp_path):
    encoder, texts = drawing().text_encoder, ["", "a red shoe", "shirt", "a green shirt for women"]
    kept = keep_texts(tmp_path, texts, encoder)
    found, expected = kept.read([3, 0, 3], torch.device("cpu")), encoder.encode([texts[3], "", texts[3]])
    assert torch.equal(found.mask, expected.mask)
    torch.testing.assert_close(found.states, expected.states * expected.mask[..., None], atol=5e-3, rtol=1e-3)
    torch.testing.assert_close(found.pooled, expected.pooled, atol=1e-5, rtol=1e-5)
    assert len(keep_texts(tmp_path, texts[:2], encoder).pooled) == 2  # others are computed anew


def test_kept_features_are_whitened(drawing_base, tmp_path):
    bundle, photos = load_bundle(drawing_base), samples(6)
    rows = [0, 1, 2, 4]
    transform = replace(bundle.transform, size=64)
    kept = keep_features(tmp_path, photos, rows, bundle.module.tower, transform, torch.device("cpu"))
    assert kept.shape == (6, ALIGN_DIM, ALIGN_GRID, ALIGN_GRID) and not kept[3].any() and kept[4].any()
    spread = kept[rows].astype(np.float32).std((0, 2, 3))
    assert spread.max() == pytest.approx(1, abs=0.05)  # of the first components; what is constant stays at 0


def test_smaller_pictures_are_means():
    pixels = torch.tensor([[0, 255, 255, 255], [0, 255, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.uint8)
    found = prepare_pictures(pixels[None, None], 2)
    torch.testing.assert_close(found[0, 0], torch.tensor([[0.0, 0.0], [-1.0, -1.0]]))
    assert prepare_pictures(pixels[None, None], 4)[0, 0, 0].tolist() == [-1, 1, 1, 1]


def test_the_sheet_takes_turns():
    assert interleave([[1, 2, 3], [4], []], 3) == [1, 4, 2]
    assert interleave([], 3) == []


def test_photos_of_the_test_split_are_never_read():
    with pytest.warns(UserWarning, match="left out photos whose split is neither train nor val: 2 of 'test'"):
        kept, val = split_samples([*samples(3), *samples(2, split="test"), *samples(1, split="val")], 0, ["caption"])
    assert len(kept) == 3 and len(val) == 1


def test_the_configuration_that_ships_is_complete():
    run = read_config("tiny_diffusion")
    assert run.denoiser is not None and run.init == "tiny" and [phase.name for phase in run.phases]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"text_states": "words"}, "text_states='words' is unknown"),
        (
            {"phases": [{"name": "a", "diffusion": {"size": 10}}]},
            "size=10 is not a multiple of the denoiser's patch_size",
        ),
        ({"phases": [{"name": "a", "diffusion": {"align": 1.0, "align_layer": 3}}]}, "align_layer=3 of 2 layers"),
        ({"phases": [{"name": "a", "diffusion": {"no_text": 1.0}}]}, r"no_text=1\.0 is not a share"),
        (
            {"phases": [{"name": "a", "diffusion": {"no_text": 0.5, "photo_vectors": 0.5}}]},
            "leave no texts to learn from",
        ),
        ({"phases": [{"name": "a", "diffusion": {"noise_std": 0}}]}, "noise_std=0 must be above 0"),
        ({"phases": [{"name": "a", "mix": {"answer": 1.0}, "diffusion": {}}]}, "learns from captions alone"),
        ({"phases": [{"name": "a", "stage": 2, "diffusion": {}}]}, "trains the denoiser alone"),
        ({"phases": [{"name": "a", "diffusion": {}}, {"name": "b"}]}, "phases of the backbone and of a denoiser"),
        ({"phases": [{"name": "a"}]}, "denoiser is for phases with a diffusion objective"),
    ],
)
def test_impossible_configurations(drawing_base, changes, message):
    with pytest.raises(ValueError, match=message):
        config(drawing_base, **changes)


def test_mistakes_are_found_before_any_work(drawing_base, tmp_path, photos):
    phase = {**SHARED, "name": "a", "sources": {"caption": ["gone"]}, "diffusion": {"size": 8}}
    with pytest.raises(DataError, match="no photos of the source 'gone' for caption; there are: more, set"):
        trainer(drawing_base, tmp_path, config(drawing_base, [phase]), photos).run()
    with pytest.raises(ModelError, match="has no diffusion head"):
        trainer(drawing_base, tmp_path, config(drawing_base, denoiser=None), photos)
    with pytest.raises(ArgumentError, match="channels=4; training draws pixels"):
        trainer(drawing_base, tmp_path, config(drawing_base, denoiser={**SIZES, "channels": 4}), photos)
    with pytest.raises(ArgumentError, match="a denoiser reads the texts of a model; init='random' must name one"):
        build(config(drawing_base, init="random"), photos, tmp_path)
    with pytest.raises(DataError, match=r"no \.tar shards"):
        train(config(drawing_base), [str(tmp_path)], tmp_path / "out")
