"""The exceptions that users see: one line each, saying what was wrong, where, and what to do."""

from collections.abc import Iterable


class VLMError(Exception):
    """Any failure that the caller can put right; commands print it alone and exit with status 2."""


class ImageError(VLMError, ValueError):
    """A picture that cannot be used."""


class ModelError(VLMError, ValueError):
    """Weights, a tokenizer or a configuration that cannot be used."""


class DataError(VLMError, ValueError):
    """A data set, shard or annotation file that cannot be used."""


class ArgumentError(VLMError, ValueError):
    """An option that has no meaning or does not fit the others."""


def check_list(name: str, value: object) -> None:
    """Refuse what is not a list: one text, which would be cut into its letters, or None.

    Raises:
        ArgumentError: see above; it is called `name`.
    """
    if not isinstance(value, Iterable):
        raise ArgumentError(f"{name}={value!r} is not a list; give a list")
    if isinstance(value, str | bytes):
        raise ArgumentError(f"{name}={value[:40]!r} is one text where a list belongs; put it into a list")


def quoted(text: str) -> str:
    """`text` as one line of reasonable length: escapes newlines and control characters, cuts out the middle."""
    return repr(text if len(text) <= 300 else f"{text[:140]}...{text[-140:]}")


def reason(error: Exception) -> str:
    """The library's own words in one line, or the exception's name where it has none."""
    text = getattr(error, "strerror", None) or str(error)
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:120] or type(error).__name__
