"""What all tasks of a model share: instructions in ids, written or weighed answers out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from vlm import prompt
from vlm.candidates import Trie, score_candidates
from vlm.errors import ArgumentError, ImageError
from vlm.generation import GenerationConfig, generate
from vlm.models.seq2seq import Encoded
from vlm.models.vision_language import VisionLanguageModel
from vlm.threads import ordered_map
from vlm.tokenizer import PAD, Tokenizer

Prepared = TypeVar("Prepared")
Result = TypeVar("Result")

DOES_ALL = "ofa:OFA-Sys/ofa-base"  # what an error proposes
CHUNK = 64  # answers that are scored at once, over all photos of a batch


@dataclass(frozen=True)
class Answer:
    """Something that a model wrote or chose.

    Attributes:
        text: what it is.
        score: its log-probability. Where a model is searched with `normalize`, as for captions, the mean over its
            tokens, divided by the length to the power of the length penalty; captions that were reranked have their
            agreement with the photo added, see `vlm.reranking`.
        ids: its tokens, where it was written.
    """

    text: str
    score: float
    ids: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.text


class Asker:
    """The backbone with its tokenizer, and what it was trained for.

    Attributes:
        module: the networks, an ordinary `nn.Module` in evaluation mode.
        tokenizer: text to ids.
        name: what it was loaded by.
        tasks: what it was trained for, and how each is asked and searched, see `vlm.prompt.TASKS`.
    """

    def __init__(
        self,
        module: VisionLanguageModel,
        tokenizer: Tokenizer,
        name: str,
        tasks: Mapping[str, Mapping[str, Any]] | None,
    ):
        self.module, self.tokenizer, self.name = module, tokenizer, name
        ranges = {
            "ground": (tokenizer.bin_start, tokenizer.vocab_size),
            "generate_image": (tokenizer.code_start, tokenizer.bin_start),
        }
        self.tasks: dict[str, dict[str, Any]] = {
            task: {**prompt.TASKS[task], "allowed": ranges.get(task, tokenizer.text_range), **settings}
            for task, settings in (tasks or {"caption": {}}).items()
        }

    @property
    def device(self) -> torch.device:
        return self.module.backbone.embed.weight.device

    def settings(self, task: str) -> dict[str, Any]:
        """How a task is asked and searched.

        Raises:
            ArgumentError: the model was not trained for it.
        """
        if task not in self.tasks:
            raise ArgumentError(
                f"{self.name!r} was trained for {', '.join(self.tasks)}, not for {task}; "
                f"load a model that was, such as {DOES_ALL!r}"
            )
        return self.tasks[task]

    def read(
        self, instructions: Sequence[Sequence[int]], patches: Sequence[Tensor] | None, prefix: prompt.Prefix
    ) -> tuple[Encoded, Tensor]:
        """Encode instructions, each with its patches.

        Returns:
            What the decoder reads, and the prefixes of its answers without start token, `int64[batch, words]`.

        Raises:
            ArgumentError: an instruction is too long.
        """
        examples = [prompt.example(ids, (), prefix) for ids in instructions]
        longest, limit = max(len(e.source) for e in examples), self.module.backbone.config.max_source_positions
        if longest > limit:
            raise ArgumentError(f"a text takes {longest} tokens, {self.name!r} reads {limit}; shorten it")
        source = pad([e.source for e in examples]).to(self.device)
        encoded = self.module.backbone.encode(source, None if patches is None else torch.stack(list(patches)))
        return encoded, pad([e.prefix[1:] for e in examples])

    @torch.inference_mode()
    def write(
        self,
        task: str,
        instructions: Sequence[Sequence[int]],
        patches: Sequence[Tensor] | None = None,
        *,
        count: int = 1,
        choices: Sequence[str] | None = None,
        prefix: prompt.Prefix | None = None,
        seed: int | None = None,
        **options,
    ) -> list[list[Answer]]:
        """Search answers to instructions.

        Args:
            task: what is asked, a key of `tasks`.
            instructions: ids of each.
            patches: what each is about, `[height, width, patch_dim]`; None: text alone.
            count: answers that are wanted of each.
            choices: the only answers that may be given; None: any text.
            prefix: what the decoder is given before it answers; None: as the task's settings say.
            seed: of the random numbers, where `sample` is set.
            options: fields of `GenerationConfig` that shall differ from the task's settings. Lengths are those of
                answers, without the prefix.

        Returns:
            For each instruction its answers, the best first.
        """
        settings = self.settings(task)
        before: prompt.Prefix = prefix or settings.get("prefix") or "none"
        if before == "source_and_end":
            raise ArgumentError(
                "no search goes on behind the end token of prefix='source_and_end'; have given answers weighed, or "
                "give another prefix"
            )
        config = search_config(settings, options, count)
        texts: dict[tuple[int, ...], str] = {}
        if choices is not None:
            names = prompt.distinct("answer", choices)
            texts = dict(zip(map(tuple, self.answer_ids(names)), names, strict=True))
            config = replace(config, max_tokens=max(map(len, texts)), max_tokens_per_source=0.0)
            if config.mask_after_softmax and before != "none":
                raise ArgumentError(
                    f"mask_after_softmax and prefix={before!r} exclude each other; leave one of them out"
                )
        generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        # An answer may be `max_tokens` long whatever stands before it, so prefixes of one length go together. Given
        # answers end by themselves.
        groups: dict[int, list[int]] = {}
        for row, ids in enumerate(instructions):
            groups.setdefault(0 if texts or before == "none" else len(ids), []).append(row)
        found: dict[int, list[Answer]] = {}
        for rows in groups.values():
            asked = [instructions[row] for row in rows]
            about = None if patches is None else [patches[row] for row in rows]
            found.update(zip(rows, self._search(asked, about, config, texts, before, generator), strict=True))
        return [found[row] for row in range(len(instructions))]

    def _search(
        self,
        instructions: Sequence[Sequence[int]],
        patches: Sequence[Tensor] | None,
        config: GenerationConfig,
        texts: Mapping[tuple[int, ...], str],
        prefix: prompt.Prefix,
        generator: torch.Generator | None,
    ) -> list[list[Answer]]:
        """As `write`, for one batch; `texts` are the answers that may be given, by their ids, if only some may."""
        encoded, prefixes = self.read(instructions, patches, prefix)
        width = prefixes.shape[1]
        results = generate(
            self.module.backbone,
            encoded,
            replace(config, max_tokens=config.max_tokens + width, min_tokens=0 if texts else config.min_tokens + width),
            source_words=max(map(len, instructions)) + 2,
            trie=Trie(texts) if texts else None,
            prefix_ids=prefixes if width else None,
            generator=generator,
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
    def weigh(
        self,
        task: str,
        instructions: Sequence[Sequence[int]],
        patches: Sequence[Tensor] | None,
        choices: list[str],
        prefix: prompt.Prefix | None = None,
    ) -> list[list[Answer]]:
        """Weigh all choices as answers to each instruction; arguments as in `write`.

        Returns:
            For each instruction all choices, the likeliest first; their probabilities sum to 1.
        """
        if not instructions:
            return []
        encoded, prefixes = self.read(instructions, patches, prefix or self.settings(task).get("prefix") or "none")
        scores = score_candidates(
            self.module.backbone,
            encoded,
            Trie(self.answer_ids(choices)),
            prefix_ids=prefixes,
            chunk=max(1, CHUNK // len(instructions)),
        )
        ordered, order = scores.sort(dim=1, descending=True, stable=True)
        return [
            [Answer(choices[place], score) for place, score in zip(places, values, strict=True)]
            for places, values in zip(order.tolist(), ordered.tolist(), strict=True)
        ]

    def answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """Answers as the decoder writes them: behind a blank."""
        return self.tokenizer.encode_batch([f" {answer}" for answer in answers])


def pad(rows: Sequence[Sequence[int]], value: int = PAD) -> Tensor:
    """Ragged rows to `int64[rows, longest]`, padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.long)


def search_config(settings: Mapping[str, Any], options: Mapping[str, Any], num_captions: int = 1) -> GenerationConfig:
    """How answers are searched: a task's `settings`, changed by `options`.

    Raises:
        ArgumentError: an unknown option, or more captions than beams.
    """
    chosen = {name: value for name, value in settings.items() if name not in prompt.ASKED} | dict(options)
    if chosen.get("sample") and "beams" not in options:
        chosen["beams"] = num_captions  # each is a draw of its own
    try:
        config = GenerationConfig(**chosen)
    except TypeError as error:
        raise ArgumentError(f"there is no such option: {str(error).split('argument ')[-1]}") from None
    if not 1 <= num_captions <= config.beams:
        raise ArgumentError(
            f"num_captions={num_captions} with beams={config.beams}; give 1 to {config.beams}, or more beams"
        )
    return config


def each_photo(
    images: Sequence[Any],
    prepare: Callable[[Any], Prepared],
    ask: Callable[[list[Prepared]], Iterable[Result]],
    batch_size: int,
) -> Iterator[Result | ImageError]:
    """Prepare photos on threads and ask them in batches; one that cannot be used is lost alone.

    Args:
        images: in any form.
        prepare: one of them, to what the networks read.
        ask: a batch of those that could be prepared, to one result each.
        batch_size: photos of a batch.

    Yields:
        For each photo, in order, its result, or what is wrong with it.

    Raises:
        ArgumentError: an impossible batch size.
    """
    if batch_size < 1:
        raise ArgumentError(f"batch_size={batch_size} is below 1; give 1 or more")

    def attempt(image: Any) -> Prepared | ImageError:
        try:
            return prepare(image)
        except ImageError as error:
            return error

    prepared = ordered_map(attempt, images, ahead=2 * batch_size)
    while part := list(islice(prepared, batch_size)):
        good = [item for item in part if not isinstance(item, ImageError)]
        found: Iterator[Result] = iter(ask(good) if good else ())
        yield from (item if isinstance(item, ImageError) else next(found) for item in part)
