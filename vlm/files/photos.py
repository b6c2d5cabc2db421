"""The photos that paths, folders and patterns name."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from vlm.errors import ImageError, quoted, reason
from vlm.image import URL

IMAGE_SUFFIX = re.compile(
    r"\.(jpe?g|jpe|jfif|mpo|a?png|webp|gif|tiff?|bmp|dib|p[pgbn]m|avif|hei[cf]|jp2|j2k)", re.IGNORECASE
)


def expand_paths(patterns: str | Sequence[str]) -> list[Path]:
    """Files, folders and globs, as given on a command line, to the picture files they name.

    A folder stands for the images directly inside it, in the order of their names; `folder/**` reaches nested ones.
    Globs (`*`, `?`, `[...]`, `**`) are for patterns that the shell was kept from expanding. Folders and globs take
    only names with an image suffix, hidden files aside; a path spelled out is returned whatever it is called, even
    if nothing is there, so that `load_image` reports it as that one picture's error. A folder or a glob without images
    is returned likewise where other patterns have some.

    Returns:
        Paths in the order of `patterns`, each once.

    Raises:
        ImageError: there is no image at all: only folders without any, and globs that match none.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found: dict[str, Path] = {}
    empty: list[ImageError] = []
    for pattern in patterns:
        try:
            paths = _expand(os.path.expanduser(pattern))
        except ImageError as error:
            empty.append(error)
            paths = [Path(pattern)]
        for path in paths:
            # The folder is resolved and the name is not: a/x.jpg and b/../a/x.jpg are one, two links are two.
            found.setdefault(os.path.join(os.path.realpath(path.parent), path.name), path)
    if empty and len(empty) == len(patterns):
        raise empty[0]
    return list(found.values())


def _expand(pattern: str) -> list[Path]:
    """The pictures of one pattern; raises ImageError where there are none."""
    if not pattern:
        raise ImageError("an image path is empty; name a file, a folder or a glob")
    if os.path.isdir(pattern):
        images = _images_in(Path(pattern))
        if not images:
            hint = quoted(os.path.join(pattern, "**"))
            raise ImageError(f"the folder {quoted(pattern)} contains no images; give {hint} to include its subfolders")
        return images
    if os.path.exists(pattern) or not glob.has_magic(pattern) or URL.match(pattern):
        return [Path(pattern)]
    images: list[Path] = []
    for match in map(Path, glob.glob(pattern, recursive=True)):
        images += _images_in(match) if os.path.isdir(match) else [match] if _is_image_file(match) else []
    if not images:
        raise ImageError(f"no image matches {quoted(pattern)}; check the pattern and the folder it starts from")
    return sorted(images)


def _images_in(folder: Path) -> list[Path]:
    """The images directly inside `folder`, sorted; hidden files (macOS leaves `._photo.jpg`) are skipped."""
    try:
        return sorted(path for path in folder.iterdir() if path.name[0] != "." and _is_image_file(path))
    except OSError as error:
        raise ImageError(f"the folder {quoted(str(folder))} cannot be listed: {reason(error)}") from None


def _is_image_file(path: Path) -> bool:
    """A link that leads nowhere counts, so that it is reported as a photo that cannot be opened."""
    broken = os.path.islink(path) and not os.path.exists(path)
    return bool(IMAGE_SUFFIX.fullmatch(path.suffix)) and (os.path.isfile(path) or broken)
