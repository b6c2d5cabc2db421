"""How fast photos become vectors: against open_clip's own call, and from JPEG files to an index.

* `encode_image` against open_clip's for one model: a timm tower in open_clip's wrapper, with the same weights on both
  sides, at several batch sizes, in float32 and bfloat16. Our sides: as loaded; after `for_inference`; with `--compile`
  also compiled; and the same tower under the bundled model's larger head, which open_clip does not have. The first
  three must give open_clip's vectors to 1e-4 in float32; the status is 1 where they do not.
* Indexing JPEGs, from listing the folder to the last commit, against the bare encoder on tensors that are ready.

Sides run in turns, so that other work on the machine slows all of them. With `--threads 1 --processor`, times are those
of the processor, which a busy machine disturbs least.
"""

import argparse
import copy
import io
import json
import random
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from vlm.encoders import Encoders, PairEncoders
from vlm.encoders.base import FOLDING_TOLERANCE
from vlm.encoders.open_clip import OpenCLIPEncoders
from vlm.image import ImageTransform, load_image
from vlm.models.config import PairConfig, TextConfig, TowerConfig
from vlm.models.pair import ContrastivePair
from vlm.models.towers import build_tower
from vlm.search.build import build

SAMPLE = Path(__file__).parents[1] / "datasets" / "sample"
GOAL, INDEX_GOAL = 1.0, 0.8
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}  # it is not measured


def seconds(
    sides: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Times of each side, run in turns after a first run that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(repeats + 1):
        for name, call in sides.items():
            start = clock()
            call()
            if number:
                times[name].append(clock() - start)
    return times


def open_clip_model(tower: str, size: int) -> Any:
    """open_clip's CustomTextCLIP around a timm tower with random weights, and batch norms that fit them."""
    vision = {"timm_model_name": tower, "timm_pool": "avg", "timm_proj": "none", "image_size": size}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "benchmark.json"
        dim = build_tower(TowerConfig(tower)).dim
        config = {"embed_dim": dim, "vision_cfg": vision, "text_cfg": TEXT, "custom_text": True}
        file.write_text(json.dumps(config))
        open_clip.add_model_config(file)
        torch.manual_seed(0)
        model = open_clip.create_model("benchmark")
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():  # at each layer values of a trained network's size, so that none is subnormal
        for norm in norms:
            norm.momentum = None  # take the statistics as they are
        model.train()(torch.randn(4, 3, size, size), torch.ones(4, 16, dtype=torch.long))
    return model.eval()


def pair_of(model: Any, tower: str, transform: ImageTransform) -> Encoders:
    """The same tower with the weights of `model` under the head of the bundled model, at random."""
    ours = build_tower(TowerConfig(tower))
    weights = model.visual.trunk.state_dict().values()
    ours.load_state_dict(dict(zip(ours.state_dict(), weights, strict=True)))
    text = TextConfig(vocab_size=8, dim=16, layers=1, heads=1, ffn_dim=16, max_positions=8)
    pair = ContrastivePair(PairConfig(patch_dim=ours.dim, text=text))
    return PairEncoders("pair", ours, pair, None, transform).eval()  # pyright: ignore[reportArgumentType]


def encode(model: Any, transform: ImageTransform, args: argparse.Namespace, clock: Callable[[], float]) -> bool:
    """Print the speed of each side; whether the vectors are open_clip's."""
    tokenizer: Any = open_clip.get_tokenizer("benchmark")

    def ours() -> Encoders:
        return OpenCLIPEncoders("benchmark", copy.deepcopy(model), tokenizer, transform).eval()

    encoders = {"as loaded": ours(), "for_inference": ours().for_inference()}
    if args.compile:
        encoders["compiled"] = ours().for_inference()
        encoders["compiled"].image_vectors = torch.compile(encoders["compiled"].image_vectors)
    same = list(encoders)
    encoders["for_inference, larger head"] = pair_of(model, args.tower, transform).for_inference()
    with torch.inference_mode():
        pixels = torch.randn(2, 3, args.size, args.size)
        expected = model.encode_image(pixels, normalize=True)
        for name in same:
            difference = (encoders[name].encode_image(pixels) - expected).abs().max().item()
            print(f"{name}: largest difference to open_clip's vectors {difference:.1e}")
            if difference > FOLDING_TOLERANCE:
                return False
        for dtype in map(lambda name: getattr(torch, name), args.dtype):
            model.to(dtype)
            for each in encoders.values():
                each.to(dtype)
            for batch in args.batch:
                images = torch.randn(batch, 3, args.size, args.size, dtype=dtype)
                sides: dict[str, Callable[[], Tensor]] = {
                    "open_clip": lambda images=images: model.encode_image(images, normalize=True)
                }
                for name, each in encoders.items():
                    sides[name] = lambda images=images, each=each: each.encode_image(images)
                times = seconds(sides, args.repeats, clock)
                for name in encoders:
                    ratio = statistics.median(a / b for a, b in zip(times["open_clip"], times[name], strict=True))
                    print(
                        f"{str(dtype).removeprefix('torch.'):<8} batch {batch:>2}  {name:<26} "
                        f"{batch / statistics.median(times[name]):6.1f} photos/s, open_clip "
                        f"{batch / statistics.median(times['open_clip']):6.1f}, ratio {ratio:.2f} "
                        f"(goal: at least {GOAL:.1f})",
                        flush=True,
                    )
    model.float()
    return True


def photos(data: Path | None, count: int, folder: Path) -> list[Path]:
    """Write `count` JPEGs of 500 pixels on the longer side: crops of the photos in shards, or of the samples."""
    sources: list[bytes] = []
    for shard in sorted(data.glob("*.tar")) if data else []:
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.name.endswith(".jpg") else None
                if file is not None and len(sources) < count:
                    sources.append(file.read())
    sources = sources or [path.read_bytes() for path in sorted(SAMPLE.glob("*.jpg"))]
    rng = random.Random(0)
    paths = [folder / f"{number:05}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        image = load_image(io.BytesIO(sources[number % len(sources)]))
        image = ImageOps.crop(image, rng.randrange(1 + min(image.size) // 10))  # pyright: ignore[reportArgumentType]
        ImageOps.contain(image, (500, 500), Image.Resampling.BICUBIC).save(path, quality=85)
    return paths


def index(encoders: Encoders, args: argparse.Namespace, clock: Callable[[], float]) -> None:
    """Print the speed of indexing files as a share of the bare encoder's on tensors."""
    ratios, bare_speed, whole_speed = [], [], []
    per_round = max(args.batch_size, args.photos // args.rounds)
    with tempfile.TemporaryDirectory() as place, torch.inference_mode():
        root = Path(place)
        for number in range(args.rounds + 1):
            folder = root / f"photos{number}"
            folder.mkdir()
            paths = photos(args.data, per_round, folder)
            batches = [
                torch.stack([encoders.image_transform(load_image(path)) for path in paths[i : i + args.batch_size]])
                for i in range(0, len(paths), args.batch_size)
            ]

            def bare(batches: Sequence[Tensor] = batches) -> None:
                for batch in batches:
                    encoders.encode_image(batch)

            def whole(folder: Path = folder, out: Path = root / f"index{number}") -> None:
                report = build(folder, out, encoders, batch_size=args.batch_size)
                assert report.new == per_round

            times = []
            for call in (bare, whole) if number % 2 else (whole, bare):
                start = clock()
                call()
                times.append(clock() - start)
            alone, indexed = times if number % 2 else times[::-1]
            if number:  # the first round pays for what is set up once
                ratios.append(alone / indexed)
                bare_speed.append(per_round / alone)
                whole_speed.append(per_round / indexed)
    print(
        f"index    {args.rounds} times {per_round} JPEGs: {statistics.median(whole_speed):.1f} photos/s, bare encoder "
        f"{statistics.median(bare_speed):.1f}, ratio {statistics.median(ratios):.2f}, from {min(ratios):.2f} to "
        f"{max(ratios):.2f} (goal: at least {INDEX_GOAL:.1f})"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", default="tf_efficientnet_lite2", help="timm model")
    parser.add_argument("--size", type=int, default=260, help="side of the square that it reads")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 16, 64], help="batch sizes; none: index only")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side, of which the median counts")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile, too; it needs a C++ compiler")
    parser.add_argument("--photos", type=int, default=2000, help="JPEGs to index; 0: do not")
    parser.add_argument(
        "--rounds", type=int, default=5, help="parts that they are indexed in, in turns with the bare encoder"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="photos that an index encodes together")
    parser.add_argument("--data", type=Path, help="folder of shards whose photos are indexed; without it, the samples")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument(
        "--processor", action="store_true", help="time of the processor; only with --threads 1 is it a speed"
    )
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = time.process_time if args.processor else time.perf_counter
    print(f"{args.tower}, {args.size} pixels, {torch.get_num_threads()} threads, torch {torch.__version__}")
    transform, model = ImageTransform(args.size), open_clip_model(args.tower, args.size)
    if args.batch and not encode(model, transform, args, clock):
        return 1
    if args.photos:
        index(pair_of(model, args.tower, transform).for_inference(), args, clock)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
