"""Labels for photos, of any list: a pair of encoders compares them, another model weighs them as answers."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlm import hub, prompt
from vlm.asking import Answer, each_photo
from vlm.encoders import Encoders, load_encoders
from vlm.errors import ArgumentError, ImageError
from vlm.image import MAX_PIXELS, ImageSource, load_image
from vlm.model import Model, load

TEMPLATES = ("a photo of a {}.",)  # sentences that labels are put into
SENTENCES = 256  # that are encoded at once


def label_features(
    encode_text: Callable[[list[str]], Any], labels: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Tensor:
    """Directions of labels: of each, the mean of its sentences' (CLIP, Radford et al., 2021, section 3.1.4).

    Args:
        encode_text: sentences to vectors of unit length, a tensor or an array, `[sentences, dim]`.
        labels: names.
        templates: sentences with `{}` where a label belongs.

    Returns:
        `float32[labels, dim]`, unit length, on the CPU.

    Raises:
        ArgumentError: a template has no place for a label, or there is none.
    """
    if not templates:
        raise ArgumentError(f"there are no templates; give sentences such as {TEMPLATES[0]!r}")
    if wrong := [template for template in templates if "{}" not in template]:
        raise ArgumentError(f"template {wrong[0]!r} has no place for a label; write {{}} there: {TEMPLATES[0]!r}")
    sentences = [template.replace("{}", label) for label in labels for template in templates]
    parts = [encode_text(sentences[first : first + SENTENCES]) for first in range(0, len(sentences), SENTENCES)]
    features = torch.cat([torch.as_tensor(part).float().cpu() for part in parts])
    return nn.functional.normalize(features.unflatten(0, (len(labels), len(templates))).mean(1), dim=-1)


def classify_each(
    model: Encoders | Model,
    images: Sequence[ImageSource],
    labels: Sequence[str],
    *,
    templates: Sequence[str] | None = None,
    batch_size: int = 16,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[list[Answer] | ImageError]:
    """Give many photos one of the labels each; a photo that cannot be used is lost alone.

    Args:
        model: from `load_classifier`.
        images: paths, bytes, file objects, PIL images, arrays or tensors, of any sizes.
        labels: names to choose from.
        templates: of a pair of encoders, sentences that labels are put into; None: `TEMPLATES`.
        batch_size: photos that go through the networks together.
        max_pixels: larger photos are refused.

    Returns:
        For each photo, in order, all labels with their log-probabilities, the likeliest first, or what is wrong
        with it.

    Raises:
        ArgumentError: there are no labels, `templates` has no meaning or no place for a label, or the model has no text
            encoder or was not trained for it.
    """
    names = prompt.distinct("label", labels)
    if isinstance(model, Model):
        if templates is not None:
            raise ArgumentError(
                f"{model.name!r} weighs labels as answers and puts them into no sentences; omit templates"
            )
        model.settings("classify")
        return model.ask_each(
            images, lambda photos: model.classes(photos, names), batch_size=batch_size, max_pixels=max_pixels
        )
    encoders = model
    with torch.inference_mode():
        directions = label_features(encoders.encode_text, names, TEMPLATES if templates is None else templates)
        assert encoders.logit_scale is not None  # it has encoded text
        scale = encoders.logit_scale.exp().cpu()

    @torch.inference_mode()
    def compare(pixels: list[Tensor]) -> list[list[Answer]]:
        cosines = encoders.encode_image(torch.stack(pixels)).float().cpu() @ directions.T
        ordered, order = (scale * cosines).log_softmax(-1).sort(dim=1, descending=True, stable=True)
        return [
            [Answer(names[place], score) for place, score in zip(places, scores, strict=True)]
            for places, scores in zip(order.tolist(), ordered.tolist(), strict=True)
        ]

    def prepare(image: ImageSource) -> Tensor:
        return encoders.image_transform(load_image(image, max_pixels=max_pixels))

    return each_photo(images, prepare, compare, batch_size)


def load_classifier(
    name: str = "tiny", *, device: str | torch.device = "cpu", tokenizer: str | None = None
) -> Encoders | Model:
    """Load what names photos best: a pair of encoders where there is one, else a model that answers.

    Args:
        name: what `vlm.load` or `vlm.load_encoders` takes.
        device: where it runs.
        tokenizer: of an OFA checkpoint, see `vlm.load`.

    Raises:
        ModelError: there is no such model, or its files cannot be used.
        ArgumentError: the device cannot be used, or `tokenizer` is given for a model that has its own.
    """
    if tokenizer is not None or name.startswith("ofa:"):
        return load(name, device=device, tokenizer=tokenizer)
    if name.startswith(("open_clip:", "timm:")) or hub.has_pair(hub.resolve(name)):
        return load_encoders(name, device=device)
    return load(name, device=device)
