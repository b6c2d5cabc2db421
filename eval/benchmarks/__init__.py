"""The benchmarks by name; nothing heavy is imported, so that a list of them comes at once."""

from difflib import get_close_matches

from eval.benchmark import Benchmark
from eval.benchmarks import (
    caption_languages,
    captions,
    class_folders,
    drawing,
    entailment,
    grounding,
    judgements,
    retrieval,
    roundtrip,
    scenes,
    sugarcrepe,
    text_to_image,
    vqa,
)
from vlm.errors import ArgumentError

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for module in (
        captions,
        caption_languages,
        retrieval,
        vqa,
        grounding,
        entailment,
        sugarcrepe,
        judgements,
        class_folders,
        text_to_image,
        drawing,
        roundtrip,
        scenes,
    )
    for benchmark in module.BENCHMARKS
}


def find(name: str) -> Benchmark:
    """A benchmark by name.

    Raises:
        ArgumentError: there is none.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    close = get_close_matches(name, BENCHMARKS, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    hint = f"{guess}`python -m eval list` shows them"
    raise ArgumentError(f"no benchmark {name!r}; {hint}")
