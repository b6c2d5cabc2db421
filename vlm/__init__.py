"""Vision-language foundation model: one backbone for images and text, with small weights that ship in the package."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm.diffusion.load import load_pipeline as load_pipeline
    from vlm.encoders import Encoders as Encoders
    from vlm.encoders import load_encoders as load_encoders
    from vlm.model import Model as Model
    from vlm.model import load as load

_PUBLIC = {
    "load": "vlm.model",
    "Model": "vlm.model",
    "load_encoders": "vlm.encoders",
    "Encoders": "vlm.encoders",
    "load_pipeline": "vlm.diffusion.load",
}
__all__ = sorted(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    # torch is imported on first use, so that commands answer --help and typos at once
    if name == "__version__":
        from importlib.metadata import version

        return version("vlm-foundation")
    if name not in _PUBLIC:
        raise AttributeError(f"vlm has no {name!r}; public names: {', '.join(__all__)}")
    return getattr(import_module(_PUBLIC[name]), name)
