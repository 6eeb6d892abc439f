"""Pages of a single file: templates that escape whatever they are given, pictures as data URIs."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image


def page_template(package: str, name: str, **filters: Any) -> Template:
    """Loads a package's template; names in it may be hostile, and a misspelt one is an error."""
    environment = Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(name)


def data_uri(image: Image.Image, kind: Literal["JPEG", "PNG"], quality: int = 82) -> str:
    """Returns a picture as the text that a page shows it by; `quality` is JPEG's."""
    file = BytesIO()
    options: dict[str, Any] = {"quality": quality} if kind == "JPEG" else {"optimize": True}
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
