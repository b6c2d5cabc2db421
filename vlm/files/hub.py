"""Names of models: what they mean, in this one place, and the folders that they stand for.

A name is a bundled one (`tiny`), a local folder, a repository id of the Hugging Face hub (`OWNER/NAME`), or one of
these after a prefix that says whose weights they are.
"""

# the types that huggingface_hub gives some of its results are unknown
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

import json
import os
import socket
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from vlm.errors import ModelError

BUNDLED = Path(__file__).parents[1] / "weights"
FILES = ("config.json", "tokenizer.json", "model.safetensors")
PATIENCE = 5.0  # seconds until a server must have answered
LABEL_FILES = ("labels.json", "labels.safetensors")
PAIR_FILES = ("pair.json", "pair_tokenizer.json", "pair.safetensors")
# by kind, what users type; the first is the project's own
FORMS = {
    "model": "a bundled name ({bundled}), a folder or a hub id OWNER/NAME",
    "ofa": "ofa:FILE, ofa:FOLDER or ofa:OWNER/NAME for a checkpoint of OFA",
    "open_clip": "open_clip:ARCHITECTURE/TAG for a pair of open_clip",
    "timm": "timm:MODEL for an image encoder of timm",
    "hf": "hf:FOLDER or hf:OWNER/NAME for a model of transformers",
    "inception": "inception:FILE for the Inception network of FID",
}


@dataclass(frozen=True)
class ModelName:
    """What a name means.

    Attributes:
        name: as the user gave it.
        kind: whose weights: a key of `FORMS`.
        rest: the name without its prefix.
    """

    name: str
    kind: str
    rest: str

    def folder(self) -> Path:
        """The folder of one of the project's own models; one on the hub is fetched into the hub's cache.

        Raises:
            ModelError: there is no such model.
        """
        if self.rest in bundled():
            return BUNDLED / self.rest
        path = Path(os.path.expanduser(self.rest))  # unlike Path's, it leaves a user that does not exist alone
        if path.is_dir():
            return path
        if path.exists():
            raise ModelError(f"{self.name!r} is a file; give the folder that holds {', '.join(FILES)}")
        if not is_hub_id(self.rest):
            raise ModelError(f"no model {self.name!r}; give {choices(('model',))}")
        return fetch(self.rest, [*FILES, *PAIR_FILES, *LABEL_FILES])


def resolve(name: str | Path, kinds: Collection[str] = ("model",)) -> ModelName:
    """Read a model's name.

    Args:
        name: what the user gave.
        kinds: those that the caller can load, keys of `FORMS`.

    Raises:
        ModelError: the prefix is of another kind.
    """
    known = isinstance(name, str | os.PathLike)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not known or not os.fspath(name).strip():
        raise ModelError(f"{name!r} names no model; give {choices(kinds)}")
    text = os.fspath(name)
    prefix, colon, rest = text.partition(":")
    kind = prefix if colon and prefix in FORMS and prefix != "model" else "model"
    if kind not in kinds:
        raise ModelError(f"{text!r} cannot be used here; give {choices(kinds)}")
    return ModelName(text, kind, text if kind == "model" else rest)


def choices(kinds: Collection[str]) -> str:
    """What a user may type for a model of these kinds."""
    forms = [FORMS[kind].format(bundled=", ".join(bundled())) for kind in FORMS if kind in kinds]
    return "; ".join(forms)


def is_hub_id(name: str) -> bool:
    """Whether a name can be OWNER/NAME on the Hugging Face hub, rather than a path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def fetch(name: str, patterns: Sequence[str], ignore: Sequence[str] = ()) -> Path:
    """The files of a hub repository that match `patterns`, in the hub's own cache.

    Raises:
        ModelError: the hub has no such repository, or cannot be reached.
    """
    import huggingface_hub

    try:
        with no_waiting():
            return Path(
                huggingface_hub.snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=list(ignore))
            )
    except Exception as error:  # versions differ in the HTTP library whose errors come through
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"{name!r} is not a local folder and could not be fetched from the hub: {reason}") from None


@contextmanager
def no_waiting() -> Generator[None]:
    """Where the hub cannot be reached, look into its cache alone: its client would go on trying for a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(address: str) -> bool:
    """Whether something answers at the address of a server; behind a proxy, the answer is True without a try."""
    if getproxies().keys() & {"http", "https", "all"}:
        return True
    parts = urlsplit(address)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 443), timeout=PATIENCE):
            return True
    except (OSError, RuntimeError):  # a RuntimeError where sockets are forbidden
        return False


def bundled() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(p.parent.name for p in BUNDLED.glob("*/config.json"))


def bundled_tasks(name: str) -> list[str]:
    """The tasks of a model that ships with the package."""
    return list(json.loads((BUNDLED / name / "config.json").read_text(encoding="utf-8")).get("tasks", ()))
