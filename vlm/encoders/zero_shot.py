"""Labels for photos, of any list: a pair of encoders compares each photo with sentences about the labels."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vlm.data.stream import stream_batches
from vlm.decoding.answer import Answer
from vlm.encoders.base import Encoders
from vlm.errors import ArgumentError, ImageError, check_list
from vlm.image import MAX_PIXELS, ImageSource, check_photos, load_image

TEMPLATES = ("a photo of a {}.",)  # sentences that labels are put into
SENTENCES = 256  # that are encoded at once
MANY = 1000  # sentences from which a progress bar is worth its line


@torch.no_grad()
def label_features(
    encode_text: Callable[[list[str]], Any],
    labels: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
    show_progress_bar: bool = False,
) -> Tensor:
    """Directions of labels: of each, the mean of its sentences' (CLIP, Radford et al., 2021, section 3.1.4).

    Args:
        encode_text: sentences to vectors of unit length, a tensor or an array, `[sentences, dim]`.
        labels: names.
        templates: sentences with `{}` where a label belongs.
        show_progress_bar: on stderr, where there are many sentences.

    Returns:
        `float32[labels, dim]`, unit length, on the CPU.

    Raises:
        ArgumentError: a template has no place for a label, or there is none.
    """
    check_list("templates", templates)
    check_list("labels", labels)
    if not labels:
        raise ArgumentError("there are no labels; name some")
    if not templates:
        raise ArgumentError(f"there are no templates; give sentences such as {TEMPLATES[0]!r}")
    if wrong := [template for template in templates if "{}" not in template]:
        raise ArgumentError(f"template {wrong[0]!r} has no place for a label; write {{}} there: {TEMPLATES[0]!r}")
    sentences = [template.replace("{}", label) for label in labels for template in templates]
    order = sorted(range(len(sentences)), key=lambda row: len(sentences[row]))  # less padding
    features = torch.empty(0)
    bar = tqdm(total=len(order), unit="sentence", disable=not show_progress_bar or len(order) <= MANY)
    with bar:
        for first in range(0, len(order), SENTENCES):
            rows = order[first : first + SENTENCES]
            part = torch.as_tensor(encode_text([sentences[row] for row in rows])).float().cpu()
            if not first:
                features = torch.empty(len(order), part.shape[1], dtype=part.dtype)
            features[rows] = part
            bar.update(len(rows))
    return nn.functional.normalize(features.unflatten(0, (len(labels), len(templates))).mean(1), dim=-1)


def warn_of_alike(name: str, kind: str, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> None:
    """Warn of texts that a model cannot tell apart, since they are the same tokens to it.

    Args:
        name: of the model.
        kind: what the texts are, in the plural.
        texts: as the user wrote them.
        ids: their tokens.
    """
    groups: dict[tuple[int, ...], list[str]] = {}
    for text, row in zip(texts, ids, strict=True):
        groups.setdefault(tuple(row), []).append(text)
    if alike := [group for group in groups.values() if len(group) > 1]:
        warnings.warn(
            f"{name!r} cannot tell {sum(map(len, alike))} of the {len(texts)} {kind} apart, such as "
            f"{alike[0][0][:40]!r} and {alike[0][1][:40]!r}: they are the same tokens to it, so that their scores are "
            "equal; write them in another script or language, or in other words",
            stacklevel=3,
        )


def classify_each(
    encoders: Encoders,
    images: Sequence[ImageSource],
    labels: Sequence[str],
    *,
    templates: Sequence[str] = TEMPLATES,
    batch_size: int = 16,
    max_pixels: int = MAX_PIXELS,
    show_progress_bar: bool = False,
) -> Iterator[list[Answer] | ImageError]:
    """Give many photos one of the labels each; a photo that cannot be used is lost alone.

    Args:
        encoders: with a text encoder.
        images: paths, bytes, file objects, PIL images, arrays or tensors, of any sizes.
        labels: names to choose from, each once.
        templates: sentences that labels are put into.
        batch_size: photos that go through the network together.
        max_pixels: larger photos are refused.
        show_progress_bar: on stderr, while many labels are encoded.

    Returns:
        For each photo, in order, all labels with their log-probabilities, the likeliest first, or what is wrong
        with the photo.

    Raises:
        ArgumentError: `templates` is empty, a template has no place for a label, or the encoders read no text.
    """
    names = list(labels)
    with torch.inference_mode():
        directions = label_features(encoders.encode_text, names, templates, show_progress_bar)
        warn_of_alike(encoders.name, "labels", names, encoders.tokenize(names).tolist())
        assert encoders.logit_scale is not None  # it has encoded text
        scale = encoders.logit_scale.exp().cpu()

    def compare(pixels: Tensor) -> Tensor:
        return (scale * (encoders.encode_image(pixels).float().cpu() @ directions.T)).log_softmax(-1)

    return stream_labels(encoders, images, names, compare, batch_size, max_pixels)


def stream_labels(
    encoders: Encoders,
    images: Sequence[ImageSource],
    names: Sequence[str],
    weigh: Callable[[Tensor], Tensor],
    batch_size: int,
    max_pixels: int,
) -> Iterator[list[Answer] | ImageError]:
    """All labels of each photo, the likeliest first; arguments and results as in `classify_each`.

    Args:
        encoders: whose transform prepares the photos.
        images: the photos.
        names: the labels.
        weigh: prepared photos to log-probabilities, `float32[batch, labels]`.
        batch_size: photos that go through the network together.
        max_pixels: larger photos are refused.
    """
    check_photos(images)
    texts = list(names)

    @torch.inference_mode()
    def compare(pixels: list[Tensor], places: list[int]) -> list[list[Answer]]:
        ordered, order = weigh(torch.stack(pixels)).sort(dim=1, descending=True, stable=True)
        return [
            [Answer(texts[place], score) for place, score in zip(places, scores, strict=True)]
            for places, scores in zip(order.tolist(), ordered.tolist(), strict=True)
        ]

    def prepare(image: ImageSource) -> Tensor:
        return encoders.image_transform(load_image(image, max_pixels=max_pixels))

    return stream_batches(images, prepare, compare, batch_size)
