"""The object that `vlm.load` returns: photos, questions and texts in, sentences, boxes and labels out."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm import tasks
from vlm.decoding.answer import Answer
from vlm.encoders import Encoders, PairEncoders, load_encoders, zero_shot
from vlm.encoders.pair import pair_encoders
from vlm.errors import ArgumentError, ImageError, check_list
from vlm.files.bundle import Bundle, has_pair, load_bundle
from vlm.files.hub import bundled, bundled_tasks, resolve
from vlm.image import MAX_PIXELS, ImageSource, check_photos
from vlm.models.device import move
from vlm.predictor import Photo, Predictor, stream_seed
from vlm.tasks.boxes import Box
from vlm.tasks.text import distinct


class Model:
    """A vision-language model.

    One method a task: it asks about one photo and gives the best result alone. `run` asks about several photos and
    gives all results with their scores; `stream` does so for any number of photos. Wherever a photo is expected, a
    `Photo` from `encode` will do, so that a photo is encoded once however often it is asked about.

    Attributes:
        bundle: the networks, tokenizer, image transform and settings.
        predictor: what encodes photos and searches answers.
        tasks: what the model was trained for, by name, see `vlm.tasks`.
    """

    def __init__(self, bundle: Bundle, encoders: PairEncoders | None = None):
        self.bundle = bundle
        self.predictor = Predictor(bundle, encoders)
        self.tasks = tasks.bind(bundle, bundle.tasks)

    @property
    def name(self) -> str:
        return self.bundle.name

    @property
    def encoders(self) -> PairEncoders | None:
        """The contrastive pair on the same tower, which reranks captions; None where the model has none."""
        return self.predictor.encoders

    def to(self, device: str | torch.device) -> "Model":
        """Move the networks.

        Raises:
            ArgumentError: torch knows no such device, or this machine has none.
        """
        move(self.bundle.module, device)
        if self.encoders is not None:
            move(self.encoders, device)
        return self

    def task(self, name: str) -> tasks.Task:
        """A task of this model.

        Raises:
            ArgumentError: the model was not trained for the task, or there is no such task.
        """
        if name in self.tasks:
            return self.tasks[name]
        tasks.check_names([name])
        kind = tasks.TASKS[name]
        can = ", ".join(model for model in bundled() if name in bundled_tasks(model)) or kind.example_model
        hint = f"load a model that can, such as {can}" if can else "train one, see docs/training.md"
        trained = ", ".join(self.tasks)
        raise ArgumentError(f"{self.name!r} cannot {kind.does} (it was trained for: {trained}); {hint}")

    def encode(self, images: Sequence["ImageSource | Photo"], *, max_pixels: int = MAX_PIXELS) -> list[Photo]:
        """Encode photos, to be asked about as often as wanted.

        Args:
            images: paths, bytes, file objects, PIL images, arrays or tensors, of any sizes.
            max_pixels: larger photos are refused.

        Raises:
            ImageError: a photo cannot be used.
        """
        return self.predictor.encode(images, max_pixels=max_pixels)

    def run(
        self, task: str, images: Sequence["ImageSource | Photo"] | None, *columns: Sequence[Any], **options: Any
    ) -> list[Any]:
        """Ask once about each photo, or each text, all in one batch.

        Args:
            task: name of a task.
            images: the same photo as often as it is asked about; None for tasks about text alone.
            columns: the task's inputs, one for each photo: questions, phrases, boxes.
            options: of the task, and fields of `GenerationConfig` that differ from its settings.

        Returns:
            A result for each: for most tasks a list of `Answer`, the best first; see `vlm.tasks`.

        Raises:
            ImageError: a photo cannot be used.
            ArgumentError: the model does not have this task, an input cannot be used, or options exclude each other.
        """
        known = self.task(task)
        check_columns(columns)
        known.check(images, columns)
        photos = None if images is None else self.encode(images)
        return known.run(self.predictor, photos, *columns, **options)

    def stream(
        self,
        task: str,
        images: Sequence["ImageSource | Photo"],
        inputs: Sequence[tuple[Any, ...]] = ((),),
        *,
        batch_size: int = 16,
        max_pixels: int = MAX_PIXELS,
        **options: Any,
    ) -> Iterator[list[Any] | ImageError]:
        """Ask the same about many photos; a photo that cannot be used is lost alone.

        Args:
            task: name of a task.
            images: photos in any form, of any sizes.
            inputs: of the task, each asked about each photo: `[("how many dogs?",), ("where are they?",)]`; by default
                one that has no inputs, as of captions.
            batch_size: photos that go through the networks together; it does not change the results.
            max_pixels: larger photos are refused.
            options: as in `run`.

        Yields:
            For each photo, in order, a result for each of `inputs`, or what is wrong with the photo.

        Raises:
            ArgumentError: as in `run`.
        """
        known = self.task(task)
        check_photos(images)
        check_columns([inputs, *inputs])
        for row in inputs:
            known.check([None], [[value] for value in row])

        def ask(photos: list[Photo], places: list[int]) -> Iterator[list[Any]]:
            each = [photo for photo in photos for _ in inputs]
            columns = zip(*(row for _ in photos for row in inputs), strict=True)
            own: dict[str, Any] = options
            if (seed := options.get("seed")) is not None:  # what is drawn depends on neither batches nor other photos
                rows = [place * len(inputs) + number for place in places for number in range(len(inputs))]
                own = {**options, "seed": [stream_seed(seed, row) for row in rows]}
            found = iter(known.run(self.predictor, each, *map(list, columns), **own))
            return ([next(found) for _ in inputs] for _ in photos)

        return self.predictor.stream(images, ask, batch_size=batch_size, max_pixels=max_pixels)

    # One photo, one result

    def captions(
        self, images: Sequence["ImageSource | Photo"], *, language: str = "en", **options: Any
    ) -> list[list[Answer]]:
        """Describe photos.

        Args:
            images: photos in any form, of any sizes.
            language: code of the language: `en`, `zh` or `de`.
            options: as in `stream` and `vlm.tasks.caption`.

        Returns:
            For each photo its captions, the best first.

        Raises:
            ImageError: a photo cannot be used.
            ArgumentError: the model cannot caption in this language, or options exclude each other.
        """
        if language not in tasks.CAPTION_TASKS:
            raise ArgumentError(f"language={language!r} is unknown; choose one of: {', '.join(tasks.CAPTION_TASKS)}")
        found: list[list[Answer]] = []
        for captions in self.stream(tasks.CAPTION_TASKS[language], images, **options):
            if isinstance(captions, ImageError):
                raise captions
            found += captions
        return found

    def caption(self, image: "ImageSource | Photo", **options: Any) -> str:
        """Describe a photo in one sentence; options and errors as in `captions`."""
        return self.captions([image], **options)[0][0].text

    def answer(
        self, image: "ImageSource | Photo", question: str, *, objects: Sequence[str] = (), **options: Any
    ) -> str:
        """Answer a question about a photo; errors as in `run`.

        Args:
            image: the photo.
            question: about it.
            objects: names of things seen in the photo, which some models of OFA read after the question.
            options: as in `vlm.tasks.answer`.
        """
        check_list("objects", objects)
        return self.run("answer", [image], [question], objects=[objects], **options)[0][0].text

    def ground(self, image: "ImageSource | Photo", phrase: str, **options: Any) -> Box | None:
        """Find what a phrase names: left, top, right and bottom, in pixels of the photo; errors as in `run`.

        Returns:
            None where the model generates no box.
        """
        return self.run("ground", [image], [phrase], **options)[0]

    def describe_region(self, image: "ImageSource | Photo", box: Sequence[float], **options: Any) -> str:
        """Describe a region of a photo; errors as in `run`.

        Args:
            image: the photo.
            box: left, top, right and bottom, in pixels of the photo; what lies outside of the photo is cut off.
            options: fields of `GenerationConfig`.
        """
        return self.run("describe_region", [image], [box], **options)[0][0].text

    def entail(self, image: "ImageSource | Photo", hypothesis: str, caption: str | None = None, **options: Any) -> str:
        """Say whether a sentence follows from a photo: `entailment`, `contradiction` or `neutral`; errors as in `run`.

        Args:
            image: the photo.
            hypothesis: the sentence.
            caption: what is known of the photo, to be judged with it.
            options: as in `vlm.tasks.entail`.
        """
        return self.run("entail", [image], [hypothesis], [caption or ""], **options)[0][0].text

    def classify(self, image: "ImageSource | Photo", labels: Sequence[str]) -> str:
        """The likeliest of some labels for a photo, each scored as an answer; errors as in `run`.

        Models whose encoders compare photos with sentences, such as `tiny`, give labels by `load_classifier` and
        `classify_each`.
        """
        return self.run("classify", [image], [labels])[0][0].text

    def summarize(self, text: str, **options: Any) -> str:
        """Summarise a text in a sentence; errors as in `run`."""
        return self.run("summarize", None, [text], **options)[0][0].text

    def complete(self, text: str, image: "ImageSource | Photo | None" = None, **options: Any) -> str:
        """Write out a text with gaps, each written `<mask>`: `a dog <mask> in the snow`; errors as in `run`.

        Args:
            text: with gaps.
            image: what the text is about; None: text alone.
            options: fields of `GenerationConfig`.
        """
        return self.run("complete", None if image is None else [image], [text], **options)[0][0].text

    def match(self, image: "ImageSource | Photo", sentence: str) -> float:
        """The probability that a sentence fits a photo; errors as in `run`."""
        return self.run("match", [image], [sentence])[0]

    def image_codes(self, text: str, **options: Any) -> Tensor:
        """Draw pictures of a text, as codes that `vlm.convert.vqgan` turns into pixels; errors as in `run`.

        Args:
            text: what the pictures show.
            options: `num_images` and `seed`, and fields of `GenerationConfig`.

        Returns:
            `int64[num_images, side, side]`, codes from 0 on.
        """
        return self.run("generate_image", None, [text], **options)[0]


def check_columns(columns: Sequence[Any]) -> None:
    """Refuse one text where a list of inputs belongs.

    Raises:
        ArgumentError: see above.
    """
    for column in columns:
        check_list("inputs", column)


def load(
    name: str | Path = "tiny", *, device: str | torch.device = "cpu", tokenizer: str | Path | None = None
) -> Model:
    """Load a model.

    Args:
        name: a bundled name (`tiny`), a local folder, or an id of the Hugging Face hub. With `ofa:` in front, a
            checkpoint of OFA: fairseq's `.pt` file, a folder of its port to transformers, or a hub id of that.
        device: where it runs.
        tokenizer: of an OFA checkpoint, the folder or hub id of its vocabulary; None: it lies beside the checkpoint.

    Raises:
        ModelError: there is no such model, or its files cannot be used.
        ArgumentError: the device cannot be used, or `tokenizer` is given for a model that has its own.
    """
    bundle = load_bundle(name, tokenizer=tokenizer, with_pair=True)
    encoders = None if bundle.pair is None else pair_encoders(bundle)
    return Model(bundle, encoders).to(device)


def load_classifier(
    name: str | Path = "tiny", *, device: str | torch.device = "cpu", tokenizer: str | Path | None = None
) -> Encoders | Model:
    """Load what gives photos labels best: a pair of encoders where there is one, else a model that answers.

    Args:
        name: what `vlm.load` or `vlm.load_encoders` takes.
        device: where it runs.
        tokenizer: of an OFA checkpoint, see `vlm.load`.

    Raises:
        ModelError: there is no such model, or its files cannot be used.
        ArgumentError: the device cannot be used, or `tokenizer` is given for a model that has its own.
    """
    source = resolve(name, ("model", "ofa", "open_clip", "timm"))
    compares = source.kind in ("open_clip", "timm") or (source.kind == "model" and has_pair(source.folder()))
    if compares and tokenizer is None:
        return load_encoders(name, device=device)
    return load(name, device=device, tokenizer=tokenizer)


def classify_each(
    model: Encoders | Model,
    images: Sequence[ImageSource],
    labels: Sequence[str] | None = None,
    *,
    templates: Sequence[str] | None = None,
    batch_size: int = 16,
    max_pixels: int = MAX_PIXELS,
    show_progress_bar: bool = False,
) -> Iterator[list[Answer] | ImageError]:
    """Give many photos one of the labels each; a photo that cannot be used is lost alone.

    Args:
        model: from `load_classifier`.
        images: paths, bytes, file objects, PIL images, arrays or tensors, of any sizes.
        labels: names to choose from; None: the model's own; `tiny` has the 1,000 of ImageNet.
        templates: for a pair of encoders, sentences that labels are put into; None: those of
            `vlm.encoders.zero_shot`.
        batch_size: photos that go through the networks together.
        max_pixels: larger photos are refused.
        show_progress_bar: on stderr, while a pair of encoders encodes many labels.

    Returns:
        For each photo, in order, all labels with their log-probabilities, the likeliest first, or what is wrong
        with the photo.

    Raises:
        ArgumentError: there are no labels, or the model has none of its own, no text encoder, or no training for
            labels; `templates` has no meaning, or no place for a label.
    """
    if labels is None:
        if not isinstance(model, PairEncoders) or model.labels is None:
            raise ArgumentError(f"{model.name!r} knows no labels of its own; give labels to choose from")
        if templates is not None:
            raise ArgumentError("templates are for given labels; leave them out")
        return zero_shot.stream_labels(model, images, model.labels.names, model.own_labels, batch_size, max_pixels)
    names = distinct("label", labels)
    if not isinstance(model, Model):
        sentences = zero_shot.TEMPLATES if templates is None else templates
        return zero_shot.classify_each(
            model,
            images,
            names,
            templates=sentences,
            batch_size=batch_size,
            max_pixels=max_pixels,
            show_progress_bar=show_progress_bar,
        )
    if templates is not None:
        raise ArgumentError(
            f"{model.name!r} scores labels as answers and puts them into no sentences; leave templates out"
        )
    found = model.stream("classify", images, [(names,)], batch_size=batch_size, max_pixels=max_pixels)
    return (result if isinstance(result, ImageError) else result[0] for result in found)
