"""What every command shares: from arguments to an exit code, and quick loading."""

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import tyro

from vlm.errors import VLMError

Args = TypeVar("Args")


def command(
    name: str, kind: type[Args], run: Callable[[Args], int | None], doc: str | None, argv: Sequence[str] | None
) -> int:
    """Read the arguments of `python -m tasks.NAME` and do what they say.

    Args:
        name: of the command.
        kind: dataclass of its arguments.
        run: does the work; what it returns is the exit code, None is 0.
        doc: what `--help` says first.
        argv: the arguments; None: those of the process.

    Returns:
        The exit code: 2, after one line on stderr, where what the user gave cannot be used.
    """
    args = tyro.cli(kind, args=argv, prog=f"python -m tasks.{name}", description=doc)
    try:
        return run(args) or 0
    except VLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


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
