"""What a task is: how a model is asked, how its answer is read, and what it learns the task from.

Each file beside this one holds one task, a subclass of `Task`. A subclass says its name, its instruction and its search
as data, and overrides those methods in which the task differs from "an instruction in, a text out".
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from vlm.data.shards import Sample
from vlm.decoding.answer import Answer
from vlm.decoding.config import GenerationConfig
from vlm.errors import ArgumentError
from vlm.models.config import EOS, PAD
from vlm.predictor import Photo, Predictor, Prefix, decoder_prefix, encoder_ids
from vlm.tokenizer import Tokenizer

T = TypeVar("T")

OFA_BASE = "ofa:OFA-Sys/ofa-base"  # the `example_model` of OFA's tasks

# how captions are searched; 3-gram repeats are never wanted in one sentence
SENTENCE_SEARCH: dict[str, Any] = {"beams": 5, "max_tokens": 20, "no_repeat_ngram": 3}

# how texts are drawn at random. Label smoothing (0.1) teaches every piece of the vocabulary a little probability, which
# in sum is one piece in ten: without both limits, one word in seven that `tiny` draws is none of its training captions'
FLUENT: dict[str, Any] = {"temperature": 0.7, "top_p": 0.8}


@dataclass(frozen=True)
class TrainingExample:
    """One answer to learn, in ids.

    Attributes:
        source: what the encoder reads.
        prefix: what the decoder is given before it answers, start token first.
        previous: what the decoder reads: the prefix and the answer.
        target: what the decoder shall generate, end token last; padding where the prefix goes on.
        weight: how much its tokens count.
    """

    source: list[int]
    prefix: list[int]
    previous: list[int]
    target: list[int]
    weight: float = 1.0

    @property
    def num_tokens(self) -> int:
        """How many tokens are learned, the end token among them."""
        return len(self.target) - len(self.prefix) + 1


@dataclass(frozen=True)
class TrainingRules:
    """What examples a run learns from.

    Attributes:
        max_tokens: longest answer.
        max_source: longest instruction that the encoder reads, start and end token included.
        max_target: longest sequence that the decoder reads.
        ofa_captions: captions as OFA learns them: at most 20 words, without punctuation, otherwise as they are.
        made_questions: share of the questions that are made from captions and boxes, see `vlm.data.questions`.
        answer_sets: sources of questions whose several answers are together the one right answer, as in DAQUAR.
        weighted_answers: learn the answer that most people gave, weighted by their share; otherwise any answer, as
            often as people gave it.
    """

    max_tokens: int = 32
    max_source: int = 1024
    max_target: int = 1024
    ofa_captions: bool = False
    made_questions: float = 0.0
    answer_sets: tuple[str, ...] = ()
    weighted_answers: bool = False


class Task:
    """One thing that a model can do.

    Class attributes:
        name: as configurations, commands and benchmarks call it.
        does: what a model with this task can do, to complete "it can ...".
        defaults: settings where a model's `config.json` says nothing else: `prompt`, the instruction, in which `{}` is
            replaced by the input; `prefix`, what the decoder is given before the answer; those named in `extra`; and
            fields of `GenerationConfig`, the search.
        extra: names of settings that only this task has.
        photo: whether the task needs a photo, takes one, or is about text alone.
        inputs: names of its inputs, in order.
        optional_inputs: names of further inputs, which may be left out.
        output: what the answer consists of: pieces of text, locations or image codes.
        metric: name of the figures by which training validates it, see `eval.validation`; None: it is not validated.
        reward: name of the reward by which it can be learned self-critically; None: it cannot.
        count_name: the option that says how many answers are wanted, for errors.
        example_model: a public model that has the task, for errors; None: there is none.
        one_source: whether all examples of a photo have the same instruction.

    Args:
        tokenizer: the model's.
        image_size: side of the square that photos are resized to, in pixels.
        settings: of this model, where they differ from `defaults`.
        rules: what training learns from.
    """

    name: ClassVar[str]
    does: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]]
    extra: ClassVar[tuple[str, ...]] = ()
    photo: ClassVar[Literal["needed", "optional", "none"]] = "needed"
    inputs: ClassVar[tuple[str, ...]] = ()
    optional_inputs: ClassVar[tuple[str, ...]] = ()
    output: ClassVar[Literal["text", "locations", "codes"]] = "text"
    metric: ClassVar[str | None] = None
    reward: ClassVar[str | None] = None
    count_name: ClassVar[str] = "count"
    example_model: ClassVar[str | None] = None
    one_source: ClassVar[bool] = False

    def __init__(
        self,
        tokenizer: Tokenizer,
        image_size: int,
        settings: Mapping[str, Any] | None = None,
        rules: TrainingRules | None = None,
    ):
        self.tokenizer, self.image_size, self.rules = tokenizer, image_size, rules or TrainingRules()
        allowed = {
            "text": tokenizer.text_range,
            "locations": (tokenizer.bin_start, tokenizer.vocab_size),
            "codes": (tokenizer.code_start, tokenizer.bin_start),
        }[self.output]
        self.settings: dict[str, Any] = {"allowed": allowed, **self.defaults, **(settings or {})}

    @property
    def prompt(self) -> str:
        return self.settings["prompt"]

    @property
    def prefix(self) -> Prefix:
        return self.settings.get("prefix") or "none"

    @property
    def one_encoding(self) -> bool:
        """Whether the encoder reads the same for all examples of a photo."""
        return self.one_source or self.prefix == "source_only"

    def search(self, options: Mapping[str, Any] | None = None, count: int = 1) -> GenerationConfig:
        """How answers are searched.

        Args:
            options: fields of `GenerationConfig` that differ from the task's settings.
            count: answers that are wanted.

        Raises:
            ArgumentError: an unknown option, or more answers than beams.
        """
        options = options or {}
        own = {name: value for name, value in self.settings.items() if name not in ("prompt", "prefix", *self.extra)}
        chosen = own | dict(options)
        if chosen.get("sample"):
            if self.output == "text":
                top_k = chosen.get("top_k")  # the user's limit takes the place of top_p
                chosen = {name: value for name, value in FLUENT.items() if not (top_k and name == "top_p")} | chosen
            if "beams" not in options:
                chosen["beams"] = count  # each is a draw of its own
        try:
            config = GenerationConfig(**chosen)
        except TypeError as error:
            raise ArgumentError(f"there is no such option: {str(error).split('argument ')[-1]}") from None
        if isinstance(count, bool) or not isinstance(count, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArgumentError(f"{self.count_name}={count!r} is not a whole number; give 1 or more")
        if not 1 <= count <= config.beams:
            raise ArgumentError(
                f"{self.count_name}={count} with beams={config.beams}; give 1 to {config.beams}, or more beams"
            )
        return config

    # Prediction

    def check(self, photos: Sequence[Any] | None, columns: Sequence[Sequence[Any]]) -> None:
        """Refuse photos and inputs that do not fit the task or each other.

        Args:
            photos: what is asked about, in any form; None for text alone.
            columns: for each kind of input, one for each photo.

        Raises:
            ArgumentError: see above.
        """
        if photos is None and self.photo == "needed":
            raise ArgumentError(f"{self.name} is about photos; give some")
        if photos is not None and self.photo == "none":
            raise ArgumentError(f"{self.name} is about text alone; give None instead of photos")
        names = [*self.inputs, *(f"perhaps {name}" for name in self.optional_inputs)]
        if not len(self.inputs) <= len(columns) <= len(names):
            photo = [] if self.photo == "none" else ["a photo"]
            raise ArgumentError(
                f"{self.name} takes {', '.join([*photo, *names])}; {len(columns)} inputs were given beside the photos"
            )
        lengths = {len(column) for column in ([] if photos is None else [photos]) + list(columns)}
        if len(lengths) > 1:
            counts = " and ".join(map(str, sorted(lengths)))
            raise ArgumentError(f"{self.name} was given lists of {counts} items; give lists of one length")

    def source(self, photo: Photo | None, *inputs: Any) -> list[int]:
        """Ids of the instruction.

        Args:
            photo: what is asked about; None for text alone.
            inputs: what is asked: a question, a phrase, a box.

        Raises:
            ArgumentError: the input cannot be used.
        """
        return self.tokenizer.encode(self.prompt.format(*inputs) if inputs else self.prompt)

    def read(self, answers: list[Answer], photo: Photo | None) -> Any:
        """What the answers mean, the best first."""
        return answers

    def run(
        self,
        predictor: Predictor,
        photos: Sequence[Photo] | None,
        *columns: Sequence[Any],
        choices: Sequence[str] | None = None,
        prefix: Prefix | None = None,
        count: int = 1,
        seed: int | Sequence[int] | None = None,
        **options: Any,
    ) -> list[Any]:
        """Ask once about each photo, or each text.

        Args:
            predictor: the model.
            photos: the same photo as often as it is asked about; None for text alone.
            columns: for each kind of input, one for each photo.
            choices: the only answers that may be given, each once; None: any text.
            prefix: what the decoder is given before it answers; None: as the settings say.
            count: answers that are wanted of each.
            seed: of the random numbers, where the search samples; or one for each photo or text.
            options: fields of `GenerationConfig` that differ from the settings.

        Returns:
            What `read` makes of each.

        Raises:
            ArgumentError: an input cannot be used, or options exclude each other.
        """
        about = [None] * len(columns[0]) if photos is None else photos
        found = predictor.generate(
            [self.source(photo, *inputs) for photo, *inputs in zip(about, *columns, strict=True)],
            patches_of(photos),
            self.search(options, count),
            prefix=prefix or self.prefix,
            choices=choices,
            codes=self.output == "codes",
            seed=seed,
        )
        return [self.read(answers, photo) for answers, photo in zip(found, about, strict=True)]

    def no_search(self, options: Mapping[str, Any]) -> None:
        """Refuse options of a search, for tasks that score given answers.

        Raises:
            ArgumentError: there is one.
        """
        if options:
            raise ArgumentError(f"{next(iter(options))} has no meaning for {self.name}, which does not search; omit it")

    def prediction(self, found: Any, *inputs: Any) -> Any:
        """What the evaluation harness keeps of a result, as JSON: the best text."""
        return found[0].text

    # Training

    @classmethod
    def in_sample(cls, sample: Sample) -> bool:
        """Whether a sample's record holds something that this task is learned from."""
        return False

    @classmethod
    def texts(cls, sample: Sample) -> Iterator[str]:
        """The texts of a sample that a new tokenizer learns its pieces from."""
        yield from ()

    @classmethod
    def annotate(cls, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Add to the records of all samples what this task is learned from and one sample alone does not say."""
        return samples

    def examples(self, sample: Sample, rng: random.Random, count: int) -> list[TrainingExample]:
        """What a step learns from a sample.

        Args:
            sample: a photo and its record.
            rng: the only source of randomness.
            count: examples that are wanted.

        Returns:
            `count` examples; none where the sample holds nothing that the model can read and generate.
        """
        return []

    def unreadable(self, sample: Sample) -> int:
        """How many answers of a sample are left out, because they or their questions are empty or too long."""
        return 0

    def answers(self, sample: Sample) -> Iterable[str]:
        """The answers that a sample teaches, for a closed set of answers."""
        return ()

    def checks(self, sample: Sample) -> Iterator[tuple[tuple[Any, ...], Sequence[str]]]:
        """What validation asks about a sample: the inputs, and what people said."""
        yield from ()

    def example(self, source: Sequence[int], answer: Sequence[int], weight: float = 1.0) -> TrainingExample:
        """Put the ids of an instruction and of its answer together."""
        read, start = encoder_ids(source, self.prefix), decoder_prefix(source, self.prefix)
        target = [PAD] * (len(start) - 1) + [*answer, EOS]
        return TrainingExample(read, start, [*start, *answer], target, weight)


def patches_of(photos: Sequence[Photo] | None) -> list[Any] | None:
    """The patches of photos; None for text alone."""
    return None if photos is None else [photo.patches for photo in photos]


def choose(items: Sequence[T], count: int, rng: random.Random) -> list[T]:
    """`count` items in random order, each as often as the others give or take one; none of no items."""
    chosen: list[T] = []
    while items and len(chosen) < count:
        chosen += rng.sample(items, min(len(items), count - len(chosen)))
    return chosen
