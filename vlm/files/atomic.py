"""Files that appear whole or not at all: they are written beside their place and renamed into it."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Generator[Path, None, None]:
    """A path to write to; when the block ends, the file there takes the place of `path`.

    Where the block fails, `path` stays as it was. Several processes may write the same file at once.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file at once; its folder is made where it is missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file with `\\n` at the ends of its lines, as `write_bytes`."""
    write_bytes(path, text.encode())
