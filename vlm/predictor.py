"""What all tasks of a model share: photos encoded once, answers searched or scored, many photos streamed through."""

# the types that torch gives some of its results are unknown
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor

from vlm.data.stream import stream_batches
from vlm.decoding.answer import Answer
from vlm.decoding.config import GenerationConfig
from vlm.decoding.search import generate
from vlm.decoding.trie import Trie, score_candidates
from vlm.encoders.pair import PairEncoders
from vlm.errors import ArgumentError, ImageError
from vlm.files.bundle import Bundle
from vlm.image import MAX_PIXELS, ImageSource, check_photos, load_image
from vlm.models.config import BOS, EOS, PAD
from vlm.models.seq2seq import Encoded

Result = TypeVar("Result")
Prefix = Literal["none", "source", "source_and_end", "source_only"]

CANDIDATES_AT_ONCE = 64  # given answers that are scored together, over all photos of a batch


@dataclass(frozen=True)
class Photo:
    """A photo that was encoded once, to be asked about as often as wanted.

    Attributes:
        patches: what the tower makes of it, `[height, width, patch_dim]`.
        size: width and height in pixels.
    """

    patches: Tensor
    size: tuple[int, int]


class Predictor:
    """The networks with their tokenizer and image transform.

    Attributes:
        module: the networks, an ordinary `nn.Module`.
        tokenizer: text to ids.
        transform: a photo to what the tower reads.
        name: what the model was loaded by, for errors.
        encoders: the contrastive pair on the same tower, if the model has one.
    """

    def __init__(self, bundle: Bundle, encoders: PairEncoders | None = None):
        self.module, self.tokenizer, self.transform = bundle.module, bundle.tokenizer, bundle.transform
        self.name, self.encoders = bundle.name, encoders

    @property
    def device(self) -> torch.device:
        return self.module.backbone.embed.weight.device

    # Photos

    @torch.no_grad()  # not inference_mode: a head may be trained on the features
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Patch features of prepared photos.

        Args:
            pixels: `float32[batch, 3, size, size]`, made by `transform`.

        Returns:
            `float32[batch, height, width, patch_dim]`.
        """
        like = self.module.backbone.embed.weight
        return self.module.tower(pixels.to(like.device, like.dtype, memory_format=torch.channels_last))

    def encode(self, images: Sequence["ImageSource | Photo"], *, max_pixels: int = MAX_PIXELS) -> list[Photo]:
        """Encode photos together, the same object once; those that are a `Photo` already stay as they are.

        Raises:
            ImageError: a photo cannot be used.
            ArgumentError: `images` is one photo.
        """
        check_photos(images)
        distinct = {id(image): image for image in images}
        photos = self._encode_prepared([self._prepare(image, max_pixels) for image in distinct.values()])
        encoded = dict(zip(distinct, photos, strict=True))
        return [encoded[id(image)] for image in images]

    def stream(
        self,
        images: Sequence["ImageSource | Photo"],
        ask: Callable[[list[Photo], list[int]], Iterable[Result]],
        *,
        batch_size: int = 16,
        max_pixels: int = MAX_PIXELS,
    ) -> Iterator[Result | ImageError]:
        """Ask about many photos; one that cannot be used is lost alone.

        Photos are decoded on threads while the networks read the batch before.

        Args:
            images: paths, bytes, file objects, PIL images, arrays or tensors, of any sizes.
            ask: encoded photos, with the place of each among all `images`, to one result each.
            batch_size: photos that go through the networks together; it does not change the results.
            max_pixels: larger photos are refused.

        Yields:
            For each photo, in order, its result, or what is wrong with the photo.
        """
        check_photos(images)
        yield from stream_batches(
            images,
            lambda image: self._prepare(image, max_pixels),
            lambda prepared, places: ask(self._encode_prepared(prepared), places),
            batch_size,
        )

    def _prepare(self, image: "ImageSource | Photo", max_pixels: int) -> Photo | tuple[Tensor, tuple[int, int]]:
        if isinstance(image, Photo):
            return image
        picture = load_image(image, max_pixels=max_pixels)
        return self.transform(picture), picture.size

    def _encode_prepared(self, prepared: Sequence[Photo | tuple[Tensor, tuple[int, int]]]) -> list[Photo]:
        new = [item for item in prepared if not isinstance(item, Photo)]
        grids = iter(self.encode_images(torch.stack([pixels for pixels, _ in new])) if new else ())
        return [item if isinstance(item, Photo) else Photo(next(grids), item[1]) for item in prepared]

    # Answers

    @torch.inference_mode()
    def generate(
        self,
        sources: Sequence[Sequence[int]],
        patches: Sequence[Tensor] | None,
        config: GenerationConfig,
        *,
        prefix: Prefix = "none",
        choices: Sequence[str] | None = None,
        codes: bool = False,
        seed: int | Sequence[int] | None = None,
    ) -> list[list[Answer]]:
        """Search answers to instructions.

        Args:
            sources: ids of each instruction, without start and end token.
            patches: what each instruction is about, `[height, width, patch_dim]`; None: text alone.
            config: how to search. Lengths are those of answers, without the prefix.
            prefix: what the decoder is given before it answers, see `decoder_prefix`.
            choices: the only answers that may be given, each once; None: any text.
            codes: generate image codes instead of text.
            seed: of the random numbers, where `config.sample` is set; or one for each instruction, see `stream_seed`.

        Returns:
            For each instruction its answers, the best first.

        Raises:
            ArgumentError: options that exclude each other, or an instruction that is too long.
        """
        if prefix == "source_and_end":
            raise ArgumentError(
                "prefix='source_and_end' ends with the end token, after which nothing is generated; score given "
                "answers instead, or give another prefix"
            )
        texts: dict[tuple[int, ...], str] = {}
        if choices is not None:
            texts = dict(zip(map(tuple, self.answer_ids(choices)), choices, strict=True))
            config = replace(config, max_tokens=max(map(len, texts)), max_tokens_per_source=0.0)
            if config.mask_after_softmax and prefix != "none":
                raise ArgumentError(
                    f"mask_after_softmax and prefix={prefix!r} exclude each other; leave one of them out"
                )
        streams = None if seed is None else random_streams(seed, len(sources))
        patches = self._as_weights(patches)
        # An answer may be `max_tokens` long whatever stands before it, so prefixes of one length go together. Given
        # answers end by themselves.
        groups: dict[int, list[int]] = {}
        for row, ids in enumerate(sources):
            groups.setdefault(0 if texts or prefix == "none" else len(ids), []).append(row)
        found: dict[int, list[Answer]] = {}
        for rows in groups.values():
            asked = [sources[row] for row in rows]
            about = None if patches is None else [patches[row] for row in rows]
            own = None if streams is None else [streams[row] for row in rows]
            found.update(zip(rows, self._search(asked, about, config, texts, prefix, codes, own), strict=True))
        return [found[row] for row in range(len(sources))]

    def _search(
        self,
        sources: Sequence[Sequence[int]],
        patches: Sequence[Tensor] | None,
        config: GenerationConfig,
        texts: Mapping[tuple[int, ...], str],
        prefix: Prefix,
        codes: bool,
        streams: Sequence[torch.Generator] | None,
    ) -> list[list[Answer]]:
        """As `generate`, for one batch; `texts` are the answers that may be given, by their ids, if only some may."""
        encoded, prefixes = self.read(sources, patches, prefix)
        width = prefixes.shape[1]
        results = generate(
            self.module.backbone,
            encoded,
            replace(config, max_tokens=config.max_tokens + width, min_tokens=0 if texts else config.min_tokens + width),
            source_words=max(map(len, sources)) + 2,
            trie=Trie(texts) if texts else None,
            prefix_ids=prefixes if width else None,
            codes=codes,
            streams=streams,
        )
        found: list[list[Answer]] = []
        for length, hypotheses in zip((prefixes != PAD).sum(1).tolist(), results, strict=True):
            if not hypotheses:
                raise ArgumentError("these options allow no answer; loosen allowed, no_repeat_ngram or min_tokens")
            found.append([])
            for hypothesis in hypotheses:
                ids, scores, score = hypothesis.ids[length:], hypothesis.token_scores[length:], hypothesis.score
                if length:
                    score = sum(scores) / (len(scores) ** config.length_penalty if config.normalize else 1)
                found[-1].append(Answer(texts.get(ids) or self.tokenizer.decode(ids).strip(), score, ids))
        return found

    @torch.inference_mode()
    def score(
        self,
        sources: Sequence[Sequence[int]],
        patches: Sequence[Tensor] | None,
        choices: Sequence[str],
        *,
        prefix: Prefix = "none",
    ) -> list[list[Answer]]:
        """Score all choices as answers to each instruction; arguments and errors as in `generate`.

        Returns:
            For each instruction all choices, the likeliest first; their probabilities sum to 1.
        """
        if not sources:
            return []
        encoded, prefixes = self.read(sources, self._as_weights(patches), prefix)
        scores = score_candidates(
            self.module.backbone,
            encoded,
            Trie(self.answer_ids(choices)),
            prefix_ids=prefixes,
            chunk=max(1, CANDIDATES_AT_ONCE // len(sources)),
        )
        ordered, order = scores.sort(dim=1, descending=True, stable=True)
        texts = list(choices)
        return [
            [Answer(texts[place], score) for place, score in zip(places, values, strict=True)]
            for places, values in zip(order.tolist(), ordered.tolist(), strict=True)
        ]

    def _as_weights(self, patches: Sequence[Tensor] | None) -> list[Tensor] | None:
        """Patches on the device and in the type of the weights, which may have changed after photos were encoded."""
        like = self.module.backbone.embed.weight
        return None if patches is None else [grid.to(like.device, like.dtype) for grid in patches]

    def read(
        self, sources: Sequence[Sequence[int]], patches: Sequence[Tensor] | None, prefix: Prefix
    ) -> tuple[Encoded, Tensor]:
        """Encode instructions, each with its patches.

        Returns:
            What the decoder attends to, and the prefixes of the answers without start token, `int64[batch, tokens]`.

        Raises:
            ArgumentError: an instruction is too long.
        """
        rows = [encoder_ids(ids, prefix) for ids in sources]
        longest, limit = max(map(len, rows)), self.module.backbone.config.max_source_positions
        if longest > limit:
            raise ArgumentError(f"a text takes {longest} tokens, {self.name!r} reads {limit}; shorten it")
        # what the encoder reads of a photo is often the same for all instructions, and is then read once
        keys = [(tuple(ids), None if patches is None else id(patches[row])) for row, ids in enumerate(rows)]
        first = {key: keys.index(key) for key in dict.fromkeys(keys)}
        distinct, place = list(first.values()), {key: number for number, key in enumerate(first)}
        encoded = self.module.backbone.encode(
            pad([rows[row] for row in distinct]).to(self.device),
            None if patches is None else torch.stack([patches[row] for row in distinct]),
        )
        if len(distinct) < len(rows):
            encoded = encoded.select(torch.tensor([place[key] for key in keys], device=self.device))
        return encoded, pad([decoder_prefix(ids, prefix)[1:] for ids in sources])

    def answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """Answers as the decoder generates them, after a blank."""
        return self.tokenizer.encode_batch([f" {answer}" for answer in answers])


def stream_seed(seed: int, place: int) -> int:
    """The seed of the random numbers of one place in a list of inputs, whatever else the list holds.

    Raises:
        ArgumentError: `seed` is not a whole number.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(f"seed={seed!r} is not a whole number; give one")
    return random.Random(f"{seed}/{place}").getrandbits(63)


def random_streams(seed: int | Sequence[int], count: int) -> list[torch.Generator]:
    """Random numbers of their own for each of `count` inputs; `seed` as in `Predictor.generate`."""
    seeds = seed if isinstance(seed, list | tuple) else [stream_seed(seed, place) for place in range(count)]  # pyright: ignore
    return [torch.Generator().manual_seed(number) for number in seeds]


def encoder_ids(source: Sequence[int], prefix: Prefix = "none") -> list[int]:
    """An instruction as the encoder reads it, between start and end token; `prefix` as in `decoder_prefix`."""
    return [BOS, EOS] if prefix == "source_only" else [BOS, *source, EOS]


def decoder_prefix(source: Sequence[int], prefix: Prefix) -> list[int]:
    """What the decoder is given before it answers, start token first.

    Args:
        source: ids of the instruction.
        prefix: nothing; the instruction again (OFA's VQA and SNLI-VE models); that with its end token; or the
            instruction, of which the encoder then reads nothing (`source_only`), so that a photo is encoded once for
            all instructions.
    """
    if prefix == "none":
        return [BOS]
    return [BOS, *source, EOS] if prefix == "source_and_end" else [BOS, *source]


def pad(rows: Sequence[Sequence[int]], value: int = PAD) -> Tensor:
    """Ragged rows to `int64[rows, longest]`, padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.long)
