"""What every command shares: from arguments to an exit code, options by their usual names, and quick loading."""

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import tyro

from vlm.errors import ArgumentError, VLMError

Args = TypeVar("Args")

# options of commands, by the names that users of transformers know, and the fields of `GenerationConfig` they set
SEARCH_OPTIONS = {
    "num_beams": "beams",
    "max_length": "max_tokens",
    "sample": "sample",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
}


def command(
    name: str, kind: type[Args], run: Callable[[Args], int | None], doc: str | None, argv: Sequence[str] | None
) -> int:
    """Read the arguments of `vlm NAME` and do what they say.

    Args:
        name: of the command.
        kind: dataclass of its arguments.
        run: does the work; what it returns is the exit code, None is 0.
        doc: what `--help` says first.
        argv: the arguments; None: those of the process.

    Returns:
        The exit code: 2, after one line on stderr, where what the user gave cannot be used.
    """
    args = parse(name, kind, doc, argv)
    return exit_code(lambda: run(args))


def parse(name: str, kind: type[Args], doc: str | None, argv: Sequence[str] | None) -> Args:
    """Read the arguments of a command; a mistake, or `--help`, ends the process."""
    return tyro.cli(kind, args=argv, prog=f"vlm {name}", description=doc, config=(tyro.conf.AvoidSubcommands,))


def exit_code(work: Callable[[], int | None]) -> int:
    """Do the work of a command; a `VLMError` is printed as one line."""
    try:
        return work() or 0
    except VLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def search_options(args: Any, *names: str) -> dict[str, Any]:
    """Those options of a command, keys of `SEARCH_OPTIONS`, that the user gave, as fields of `GenerationConfig`."""
    given = {SEARCH_OPTIONS[name]: getattr(args, name) for name in names}
    return {field: value for field, value in given.items() if value is not None}


def check_top(top: int) -> None:
    """Refuse `--top` below 1.

    Raises:
        ArgumentError: see above.
    """
    if top < 1:
        raise ArgumentError(f"--top {top} is below 1; give 1 or more")


@contextmanager
def no_collections() -> Iterator[None]:
    """Import and load without garbage collections, and leave what was loaded out of later ones.

    Torch and timm make hundreds of thousands of objects that stay: looking through them again and again, and once more
    at exit, is a third of the time of a first caption (`benchmarks/caption_cli.py`).
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
