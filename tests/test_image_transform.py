"""`ImageTransform` against OFA's recorded values and torchvision, and the files that `expand_paths` finds."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from vlm.errors import ArgumentError, ImageError
from vlm.files.photos import expand_paths
from vlm.image import ImageTransform, load_image

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_ofa_golden_images(golden):
    cases = json.loads((golden / "data" / "data_golden.json").read_text(encoding="utf-8"))["image_transforms"]
    # the reference has all 18 of RGB, grey and RGBA; 480, 384 and 224 pixels; both normalisations
    assert {case["file"][4:8] for case in cases} == {"rgb_", "gray", "rgba"} and len(cases) in (4, 18)
    for case in cases:
        transform = ImageTransform(case["patch_image_size"], **(IMAGENET if case["imagenet_mean_std"] else {}))
        pixels = transform(load_image(golden / "data" / case["file"]))
        assert list(pixels.shape) == case["shape"] and pixels.dtype == torch.float32
        figures = [pixels.mean(), pixels.std(), pixels.min(), pixels.max(), *pixels.mean(dim=(1, 2))]
        expected = [case[name] for name in ("mean", "std", "min", "max")] + case["channel_mean"]
        torch.testing.assert_close(torch.stack(figures), torch.tensor(expected), atol=1e-5, rtol=0)
        sample = pixels.flatten()[case["sample_flat_index"]]
        # One 8-bit step, for other releases of Pillow; the recorded one agrees to 1e-6.
        torch.testing.assert_close(sample, torch.tensor(case["sample"]), atol=1 / 127, rtol=0)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("width, height", [(97, 61), (30, 200), (64, 64)])
def test_equals_torchvision(interpolation: Any, width: int, height: int):
    image = picture(width, height)
    reference = transforms.Compose(
        [
            transforms.Resize((64, 64), transforms.InterpolationMode(interpolation)),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET["mean"], IMAGENET["std"]),
        ]
    )
    ours = ImageTransform(64, **IMAGENET, interpolation=interpolation)(image)
    torch.testing.assert_close(ours, reference(image), atol=0, rtol=0)
    assert ours.is_contiguous() and image.size == (width, height)


def test_normalisation_by_hand():
    """At its own size nothing is resampled: 255 -> (1 - 0.5) / 0.25 = 2, 0 -> (0 - 0.4) / 0.5 = -0.8, 51 -> 0.2."""
    transform = ImageTransform(1, mean=(0.5, 0.4, 0.0), std=(0.25, 0.5, 1.0))
    pixels = transform(Image.new("RGB", (1, 1), (255, 0, 51)))
    torch.testing.assert_close(pixels.flatten(), torch.tensor([2.0, -0.8, 0.2]))
    torch.testing.assert_close(transform(Image.new("L", (3, 7), 255)).flatten(), torch.tensor([2.0, 1.2, 1.0]))


def test_survives_json():
    transform = ImageTransform(260, **IMAGENET, interpolation="bilinear")
    again = ImageTransform(**json.loads(json.dumps(dataclasses.asdict(transform))))
    assert again == transform and hash(again) == hash(transform)
    with pytest.raises(TypeError, match="crop"):
        ImageTransform(size=260, crop=0.9)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"size": 0}, "size=0 is not a positive whole number"),
        ({"size": 224.0}, "size=224.0 is not a positive whole number"),
        ({"mean": (0.5, 0.5)}, r"mean=\(0.5, 0.5\) is not three numbers"),
        ({"mean": 0.5}, "mean=0.5 is not three numbers"),
        ({"std": ["a", "b", "c"]}, "is not three numbers"),
        ({"std": (1.0, float("nan"), 1.0)}, "is not three numbers"),
        ({"std": (1.0, 0.0, 1.0)}, r"std=\(1.0, 0.0, 1.0\) divides the pixels"),
        ({"interpolation": "nearest"}, "interpolation='nearest' is unknown; choose bicubic, bilinear"),
    ],
)
def test_bad_settings_are_refused_when_built(changes, message):
    with pytest.raises(ArgumentError, match=message):
        ImageTransform(**{"size": 224, **changes})


@pytest.fixture
def album(tmp_path, monkeypatch):
    """A folder of photos and other things, as the current directory."""
    files = ["b.jpg", "a.PNG", "c.webp", "notes.txt", "._b.jpg", ".hidden.jpg", "noext", "odd[1].jpg"]
    for name in [*files, "trip/z.jpeg", "trip/deep/y.tif", "empty/readme.md"]:
        (tmp_path / "album" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "album" / name).touch()
    (tmp_path / "album" / "folder.jpg").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "patterns, expected",
    [
        (["album"], "album/a.PNG album/b.jpg album/c.webp album/odd[1].jpg"),
        (["album/"], "album/a.PNG album/b.jpg album/c.webp album/odd[1].jpg"),
        (["album/*.jpg"], "album/b.jpg album/odd[1].jpg"),
        (["album/[a-b].*"], "album/a.PNG album/b.jpg"),
        (["album/trip/**"], "album/trip/deep/y.tif album/trip/z.jpeg"),
        (["album/t*"], "album/trip/z.jpeg"),  # a folder that matches stands for its images
        (["**/*.t*"], "album/trip/deep/y.tif"),  # notes.txt is no picture
        (["album/odd[1].jpg"], "album/odd[1].jpg"),  # a file of that name comes before the pattern
        (["album/c.webp", "album"], "album/c.webp album/a.PNG album/b.jpg album/odd[1].jpg"),
        (["album/b.jpg", "./album/b.jpg", "album/trip/../b.jpg", "album/b*"], "album/b.jpg"),
        (["missing.jpg", "album/notes.txt", "album/noext"], "missing.jpg album/notes.txt album/noext"),
        (["https://example.com/cat.jpg?w=9"], "https:/example.com/cat.jpg?w=9"),
        (["no\0name.jpg"], "no\0name.jpg"),
        ([], ""),
    ],
)
def test_expand_paths(album, patterns, expected):
    assert expand_paths(patterns) == [Path(path) for path in expected.split()]


def test_expand_paths_keeps_links_and_finds_the_home_folder(album, monkeypatch):
    (album / "album" / "link.jpg").symlink_to("b.jpg")
    monkeypatch.setenv("HOME", str(album))
    expected = [album / "album" / name for name in ("b.jpg", "link.jpg")]
    assert expand_paths(["~/album/b.jpg", "~/album/l*.jpg"]) == expected


@pytest.mark.parametrize(
    "pattern, message",
    [
        (
            "album/empty",
            r"^the folder 'album/empty' contains no images; give 'album/empty/\*\*' to include its subfolders$",
        ),
        ("album/*.gif", r"^no image matches 'album/\*.gif'; check the pattern and the folder it starts from$"),
        ("album/*.txt", r"^no image matches 'album/\*.txt'"),
        ("nowhere/**", r"^no image matches 'nowhere/\*\*'"),
        ("new\nline*\0", r"^no image matches 'new\\nline\*\\x00'"),
        ("", "^an image path is empty; name a file, a folder or a glob$"),
    ],
)
def test_expand_paths_refuses_what_names_no_image(album, pattern, message):
    with pytest.raises(ImageError, match=message):
        expand_paths([pattern])
    if pattern:  # beside other photos, this one alone is lost
        assert list(map(str, expand_paths(["album/b.jpg", pattern]))) == ["album/b.jpg", pattern]


def test_a_missing_path_is_left_to_its_own_error(album):
    (path,) = expand_paths(["missing.jpg"])
    with pytest.raises(ImageError, match=r"^'missing.jpg' does not exist; check the path$"):
        load_image(path)
