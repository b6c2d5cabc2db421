"""Folders that one run at a time writes into."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from vlm.errors import ArgumentError

LOCK = ".lock"  # the file in the folder; it stays there, and is locked only while a run writes


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Generator[Path, None, None]:
    """Make a folder where it is missing, and keep other processes from writing into it; a killed process lets go.

    Raises:
        ArgumentError: another run is writing into the folder, or it cannot be made or written to.
    """
    path = Path(folder)
    shown = repr(str(path))
    lock = FileLock(path / LOCK)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)  # pyright: ignore[reportUnknownMemberType]
    except Timeout:
        raise ArgumentError(
            f"another run is writing into {shown}; wait until it has ended, or name another folder"
        ) from None
    except FileExistsError:
        raise ArgumentError(f"{shown} is a file; name a folder") from None
    except OSError as error:
        raise ArgumentError(f"{shown} cannot be written: {error.strerror}; name another folder") from None
    try:
        yield path
    finally:
        lock.release()
