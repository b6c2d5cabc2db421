"""HTML pages that need nothing else: templates, and small copies of photos inside them."""

# the types that jinja2 gives some of its results are unknown
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

import base64
import io
from typing import Any

from vlm.errors import ArgumentError, ImageError
from vlm.image import load_image

THUMBNAIL = 360  # pixels of the longer side


def template(name: str, *packages: str, **filters: Any) -> Any:
    """A jinja2 template; whatever is put into it is escaped.

    Args:
        name: its file.
        packages: whose folder `templates` is searched before that of `vlm.files`.
        filters: functions that the template calls.

    Raises:
        ArgumentError: jinja2 is not installed.
    """
    try:
        from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    except ModuleNotFoundError:
        raise ArgumentError("pages need jinja2; install it: pip install 'vlm-foundation[eval]'") from None

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "templates") for package in (*packages, "vlm.files")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(name)


def thumbnail(path: str) -> str | None:
    """A small copy of a photo as a `data:` address; None where it cannot be read any more."""
    try:
        image = load_image(path)
    except ImageError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
