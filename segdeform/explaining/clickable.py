"""The page on which a person clicks a point and sees what it rests on. One file, no network.

The page holds every layer's offsets (1/32 of a step, 16 bits) and modulations (1/100, 8 bits) and
follows them as `sampling.follow` does.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdeform.explaining.sampling import LayerSampling
from segdeform.files.html import data_uri, page_template

_SIDE = 1400  # pixels, the longer side of the picture in the page, at most
OFFSET_UNIT, MODULATION_UNIT = 32, 100


def render_page(
    title: str,
    image: NDArray[np.uint8],  # [H, W, 3] RGB
    layers: list[LayerSampling],
    pixels: list[tuple[int, int]],  # y, x: shown first
    facts: dict[str, Any],
) -> str:
    """Returns the page as HTML."""
    data = {
        "height": image.shape[0],
        "width": image.shape[1],
        "start": [{"y": y, "x": x} for y, x in pixels],
        "offsetUnit": OFFSET_UNIT,
        "modulationUnit": MODULATION_UNIT,
        "layers": [_packed(layer) for layer in layers],
    }
    shown = Image.fromarray(image)
    shown.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return page_template("segdeform.explaining", "page.html.j2").render(
        title=title,
        picture=data_uri(shown, "JPEG", quality=88),
        height=image.shape[0],
        width=image.shape[1],
        facts=facts,
        data=json.dumps(data).replace("<", "\\u003c"),
    )


def _packed(layer: LayerSampling) -> dict[str, Any]:
    offset = np.clip(np.rint(layer.offset * OFFSET_UNIT), -(2**15), 2**15 - 1).astype("<i2")
    modulation = np.clip(np.rint(layer.modulation * MODULATION_UNIT), 0, 255).astype(np.uint8)
    groups, taps = modulation.shape[:2]
    return {
        "name": layer.name,
        "groups": groups,
        "taps": taps,
        "kernel": layer.kernel,
        "step": layer.step,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "inputSize": layer.input_size,
        "inputStride": layer.input_stride,
        "size": layer.size,
        "offset": base64.b64encode(offset.tobytes()).decode(),
        "modulation": base64.b64encode(modulation.tobytes()).decode(),
    }
