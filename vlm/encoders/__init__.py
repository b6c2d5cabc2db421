"""Importable encoders: photos and sentences to vectors of one space, whoever made the weights."""

from contextlib import nullcontext
from pathlib import Path

import torch

from vlm.encoders.base import Encoders
from vlm.encoders.pair import PairEncoders, pair_encoders
from vlm.errors import ModelError, VLMError
from vlm.files import hub
from vlm.files.bundle import load_bundle
from vlm.models.device import move

__all__ = ["Encoders", "PairEncoders", "load_encoders"]


def load_encoders(name: str | Path = "tiny", *, device: str | torch.device = "cpu") -> Encoders:
    """Load an encoder pair, in float32 and evaluation mode.

    Args:
        name: a bundled name (`tiny`) or a folder with a pair; `open_clip:ARCHITECTURE/TAG` or
            `open_clip:ARCHITECTURE/FILE`, where open_clip knows the architecture; `timm:MODEL` or `timm:MODEL/FILE` for
            photos alone. open_clip and timm fetch what a tag names from the network.
        device: where it runs.

    Raises:
        ModelError: there is no such model, or its files cannot be used.
        ArgumentError: the device cannot be used.
    """
    source = hub.resolve(name, ("model", "open_clip", "timm"))
    if source.kind == "model":
        encoders = pair_encoders(load_bundle(source, with_pair=True))
    else:
        from vlm.encoders.open_clip import load_open_clip
        from vlm.encoders.timm import load_timm

        try:
            own = Path(source.rest.partition("/")[2]).is_file()  # weights on disk need no hub
            with nullcontext() if own else hub.no_waiting():
                encoders = {"open_clip": load_open_clip, "timm": load_timm}[source.kind](source.name, source.rest)
        except VLMError:
            raise
        except Exception as error:  # both packages raise whatever their parts do
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ModelError(f"{source.name!r} cannot be loaded: {reason}") from None
    return move(encoders.eval(), device)
