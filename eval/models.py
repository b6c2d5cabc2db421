"""What the harness asks of a model: one small protocol a task, and the adapters that fulfil them.

A model prepares photos one by one, on threads, and is then asked about a batch of prepared ones. The same photo stands
in a batch as the same object as often as it is asked about, so that an adapter can encode it once.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from eval.benchmarks.base import Box, Item
from vlm.errors import ArgumentError, ModelError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from torch.nn import Module

    from vlm.encoders import Encoders
    from vlm.looking import Photo


class EvalModel(Protocol):
    """What every model has.

    Attributes:
        name: what it was loaded by.
        weights: SHA-256 of the weights.
    """

    name: str
    weights: str

    def prepare(self, image: Any) -> Any:
        """Load one photo, on any thread.

        Raises:
            ImageError: the photo cannot be used.
        """
        ...

    def settings(self, task: str) -> dict[str, Any]:
        """Whatever the predictions of a task depend on, as JSON: `prompt`, beams and so on."""
        ...


@runtime_checkable
class Captioner(Protocol):
    def caption(self, images: Sequence[Any]) -> list[str]: ...


@runtime_checkable
class Answerer(Protocol):
    def answer(self, images: Sequence[Any], questions: Sequence[str]) -> list[str]: ...


@runtime_checkable
class Grounder(Protocol):
    def ground(self, images: Sequence[Any], phrases: Sequence[str]) -> list[Box]:
        """Boxes as x1, y1, x2, y2 in fractions of the photo's width and height."""
        ...


@runtime_checkable
class Entailer(Protocol):
    def entail(self, images: Sequence[Any], hypotheses: Sequence[str], premises: Sequence[str]) -> list[str]:
        """`entailment`, `neutral` or `contradiction` each; a premise is empty where only the photo shall be judged."""
        ...


@runtime_checkable
class Classifier(Protocol):
    def classify(self, images: Sequence[Any], labels: Sequence[str]) -> list[int]:
        """The number of a label each."""
        ...


@runtime_checkable
class Embedder(Protocol):
    def encode_image(self, images: Sequence[Any]) -> "Tensor | np.ndarray":
        """`float32[batch, dim]`, unit length."""
        ...

    def encode_text(self, texts: Sequence[str]) -> "Tensor | np.ndarray":
        """`float32[batch, dim]`, unit length."""
        ...


@runtime_checkable
class Featurizer(Protocol):
    def features(self, images: Sequence[Any]) -> "Tensor | np.ndarray":
        """`float32[batch, dim]`, of any length: what a classifier on top is given."""
        ...


# task: what it is called in an error, and the protocols of which any one will do
TASKS: dict[str, tuple[str, tuple[type, ...]]] = {
    "caption": ("caption photos", (Captioner,)),
    "answer": ("answer questions", (Answerer,)),
    "ground": ("find what a phrase names", (Grounder,)),
    "entail": ("judge sentences about photos", (Entailer,)),
    "classify": ("name a photo's class", (Classifier, Embedder)),
    "embed": ("embed photos and sentences", (Embedder,)),
    "featurize": ("give features of photos", (Featurizer, Embedder)),
}

Predict = Callable[[Sequence[Item], Sequence[Any]], list[Any]]  # items and their prepared photos to JSON values


class VLMModel:
    """A model of `vlm.load`.

    It has the methods of those tasks alone that the model was trained for: by them, the harness knows what it can do.
    """

    def __init__(self, name: str, device: str):
        import vlm
        from vlm import hub

        self.name = name
        self.model = vlm.load(name, device=device)
        self.weights = (
            _digest(self.model.module)
            if name.startswith("ofa:")
            else hub.sha256(hub.resolve(name) / "model.safetensors")
        )
        self.prepare = self.model.prepare
        for task in self.model.tasks:
            if task in TASKS:
                setattr(self, task, getattr(self, f"_{task}"))

    def settings(self, task: str) -> dict[str, Any]:
        settings = dict(self.model.tasks.get(task, {}))
        if task == "caption" and settings.get("rerank") and self.model.encoders is not None:
            settings["encoders"] = self.model.encoders.weights_sha256()
        return settings

    def _photos(self, images: Sequence["Tensor"]) -> list["Photo"]:
        """Prepared photos, the same object encoded once, of the size 1 x 1: boxes come in fractions."""
        import torch

        from vlm.looking import Photo

        distinct = {id(image): image for image in images}
        grids = self.model.encode_images(torch.stack(list(distinct.values())))
        photos = {key: Photo(grid, (1, 1)) for key, grid in zip(distinct, grids, strict=True)}
        return [photos[id(image)] for image in images]

    def _caption(self, images: Sequence["Tensor"]) -> list[str]:
        import torch

        patches = self.model.encode_images(torch.stack(list(images)))
        return [captions[0].text for captions in self.model.caption_patches(patches)]

    def _answer(self, images: Sequence["Tensor"], questions: Sequence[str]) -> list[str]:
        return [answers[0].text for answers in self.model.answers(self._photos(images), questions)]

    def _ground(self, images: Sequence["Tensor"], phrases: Sequence[str]) -> list[Box]:
        """Where no box is written, an empty one, which is wrong everywhere."""
        return [box or (0.0, 0.0, 0.0, 0.0) for box in self.model.boxes(self._photos(images), phrases)]

    def _entail(self, images: Sequence["Tensor"], hypotheses: Sequence[str], premises: Sequence[str]) -> list[str]:
        found = self.model.judgements(self._photos(images), hypotheses, premises)
        return [answers[0].text for answers in found]

    def _classify(self, images: Sequence["Tensor"], labels: Sequence[str]) -> list[int]:
        numbers = {label.strip(): number for number, label in enumerate(labels)}
        return [numbers[answers[0].text] for answers in self.model.classes(self._photos(images), labels)]

    def features(self, images: Sequence["Tensor"]) -> "Tensor":
        import torch

        return self.model.module.tower.pool(self.model.encode_images(torch.stack(list(images))))


class ImageEncoder:
    """Encoders of `vlm.load_encoders` that read photos only."""

    def __init__(self, encoders: "Encoders"):
        self.encoders, self.name, self.weights = encoders, encoders.name, encoders.weights_sha256()

    def prepare(self, image: Any) -> "Tensor":
        from vlm.image import load_image

        return self.encoders.image_transform(load_image(image))

    def settings(self, task: str) -> dict[str, Any]:
        return {"transform": " ".join(str(self.encoders.image_transform).split())}

    def features(self, images: Sequence["Tensor"]) -> "Tensor":
        import torch

        with torch.inference_mode():
            return self.encoders.image_vectors(self.encoders.pixels(torch.stack(list(images))))


class EncoderPair(ImageEncoder):
    """Encoders of `vlm.load_encoders` that read photos and sentences."""

    def settings(self, task: str) -> dict[str, Any]:
        from vlm.zero_shot import TEMPLATES

        return super().settings(task) | ({"templates": list(TEMPLATES)} if task == "classify" else {})

    def encode_image(self, images: Sequence["Tensor"]) -> "Tensor":
        import torch

        with torch.inference_mode():
            return self.encoders.encode_image(torch.stack(list(images)))

    def encode_text(self, texts: Sequence[str]) -> "Tensor":
        import torch

        with torch.inference_mode():
            return self.encoders.encode_text(list(texts))


def load(name: str, task: str, device: str) -> EvalModel:
    """Load a model for a task.

    Args:
        name: what `vlm.load` takes, with or without `vlm:` before it, whose pair of encoders embeds and classifies
            where it has one; `open_clip:` and `timm:` names of `vlm.load_encoders`; `hf:` names of `eval.peers.load`;
            `inception:FILE` of `eval.inception`.
        task: a key of `TASKS`.
        device: where it runs.

    Raises:
        ArgumentError: the model cannot do the task.
        ModelError: there is no such model.
    """
    import vlm

    if name.startswith("hf:"):
        from eval import peers

        model = peers.load(name, device)
    elif name.startswith("inception:"):
        from eval.inception import Inception

        model = Inception(name.removeprefix("inception:"), device)
    elif name.startswith(("open_clip:", "timm:")):
        encoders = vlm.load_encoders(name, device=device)
        model = ImageEncoder(encoders) if encoders.logit_scale is None else EncoderPair(encoders)
    else:
        from vlm import hub

        name = name.removeprefix("vlm:")
        compares = task in ("classify", "embed") and not name.startswith("ofa:") and hub.has_pair(hub.resolve(name))
        model = EncoderPair(vlm.load_encoders(name, device=device)) if compares else VLMModel(name, device)
    check(model, task)
    return model


def check(model: EvalModel, task: str) -> None:
    """Refuse a model that cannot do a task.

    Raises:
        ArgumentError: see above; it names both.
    """
    what, protocols = TASKS[task]
    if not isinstance(model, protocols):
        able = [name for name, (_, known) in TASKS.items() if isinstance(model, known)]
        raise ArgumentError(
            f"model {model.name!r} cannot {what} (task {task!r}); it can do: {', '.join(able) or 'nothing'}; "
            "choose another benchmark or model"
        )


def predictor(model: Any, task: str, items: Sequence[Item]) -> Predict:
    """How a batch of a benchmark's items is predicted; what all items share is prepared here, once."""
    if task == "caption":
        return lambda batch, images: model.caption(images)
    if task == "answer":
        return lambda batch, images: model.answer(images, [item.question for item in batch])
    if task == "ground":
        return lambda batch, images: [
            [float(x) for x in box] for box in model.ground(images, [item.question for item in batch])
        ]
    if task == "entail":
        return lambda batch, images: model.entail(
            images, [item.question for item in batch], [item.premise for item in batch]
        )
    if task == "classify":
        return _classifier(model, items[0].choices)
    if task == "featurize":
        return lambda batch, images: [pack(row) for row in image_features(model, images)]
    return lambda batch, images: _embed(model, batch, images)


def image_features(model: Any, images: Sequence[Any]) -> "np.ndarray":
    """Features of prepared photos, `float32[batch, dim]`: its own, or else the embeddings of a pair."""
    return _array(model.features(images) if isinstance(model, Featurizer) else model.encode_image(images))


def _classifier(model: Any, labels: Sequence[str]) -> Predict:
    if isinstance(model, Classifier):
        return lambda batch, images: [int(label) for label in model.classify(images, labels)]
    from vlm.zero_shot import label_features

    features = label_features(model.encode_text, labels).numpy()  # [labels, dim]
    return lambda batch, images: (_array(model.encode_image(images)) @ features.T).argmax(1).tolist()


def _embed(model: Any, batch: Sequence[Item], images: Sequence[Any]) -> list[Any]:
    """The embedding of each photo, and of each of its captions."""
    photos = _array(model.encode_image(images))
    texts = iter(_array(model.encode_text([text for item in batch for text in item.references])))
    return [
        {"image": pack(photo), "texts": [pack(next(texts)) for _ in item.references]}
        for item, photo in zip(batch, photos, strict=True)
    ]


def _digest(module: "Module") -> str:
    """Digest of weights by name and value, for models whose files may be any of several formats."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pack(vector: "np.ndarray") -> str:
    """`float32[dim]` as text: base64 of little-endian numbers, every bit kept."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def unpack(texts: Sequence[str]) -> "np.ndarray":
    """The inverse of `pack`: `float32[texts, dim]`.

    Raises:
        ModelError: vectors of several lengths.
    """
    import numpy as np

    rows = [np.frombuffer(base64.b64decode(text), dtype="<f4") for text in texts]
    if len({len(row) for row in rows}) > 1:
        raise ModelError("the stored embeddings have several lengths; start anew with another --out")
    return np.stack(rows)


def _array(features: Any) -> "np.ndarray":
    """A tensor on any device, or an array, to `float32[batch, dim]`."""
    import numpy as np

    if hasattr(features, "detach"):
        features = features.detach().float().cpu().numpy()
    return np.asarray(features, dtype=np.float32)
