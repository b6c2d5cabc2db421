"""Importable encoders: photos and sentences to vectors of one space, as ordinary `nn.Module`s.

`tiny`'s own pair, any open_clip pair and any timm image model answer to the same calls.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tokenizers
import torch
from PIL import Image
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from tqdm import tqdm

from vlm import hub
from vlm.errors import ArgumentError, ModelError, VLMError
from vlm.image import ImageSource, ImageTransform, load_image
from vlm.models.encoders import ContrastivePair
from vlm.models.towers import TimmTower, Tower
from vlm.threads import ordered_map

FOLDING_TOLERANCE = 1e-4  # on each number of a vector of unit length


class Encoders(nn.Module):
    """An image encoder, and a text encoder where the model has one.

    Attributes:
        name: what it was loaded by.
        dim: length of the vectors.
        image_transform: an RGB picture to `float32[3, height, width]`.
        logit_scale: logarithm of the factor on cosines that the pair was trained with; None without a text encoder.
    """

    logit_scale: Tensor | None

    def __init__(self, name: str, dim: int, image_transform: Callable[[Image.Image], Tensor]):
        super().__init__()
        self.name, self.dim, self.image_transform = name, dim, image_transform
        self._digest: str | None = None  # of the weights as loaded, once they have been changed for speed

    def image_vectors(self, pixels: Tensor) -> Tensor:
        """`float32[batch, 3, height, width]` to `[batch, dim]`, of any length."""
        raise AssertionError("each kind has its own")

    def text_vectors(self, ids: Tensor) -> Tensor:
        """`int64[batch, words]` from `tokenize` to `[batch, dim]`, of any length."""
        raise ArgumentError(f"{self.name!r} reads photos only; load a pair such as 'tiny' to encode text")

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Sentences to `int64[batch, words]`.

        Raises:
            ArgumentError: the model has no text encoder.
        """
        raise ArgumentError(f"{self.name!r} reads photos only; load a pair such as 'tiny' to encode text")

    def patch_embeddings(self, images: Tensor | Sequence[ImageSource]) -> Tensor:
        """The features that the backbone reads, `[batch, patches, channels]`."""
        raise AssertionError("each kind has its own")

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def weights_sha256(self) -> str:
        """Digest of the weights by name, type, shape and value, in hexadecimal: equal weights have an equal one.

        `for_inference` leaves it as it was, so that an index goes on knowing its model.
        """
        if self._digest is not None:
            return self._digest
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def pixels(self, images: Tensor | Sequence[ImageSource]) -> Tensor:
        """Photos in any form, or a batch that is already prepared, to `float32[batch, 3, height, width]`.

        Raises:
            ImageError: a photo cannot be used.
        """
        if not isinstance(images, Tensor):
            images = torch.stack([self.image_transform(load_image(image)) for image in images])
        like = next(self.parameters())
        # the order in memory that convolutions are fastest in, on CPUs as on GPUs
        return images.to(like.device, like.dtype, memory_format=torch.channels_last)

    def encode_image(self, images: Tensor | Sequence[ImageSource]) -> Tensor:
        """Photos to `[batch, dim]`, unit length.

        Args:
            images: `float32[batch, 3, height, width]` made by `image_transform`, or a list of paths, bytes, pictures.

        Raises:
            ImageError: a photo cannot be used.
        """
        return nn.functional.normalize(self.image_vectors(self.pixels(images)), dim=-1)

    def encode_text(self, texts: Tensor | Sequence[str]) -> Tensor:
        """Sentences, or what `tokenize` made of them, to `[batch, dim]`, unit length.

        Raises:
            ArgumentError: the model has no text encoder, or `texts` is one string.
        """
        if isinstance(texts, str):
            raise ArgumentError("encode_text takes a list of sentences; put the one you have into a list")
        ids = texts if isinstance(texts, Tensor) else self.tokenize(texts)
        return nn.functional.normalize(self.text_vectors(ids.to(self.device)), dim=-1)

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Image features, text features and the factor on their cosines, as open_clip's models return them."""
        scale = None if self.logit_scale is None else self.logit_scale.exp()
        return self.encode_image(images), self.encode_text(ids), scale

    @torch.no_grad()
    def for_inference(self) -> "Encoders":
        """Make the image encoder faster, in place: batch norms become part of the convolutions before them.

        Vectors stay the same but for rounding. The weights change their names and are no longer those to train or save.

        Raises:
            ModelError: the vectors change, as where the weights are no longer float32.
        """
        self.eval()
        digest, example = self.weights_sha256(), self.pixels([Image.radial_gradient("L")])
        before = self.encode_image(example)
        _fold_batch_norms(self, lambda: self.image_vectors(example))
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        change = (self.encode_image(example) - before).abs().max()
        if not change <= FOLDING_TOLERANCE:
            raise ModelError(
                f"{self.name!r} gives other vectors (by {change:.1e}) with its batch norms folded; "
                "load it again, and use it without for_inference or before its weights leave float32"
            )
        self._digest = digest
        return self

    @torch.inference_mode()
    def encode(
        self, inputs: Sequence[str] | Sequence[ImageSource], batch_size: int = 32, show_progress_bar: bool = False
    ) -> Tensor:
        """Many sentences or many photos to `float32[inputs, dim]` on the CPU; photos are decoded on threads.

        A `str` is a sentence; a photo on disk is given as a `pathlib.Path`.

        Raises:
            ImageError: a photo cannot be used.
            ArgumentError: `inputs` mixes both, or is not a list.
        """
        if isinstance(inputs, str):
            raise ArgumentError("encode takes a list; put the one sentence or photo that you have into a list")
        if not inputs:
            return torch.zeros(0, self.dim)
        kinds = {isinstance(item, str) for item in inputs}
        if len(kinds) > 1:
            raise ArgumentError("encode takes sentences (str) or photos (pathlib.Path, bytes), not both at once")
        bar = tqdm(total=len(inputs), disable=not show_progress_bar, unit="text" if True in kinds else "photo")
        found = []
        with bar:
            for part in self._batches(inputs, batch_size, True in kinds):
                features = self.encode_text(part) if True in kinds else self.encode_image(part)
                found.append(features.float().cpu())
                bar.update(len(part))
        return torch.cat(found)

    def _batches(self, inputs: Sequence[Any], size: int, text: bool) -> Iterator[Any]:
        if text:
            yield from (inputs[i : i + size] for i in range(0, len(inputs), size))
            return
        ready = ordered_map(lambda image: self.image_transform(load_image(image)), inputs, ahead=2 * size)
        part: list[Tensor] = []
        for pixels in ready:
            part.append(pixels)
            if len(part) == size:
                yield torch.stack(part)
                part = []
        if part:
            yield torch.stack(part)


class PairEncoders(Encoders):
    """The project's own pair: the tower that the backbone reads from, and a text tower."""

    def __init__(
        self,
        name: str,
        tower: Tower,
        pair: ContrastivePair,
        tokenizer: tokenizers.Tokenizer,
        image_transform: ImageTransform,
    ):
        super().__init__(name, pair.config.dim, image_transform)
        self.tower, self.pair, self.tokenizer = tower, pair, tokenizer

    @property
    def logit_scale(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.pair.logit_scale

    def image_vectors(self, pixels: Tensor) -> Tensor:
        return self.pair.image(self.tower(pixels).flatten(1, 2))

    def text_vectors(self, ids: Tensor) -> Tensor:
        return self.pair.text_proj(self.pair.text(ids))

    def patch_embeddings(self, images: Tensor | Sequence[ImageSource]) -> Tensor:
        return self.tower(self.pixels(images)).flatten(1, 2)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        longest = self.pair.config.text.max_positions
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        rows = [[*row[: longest - 1], row[-1]] if len(row) > longest else row for row in rows]  # the end token stays
        width = max(map(len, rows), default=0)
        return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long)


class OpenCLIPEncoders(Encoders):
    """A pair of the open_clip package."""

    def __init__(self, name: str, model: nn.Module, tokenizer: Callable[..., Tensor], image_transform):
        features = model.encode_text(tokenizer([""]))  # pyright: ignore[reportCallIssue]
        super().__init__(name, features.shape[-1], image_transform)
        self.model, self.tokenizer = model, tokenizer

    @property
    def logit_scale(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.model.logit_scale  # pyright: ignore[reportReturnType]

    def image_vectors(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)  # pyright: ignore[reportCallIssue]

    def text_vectors(self, ids: Tensor) -> Tensor:
        return self.model.encode_text(ids)  # pyright: ignore[reportCallIssue]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        return self.tokenizer(list(texts))

    def patch_embeddings(self, images: Tensor | Sequence[ImageSource]) -> Tensor:
        visual: Any = self.model.visual
        found = visual.forward_intermediates(
            self.pixels(images), indices=1, normalize_intermediates=True, intermediates_only=True
        )
        return found["image_intermediates"][-1].flatten(2).transpose(1, 2)  # from [batch, channels, height, width]


class TimmEncoders(Encoders):
    """An image encoder of the timm package, without a text encoder."""

    logit_scale = None

    def __init__(self, name: str, model: nn.Module, image_transform):
        super().__init__(name, int(model.num_features), image_transform)  # pyright: ignore[reportArgumentType]
        self.model = model

    def image_vectors(self, pixels: Tensor) -> Tensor:
        return self.model(pixels)

    def patch_embeddings(self, images: Tensor | Sequence[ImageSource]) -> Tensor:
        return TimmTower(self.model)(self.pixels(images)).flatten(1, 2)


def _fold_batch_norms(model: nn.Module, run: Callable[[], object]) -> None:
    """Fold each batch norm into the convolution whose output it reads, as seen while `run` uses both once."""
    made_by: dict[int, nn.Conv2d] = {}
    outputs: list[Tensor] = []
    pairs: list[tuple[nn.Conv2d, Any]] = []
    calls = Counter[nn.Module]()

    def after_convolution(module: nn.Module, args: tuple, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        made_by[id(output)] = module
        outputs.append(output)  # while it is kept, no other tensor has its id
        calls[module] += 1

    def before_norm(module: nn.Module, args: tuple) -> None:
        calls[module] += 1
        if id(args[0]) in made_by:
            pairs.append((made_by[id(args[0])], module))

    hooks = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_convolution))
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d):
            hooks.append(module.register_forward_pre_hook(before_norm))
    run()
    for hook in hooks:
        hook.remove()
    places = {module: name for name, module in model.named_modules()}
    for conv, norm in pairs:
        if calls[conv] > 1 or calls[norm] > 1 or norm.running_mean is None:
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        rest = nn.Identity()
        if isinstance(norm, BatchNormAct2d):
            rest = nn.Sequential(norm.drop, norm.act)  # pyright: ignore[reportArgumentType]
        model.set_submodule(places[norm], rest)


def load_encoders(name: str = "tiny", *, device: str | torch.device = "cpu") -> Encoders:
    """Load an encoder pair, in float32 and evaluation mode.

    Args:
        name: a bundled name (`tiny`) or a folder with a pair; `open_clip:ARCHITECTURE/TAG` or
            `open_clip:ARCHITECTURE/FILE`, where open_clip knows the architecture; `timm:MODEL` or `timm:MODEL/FILE` for
            photos alone. open_clip and timm fetch what a tag names from the network.
        device: where it runs.

    Raises:
        ModelError: there is no such model, or its files cannot be used.
        ArgumentError: the device cannot be used.
    """
    kind, _, rest = name.partition(":")
    if kind in ("open_clip", "timm"):
        try:
            encoders = _open_clip(name, rest) if kind == "open_clip" else _timm(name, rest)
        except VLMError:
            raise
        except Exception as error:  # both packages raise whatever their parts do
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ModelError(f"{name!r} cannot be loaded: {reason}") from None
    else:
        folder = hub.resolve(name)
        pair, tokenizer = hub.load_pair(folder)
        module, _, transform = hub.load_model(folder)
        encoders = PairEncoders(name, module.tower, pair, tokenizer, transform)
    try:
        return encoders.eval().to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(f"device {str(device)!r} cannot be used: {reason}; try cpu, cuda or mps") from None


def _open_clip(name: str, rest: str) -> Encoders:
    try:
        import open_clip
    except ImportError:
        raise ModelError(f'{name!r} needs open_clip; pip install "vlm-foundation[open-clip]"') from None
    architecture, _, weights = (rest, "", None) if ":" in rest else rest.partition("/")
    if weights == "":
        raise ModelError(f"{name!r} names no weights; give open_clip:ARCHITECTURE/TAG or open_clip:ARCHITECTURE/FILE")
    made: Any = open_clip.create_model_from_pretrained(architecture, pretrained=weights)
    model, transform = made
    return OpenCLIPEncoders(name, model, open_clip.get_tokenizer(architecture), transform)


def _timm(name: str, rest: str) -> Encoders:
    import timm
    from timm.data import create_transform, resolve_model_data_config  # pyright: ignore[reportPrivateImportUsage]

    architecture, _, file = rest.partition("/")
    overlay = {"file": file} if file else None
    model = timm.create_model(architecture, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
    config = resolve_model_data_config(model)
    return TimmEncoders(name, model, create_transform(**config, is_training=False))
