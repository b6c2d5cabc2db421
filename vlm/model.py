"""The object that `vlm.load` returns: photos, questions and texts in, sentences, boxes and labels out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm import hub, prompt, reranking
from vlm.asking import Answer, search_config
from vlm.encoders import PairEncoders
from vlm.errors import ArgumentError, ImageError
from vlm.generation import generate
from vlm.image import MAX_PIXELS, ImageTransform
from vlm.looking import Looker, Picture
from vlm.models.vision_language import VisionLanguageModel
from vlm.tokenizer import Tokenizer

Box = tuple[float, float, float, float]  # left, top, right, bottom
Caption = Answer


class Model(Looker):
    """A vision-language model with its tokenizer and image transform.

    Questions about photos come in two forms: a method named by a verb asks one photo and gives the answer alone; one
    named by a plural asks photo by photo, with all that the model knows of the answers. Both take a `Photo` of `look`
    wherever they take a picture, so that it is encoded once; `ask_each` streams many photos through any of them.

    Attributes:
        module: the networks, an ordinary `nn.Module` in evaluation mode.
        tokenizer: text to ids.
        transform: a photo to what the tower reads.
        name: what it was loaded by.
        tasks: what it was trained for, and how each is asked and searched, see `vlm.prompt.TASKS`.
        encoders: the contrastive pair on the same tower that has a say in captions, if one does.
    """

    def __init__(
        self,
        module: VisionLanguageModel,
        tokenizer: Tokenizer,
        transform: ImageTransform,
        name: str = "",
        tasks: Mapping[str, Mapping[str, Any]] | None = None,
        encoders: PairEncoders | None = None,
    ):
        super().__init__(module, tokenizer, transform, name, tasks)
        self.encoders = encoders

    def to(self, device: str | torch.device) -> "Model":
        """Move the networks.

        Raises:
            ArgumentError: torch knows no such device, or it is not there.
        """
        try:
            self.module.to(device)
            if self.encoders is not None:
                self.encoders.to(device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ArgumentError(f"device {str(device)!r} cannot be used: {reason}; try cpu, cuda or mps") from None
        return self

    # Captions

    def caption_patches(
        self,
        patches: Tensor,
        *,
        num_captions: int = 1,
        rerank: float | None = None,
        seed: int | None = None,
        **options,
    ) -> list[list[Caption]]:
        """Describe photos by their patch features.

        Args:
            patches: from `encode_images`.
            num_captions: sentences a photo, the best first.
            rerank: weight of the agreement of photo and sentence in the order of the captions that were found, see
                `vlm.reranking`; 0: leave it out; None: as `tasks["caption"]` says, where the model has encoders.
            seed: of the random numbers, where `sample` is set.
            options: fields of `GenerationConfig` that shall differ from `tasks["caption"]`.

        Raises:
            ArgumentError: options that exclude each other, the model does not caption, or has no encoders to rerank by.
        """
        settings = self.settings("caption")
        ids = self.tokenizer.encode(settings["prompt"])
        if rerank is None:
            rerank = settings.get("rerank", 0.0) if self.encoders is not None else 0.0
        weight = reranking.check_weight(rerank)
        if weight and self.encoders is None:
            raise ArgumentError(f"{self.name!r} has no encoders to rerank by; leave rerank out")
        found = self.write("caption", [ids] * len(patches), list(patches), count=num_captions, seed=seed, **options)
        if weight and self.encoders is not None:
            found = reranking.rerank(self.encoders, patches, found, weight)
        return [captions[:num_captions] for captions in found]

    def caption_each(
        self,
        images: Sequence[Picture],
        *,
        batch_size: int = 16,
        max_pixels: int = MAX_PIXELS,
        **options,
    ) -> Iterator[list[Caption] | ImageError]:
        """Describe many photos, as `ask_each`; `options` as in `caption_patches`.

        Yields:
            For each photo, in order, its captions, the best first, or what is wrong with it.
        """
        return self.ask_each(
            images,
            lambda photos: self.caption_patches(torch.stack([photo.patches for photo in photos]), **options),
            batch_size=batch_size,
            max_pixels=max_pixels,
        )

    def captions(self, images: Sequence[Picture], **options) -> list[list[Caption]]:
        """Describe photos; arguments as in `caption_each`.

        Raises:
            ImageError: a photo cannot be used.
            ArgumentError: options that exclude each other.
        """
        found: list[list[Caption]] = []
        for captions in self.caption_each(images, **options):
            if isinstance(captions, ImageError):
                raise captions
            found.append(captions)
        return found

    def caption(self, image: Picture, **options) -> str:
        """Describe one photo in one sentence; arguments and errors as in `captions`."""
        return self.captions([image], **options)[0][0].text

    # Questions, boxes, sentences and labels

    def answers(
        self,
        images: Sequence[Picture],
        questions: Sequence[str],
        *,
        choices: Sequence[str] | None = None,
        score_all: bool = False,
        objects: Sequence[Sequence[str]] | None = None,
        prefix: prompt.Prefix | None = None,
        **options,
    ) -> list[list[Answer]]:
        """Answer one question about each photo.

        Args:
            images: as often the same one as it is asked about.
            questions: one for each of them.
            choices: the only answers that may be given; None: any text.
            score_all: weigh every one of `choices`, not only those that a beam search meets. Their probabilities sum
                to 1.
            objects: names of things seen in each photo, which some models of OFA read behind the question.
            prefix: what the decoder is given before it answers, see `vlm.prompt.example`; None: the model's own.
            options: fields of `GenerationConfig` that shall differ from `tasks["answer"]`.

        Returns:
            For each question its answers, the best first.

        Raises:
            ImageError: a photo cannot be used.
            ArgumentError: the model does not answer questions, one holds no words, or options exclude each other.
        """
        instruction = self.settings("answer")["prompt"]
        seen = [()] * len(questions) if objects is None else objects
        ids = [
            prompt.question_ids(self.tokenizer, question, names, instruction)
            for question, names in zip(questions, seen, strict=True)
        ]
        patches = [photo.patches for photo in self.look(images)]
        if score_all:
            if choices is None or options:
                raise ArgumentError("score_all weighs given answers and searches none: give choices, and no options")
            return self.weigh("answer", ids, patches, prompt.distinct("answer", choices), prefix)
        return self.write("answer", ids, patches, choices=choices, prefix=prefix, **options)

    def answer(self, image: Picture, question: str, *, objects: Sequence[str] = (), **options) -> str:
        """Answer one question about one photo; arguments and errors as in `answers`."""
        return self.answers([image], [question], objects=[objects], **options)[0][0].text

    def boxes(self, images: Sequence[Picture], phrases: Sequence[str], **options) -> list[Box | None]:
        """Find what a phrase names, one in each photo.

        Args:
            images: as often the same one as it is asked about.
            phrases: one for each of them.
            options: fields of `GenerationConfig` that shall differ from `tasks["ground"]`.

        Returns:
            Left, top, right and bottom, in pixels of the photo; None where the model wrote no box.

        Raises:
            ImageError: a photo cannot be used.
            ArgumentError: the model finds nothing, a phrase holds no words, or options exclude each other.
        """
        settings = self.settings("ground")
        ids = [self.tokenizer.encode(settings["prompt"].format(prompt.words("phrase", text))) for text in phrases]
        photos = self.look(images)
        found = self.write("ground", ids, [photo.patches for photo in photos], **options)
        size = settings["box_pixels"] or self.transform.size
        read = [
            [prompt.read_box(self.tokenizer, answer.ids, *photo.size, size) for answer in answers]
            for answers, photo in zip(found, photos, strict=True)
        ]
        return [next((box for box in boxes if box), None) for boxes in read]

    def ground(self, image: Picture, phrase: str, **options) -> Box | None:
        """Find what a phrase names in one photo; arguments and errors as in `boxes`."""
        return self.boxes([image], [phrase], **options)[0]

    def region_captions(
        self, images: Sequence[Picture], boxes: Sequence[Sequence[float]], **options
    ) -> list[list[Answer]]:
        """Describe one region of each photo.

        Args:
            images: as often the same one as it is asked about.
            boxes: left, top, right and bottom, in pixels of the photo; what is outside of it is cut off.
            options: fields of `GenerationConfig` that shall differ from `tasks["describe_region"]`.

        Returns:
            For each region its descriptions, the best first.

        Raises:
            ImageError: a photo cannot be used.
            ArgumentError: the model describes no regions, a box is none, or options exclude each other.
        """
        settings = self.settings("describe_region")
        photos = self.look(images)
        size = settings["box_pixels"] or self.transform.size
        ids = [
            self.tokenizer.encode(settings["prompt"])
            + prompt.box_locations(self.tokenizer, prompt.clip_box(box, *photo.size), *photo.size, size)
            for box, photo in zip(boxes, photos, strict=True)
        ]
        return self.write("describe_region", ids, [photo.patches for photo in photos], **options)

    def describe_region(self, image: Picture, box: Sequence[float], **options) -> str:
        """Describe one region of one photo; arguments and errors as in `region_captions`."""
        return self.region_captions([image], [box], **options)[0][0].text

    def judgements(
        self,
        images: Sequence[Picture],
        hypotheses: Sequence[str],
        captions: Sequence[str] | None = None,
        *,
        prefix: prompt.Prefix | None = None,
    ) -> list[list[Answer]]:
        """Say whether a sentence follows from each photo.

        Args:
            images: as often the same one as it is asked about.
            hypotheses: one sentence for each of them.
            captions: what is known of each photo, which is judged with it; None, or an empty one: the photo alone.
            prefix: what the decoder is given before it answers, see `vlm.prompt.example`; None: the model's own.

        Returns:
            For each sentence `entailment`, `contradiction` and `neutral`, the likeliest first.

        Raises:
            ImageError: a photo cannot be used.
            ArgumentError: the model judges no sentences, or one holds no words.
        """
        settings = self.settings("entail")
        ids = []
        for hypothesis, caption in zip(hypotheses, captions or [""] * len(hypotheses), strict=True):
            sentences = [prompt.words("sentence", hypothesis)]
            if caption.strip():
                sentences.insert(0, prompt.words("caption", caption))
            instruction = settings["prompt_with_caption" if len(sentences) > 1 else "prompt"]
            ids.append(self.tokenizer.encode(instruction.format(*sentences)))
        labels = {answer.strip(): label for label, answer in prompt.ENTAIL_ANSWERS.items()}
        patches = [photo.patches for photo in self.look(images)]
        found = self.weigh("entail", ids, patches, list(labels), prefix)
        return [[replace(answer, text=labels[answer.text]) for answer in answers] for answers in found]

    def entail(self, image: Picture, hypothesis: str, caption: str | None = None, **options) -> str:
        """Say whether a sentence follows from one photo: `entailment`, `contradiction` or `neutral`.

        Arguments and errors as in `judgements`.
        """
        return self.judgements([image], [hypothesis], [caption or ""], **options)[0][0].text

    def classes(self, images: Sequence[Picture], labels: Sequence[str]) -> list[list[Answer]]:
        """Weigh labels as answers to what each photo shows.

        Returns:
            For each photo all labels, the likeliest first; their probabilities sum to 1.

        Raises:
            ImageError: a photo cannot be used.
            ArgumentError: the model was not trained for it, or there are no labels.
        """
        ids = self.tokenizer.encode(self.settings("classify")["prompt"])
        patches = [photo.patches for photo in self.look(images)]
        return self.weigh("classify", [ids] * len(patches), patches, prompt.distinct("label", labels))

    def classify(self, image: Picture, labels: Sequence[str]) -> str:
        """The likeliest label of one photo; errors as in `classes`."""
        return self.classes([image], labels)[0][0].text

    # Text alone

    def summaries(self, texts: Sequence[str], **options) -> list[list[Answer]]:
        """Summarise texts in a sentence each; what is behind 512 words is not read.

        Args:
            texts: articles.
            options: fields of `GenerationConfig` that shall differ from `tasks["summarize"]`.

        Returns:
            For each text its summaries, the best first.

        Raises:
            ArgumentError: the model does not summarise, a text holds no words, or options exclude each other.
        """
        instruction = self.settings("summarize")["prompt"]
        cleaned = [prompt.words("text", text, prompt.MAX_ARTICLE_WORDS).replace("<unk>", "unk") for text in texts]
        return self.write("summarize", [self.tokenizer.encode(instruction.format(text)) for text in cleaned], **options)

    def summarize(self, text: str, **options) -> str:
        """Summarise one text; arguments and errors as in `summaries`."""
        return self.summaries([text], **options)[0][0].text

    def completions(self, texts: Sequence[str], **options) -> list[list[Answer]]:
        """Write out texts with gaps, each written `<mask>`: `a dog <mask> in the snow`.

        Arguments, result and errors as in `summaries`; settings are `tasks["complete"]`.
        """
        instruction = self.settings("complete")["prompt"]
        ids = [prompt.gap_ids(self.tokenizer, text, instruction) for text in texts]
        return self.write("complete", ids, **options)

    def complete(self, text: str, **options) -> str:
        """Write out one text; arguments and errors as in `completions`."""
        return self.completions([text], **options)[0][0].text

    # Pictures

    @torch.inference_mode()
    def image_codes(self, texts: Sequence[str], *, num_images: int = 1, seed: int | None = None, **options) -> Tensor:
        """Draw pictures of texts, as codes of the VQGAN that the model was trained with.

        `vlm.convert.vqgan` turns them into pixels.

        Args:
            texts: what the pictures show; what is behind 64 words is not read.
            num_images: pictures of each.
            seed: of the random numbers.
            options: fields of `GenerationConfig` that shall differ from `tasks["generate_image"]`.

        Returns:
            `int64[texts, num_images, side, side]`, codes from 0 on.

        Raises:
            ArgumentError: options that exclude each other, a text without words, or the model does not draw.
        """
        settings = self.settings("generate_image")
        if num_images < 1:
            raise ArgumentError(f"num_images={num_images} is below 1; give 1 or more")
        side, first = self.module.backbone.config.code_grid, self.tokenizer.code_start
        if not texts:
            return torch.empty(0, num_images, side, side, dtype=torch.long)
        ids = [self.tokenizer.encode(prompt.image_instruction(text, settings["prompt"])) for text in texts]
        encoded, _ = self.read(ids, None, "none")
        found = generate(
            self.module.backbone,
            encoded,
            replace(search_config(settings, options, num_images), min_tokens=side**2, max_tokens=side**2),
            codes=True,
            generator=None if seed is None else torch.Generator(self.device).manual_seed(seed),
        )
        codes = torch.tensor([[hypothesis.ids for hypothesis in drawn] for drawn in found])
        return codes.view(len(texts), -1, side, side) - first


def load(name: str = "tiny", *, device: str | torch.device = "cpu", tokenizer: str | Path | None = None) -> Model:
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
    if name.startswith("ofa:"):
        from vlm.convert.ofa import load_ofa

        module, words, transform, tasks = load_ofa(name.removeprefix("ofa:"), tokenizer=tokenizer)
        return Model(module, words, transform, name, tasks).to(device)
    if tokenizer is not None:
        raise ArgumentError(f"tokenizer={str(tokenizer)!r} is for names that begin with ofa:; {name!r} has its own")
    folder = hub.resolve(name)
    module, words, transform = hub.load_model(folder)
    tasks, encoders = hub.task_settings(folder), None
    if "caption" in tasks and hub.has_pair(folder):
        encoders = PairEncoders(name, module.tower, *hub.load_pair(folder), transform).eval()
    return Model(module, words, transform, name, tasks, encoders).to(device)
