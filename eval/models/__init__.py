"""What the harness asks of a model, and how our own models and encoders give it.

A model prepares photos one by one, on threads, and is then asked about a batch of prepared ones. The same photo stands
in a batch as the same object as often as it is asked about, so that an adapter can encode it once.
"""

import base64
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from eval.benchmark import Benchmark, Item
from vlm.errors import ArgumentError, ModelError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from vlm.encoders import Encoders
    from vlm.predictor import Photo


class EvalModel(Protocol):
    """What every model has.

    Beside it, a model has a method for each task of `vlm.tasks` that it can do, of the task's name: from prepared
    photos, and a list for each input of the task, to one prediction each, as JSON (`Task.prediction`):
    `caption(images)`, `answer(images, questions)`, `ground(images, phrases)` with boxes as x1, y1, x2, y2 in fractions
    of the photo's width and height, `entail(images, sentences, captions)`, `match(images, sentences)` with a
    probability each, `classify(images, labels)` with the number of a label each. Models without such a method may be an
    `Embedder` or a `Featurizer`.

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


@runtime_checkable
class Drawer(Protocol):
    def draw_items(self, items: Sequence[Item], photos: Sequence[Any]) -> list[dict[str, Any]]:
        """Pictures of the items' prompts, and their photos, as `eval.models.drawing.DrawingModel` sees them."""
        ...


@runtime_checkable
class BestDrawer(Protocol):
    def draw_best_items(self, items: Sequence[Item], photos: Sequence[Any]) -> list[dict[str, Any]]:
        """As `Drawer.draw_items`, with the best of several pictures of each prompt."""
        ...


@runtime_checkable
class RoundTripper(Protocol):
    def roundtrip_items(self, items: Sequence[Item], photos: Sequence[Any]) -> list[dict[str, Any]]:
        """Texts to pictures to texts, and photos to texts to pictures; see `eval.models.roundtrip.RoundTripModel`."""
        ...


# abilities that are not tasks of `vlm.tasks`, by name
ABILITIES = {
    "embed": "embed photos and sentences",
    "compare": "compare photos with sentences",
    "featurize": "compute features of photos",
    "draw": "draw pictures of prompts",
    "draw_best": "draw several pictures of each prompt and keep the best",
    "roundtrip": "draw pictures and caption them",
}

Predict = Callable[[Sequence[Item], Sequence[Any]], list[Any]]  # items and their prepared photos to JSON values


class VLMModel:
    """A model of `vlm.load`.

    It has a method for each task that the model was trained for: by them, the harness knows what it can do.
    """

    def __init__(self, name: str, device: str):
        import vlm

        self.name = name
        self.model = vlm.load(name, device=device)
        self.weights = self.model.bundle.sha256()
        self.weights_of = "model.safetensors" if self.model.bundle.folder else "all tensors"
        for task in self.model.tasks:
            setattr(self, task, partial(self.run, task))

    def prepare(self, image: Any) -> "Tensor":
        from vlm.image import load_image

        return self.model.bundle.transform(load_image(image))

    def settings(self, task: str) -> dict[str, Any]:
        known = self.model.tasks.get(task)
        settings = dict(known.settings) if known else {}
        if settings.get("rerank") and self.model.encoders is not None:
            settings["encoders"] = self.model.encoders.weights_sha256()
        return settings

    def run(self, task: str, images: Sequence["Tensor"], *columns: Sequence[Any]) -> list[Any]:
        found = self.model.run(task, self._photos(images), *columns)
        predict = self.model.task(task).prediction
        return [predict(result, *inputs) for result, *inputs in zip(found, *columns, strict=True)]

    def _photos(self, images: Sequence["Tensor"]) -> list["Photo"]:
        """Prepared photos, the same object encoded once, of the size 1 x 1: boxes come in fractions."""
        import torch

        from vlm.predictor import Photo

        distinct = {id(image): image for image in images}
        grids = self.model.predictor.encode_images(torch.stack(list(distinct.values())))
        photos = {key: Photo(grid, (1, 1)) for key, grid in zip(distinct, grids, strict=True)}
        return [photos[id(image)] for image in images]

    def features(self, images: Sequence["Tensor"]) -> "Tensor":
        import torch

        return self.model.bundle.module.tower.pool(self.model.predictor.encode_images(torch.stack(list(images))))


class ImageEncoder:
    """Encoders of `vlm.load_encoders` that read photos only."""

    def __init__(self, encoders: "Encoders"):
        self.encoders, self.name, self.weights = encoders, encoders.name, encoders.weights_sha256()
        self.weights_of = "encoders: all tensors"

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
        from vlm.encoders.zero_shot import TEMPLATES

        labels = DERIVED[task].get(Embedder) is _classify_by_embeddings if task in DERIVED else False
        return super().settings(task) | ({"templates": list(TEMPLATES)} if labels else {})

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
            where it has one; `open_clip:` and `timm:` names of `vlm.load_encoders`; `hf:` names of
            `eval.models.peers`; `inception:FILE` of `eval.models.inception`.
        task: name of a task or an ability.
        device: where it runs.

    Raises:
        ArgumentError: the model cannot do the task.
        ModelError: there is no such model.
    """
    import vlm
    from vlm.files import hub
    from vlm.files.bundle import has_pair

    source = hub.resolve(name.removeprefix("vlm:"), hub.FORMS)
    if task in ("draw", "draw_best") and source.kind == "model":
        from eval.models.drawing import DrawingModel

        model = DrawingModel(source.name, device)
    elif task == "roundtrip" and source.kind == "model":
        from eval.models.roundtrip import RoundTripModel

        model = RoundTripModel(source.name, device)
    elif source.kind == "hf":
        from eval.models import peers

        model = peers.load(source.name, device)
    elif source.kind == "inception":
        from eval.models.inception import Inception

        model = Inception(source.rest, device)
    elif source.kind in ("open_clip", "timm"):
        encoders = vlm.load_encoders(source.name, device=device)
        model = ImageEncoder(encoders) if encoders.logit_scale is None else EncoderPair(encoders)
    elif (task in DERIVED and task != FEATURES) and source.kind == "model" and has_pair(source.folder()):
        model = EncoderPair(vlm.load_encoders(source.name, device=device))
    else:
        model = VLMModel(source.name, device)
    check(model, task)
    return model


def able(model: Any, task: str) -> bool:
    """Whether a model can do a task: by a method of that name, or by other methods from which it follows."""
    return callable(getattr(model, task, None)) or any(isinstance(model, kind) for kind in DERIVED.get(task, {}))


def check(model: EvalModel, task: str) -> None:
    """Refuse a model that cannot do a task.

    Raises:
        ArgumentError: see above; it names both.
    """
    if able(model, task):
        return
    from vlm.tasks import TASKS

    what = {name: kind.does for name, kind in TASKS.items()} | ABILITIES
    # the same name loads the encoders for what follows from these
    pair = DERIVED if isinstance(model, VLMModel) and model.model.encoders is not None else {}
    can = [name for name in what if able(model, name) or name in pair]
    raise ArgumentError(
        f"model {model.name!r} cannot {what[task]} (task {task!r}); it can do: {', '.join(can) or 'nothing'}; "
        "choose another benchmark or model"
    )


def predictor(model: Any, benchmark: Benchmark, items: Sequence[Item]) -> Predict:
    """How a batch of a benchmark's items is predicted; what all items share is prepared here, once."""
    task = benchmark.task
    method = getattr(model, task, None)
    if callable(method):
        ask: Callable[..., Any] = method
        return lambda batch, images: [_plain(value) for value in ask(images, *benchmark.columns(batch))]
    derive = next(derive for kind, derive in DERIVED[task].items() if isinstance(model, kind))
    return derive(model, items)


def _plain(value: Any) -> Any:
    """A prediction as JSON: a text, a number, or a box as a list of floats."""
    if isinstance(value, str):
        return value
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    return [float(x) for x in value]


def image_features(model: Any, images: Sequence[Any]) -> "np.ndarray":
    """Features of prepared photos, `float32[batch, dim]`: its own, or else the embeddings of a pair."""
    return _array(model.features(images) if isinstance(model, Featurizer) else model.encode_image(images))


def _classify_by_embeddings(model: Any, items: Sequence[Item]) -> Predict:
    from vlm.encoders.zero_shot import label_features

    features = label_features(model.encode_text, items[0].choices).numpy()  # [labels, dim]
    return lambda batch, images: (_array(model.encode_image(images)) @ features.T).argmax(1).tolist()


def _embed_items(model: Any, items: Sequence[Item]) -> Predict:
    return lambda batch, images: _embed(model, batch, images)


def _featurize(model: Any, items: Sequence[Item]) -> Predict:
    return lambda batch, images: [pack(row) for row in image_features(model, images)]


def _embed(model: Any, batch: Sequence[Item], images: Sequence[Any]) -> list[Any]:
    """The embedding of each photo, and of each of its captions."""
    photos = _array(model.encode_image(images))
    texts = iter(_array(model.encode_text([text for item in batch for text in item.references])))
    return [
        {"image": pack(photo), "texts": [pack(next(texts)) for _ in item.references]}
        for item, photo in zip(batch, photos, strict=True)
    ]


def _compare_items(model: Any, items: Sequence[Item]) -> Predict:
    known: dict[str, np.ndarray] = {}  # sentences often come with several photos; each is embedded once
    return lambda batch, images: _cosines(model, batch, images, known)


def _cosines(
    model: Any, batch: Sequence[Item], images: Sequence[Any], known: dict[str, "np.ndarray"]
) -> list[list[float]]:
    """The cosine of each photo with each of its sentences.

    Args:
        model: an `Embedder`.
        batch: items whose references are the sentences.
        images: the prepared photo of each.
        known: embeddings of sentences, to which new ones are added.
    """
    new = list(dict.fromkeys(text for item in batch for text in item.references if text not in known))
    if new:
        known.update(zip(new, _array(model.encode_text(new)), strict=True))
    photos = _array(model.encode_image(images))
    return [[float(known[text] @ photo) for text in item.references] for item, photo in zip(batch, photos, strict=True)]


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
        raise ModelError("the stored embeddings differ in length; start again with another --out")
    return np.stack(rows)


def _array(features: Any) -> "np.ndarray":
    """A tensor on any device, or an array, to `float32[batch, dim]`."""
    import numpy as np

    if hasattr(features, "detach"):
        features = features.detach().float().cpu().numpy()
    return np.asarray(features, dtype=np.float32)


FEATURES = "featurize"
# what follows from other methods: by task, for a model with these methods, how items are predicted
DERIVED: dict[str, dict[type, Callable[[Any, Sequence[Item]], Predict]]] = {
    "classify": {Embedder: _classify_by_embeddings},
    "embed": {Embedder: _embed_items},
    "compare": {Embedder: _compare_items},
    FEATURES: {Featurizer: _featurize, Embedder: _featurize},
    "draw": {Drawer: lambda model, items: model.draw_items},
    "draw_best": {BestDrawer: lambda model, items: model.draw_best_items},
    "roundtrip": {RoundTripper: lambda model, items: model.roundtrip_items},
}
