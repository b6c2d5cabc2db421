"""Files that appear whole or not at all: they are written beside their place and renamed into it."""

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Generator[Path, None, None]:
    """A path to write to; when the block ends, the file there takes the place of `path`.

    Where the block fails, `path` stays as it was; where it is a link, the file that it leads to is replaced. Several
    processes may write the same file at once. A device or a pipe, such as `/dev/stdout`, is written into instead.
    """
    path = Path(os.path.realpath(path))
    into = path.exists() and not (path.is_file() or path.is_dir())
    folder = Path(tempfile.gettempdir()) if into else path.parent
    partial = folder / f"{path.name}.{os.getpid()}.partial"
    try:
        yield partial
        if into:
            with path.open("wb") as device:
                device.write(partial.read_bytes())
        else:
            os.replace(partial, path)
    except OSError as error:
        if error.filename in (str(partial), None):  # a name that the user knows; what fails to be written has none
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with suppress(OSError):  # what prevents this has prevented writing, too
            partial.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file at once; its folder is made where it is missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file with `\\n` at the ends of its lines, as `write_bytes`.

    Half of a surrogate pair, which UTF-8 cannot hold, becomes its escape, in JSON as in Python: `\\ud800`.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))
