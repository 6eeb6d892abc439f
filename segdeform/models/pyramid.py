"""What the training crop lets a dilated convolution learn, and what it must not compute with.

A crop of c pixels is a map of m = ceil(c / stride) values. A tap that looks d values aside sees
padding alone wherever d >= m: it gets no gradient, stays at its random start, and wakes up on
larger maps, that is on pictures larger than the crop. One a little below m is learned at the
borders alone. So the rates of the pyramid shrink with the crop, and taps that no position of the
crop's map could reach are held at zero: without a gradient they stay there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segdeform.config.schema import ATROUS_HEADS, Config
from segdeform.models.deeplab import DeepLab

# Dilations of the pyramid at each output stride: the same field of view, in input pixels, made for
# crops of 512 pixels (Chen et al. 2017).
ASPP_RATES = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}
_CROP = 512
_PROBE = 64  # pixels, two values at the largest stride


def fitting_rates(output_stride: int, crop: tuple[int, int]) -> tuple[int, ...]:
    """Returns the pyramid's rates for a crop (H, W): the usual ones, smaller for smaller crops.

    The largest is 18 / 32 of the smaller side of the crop's map, as it is at 512 pixels and output
    stride 16.
    """
    rows = -(-min(crop) // output_stride)
    share = min(1.0, rows * output_stride / _CROP)
    return tuple(max(1, round(rate * share)) for rate in ASPP_RATES[output_stride])


def fit_to_crop(config: Config) -> Config:
    """Fills in what the config leaves to the training crop: the pyramid's rates, the large tile."""
    model, inference = config.model, config.eval
    if model.aspp_rates is None and model.head in ATROUS_HEADS:
        rates = fitting_rates(model.output_stride, config.data.crop)
        model = model.model_copy(update={"aspp_rates": rates})
    if inference.automatic_tile is None:
        tile = fitting_tile(config.data.crop, inference.scales)
        inference = inference.model_copy(update={"automatic_tile": tile})
    return config.model_copy(update={"model": model, "eval": inference})


def fitting_tile(crop: tuple[int, int], scales: Sequence[float]) -> int:
    """Returns the side of a window, pixels, that no scale makes larger than the crop's longer."""
    return max(1, int(max(crop) / max(scales)))


@torch.no_grad()
def silence_unreachable_taps(model: DeepLab, crop: tuple[int, int]) -> dict[str, int]:
    """Sets the taps to zero that see nothing but padding on maps of the crop (H, W), in place.

    Deformable convolutions are left alone: their taps move. Returns the dilation of every layer
    that had such taps with a weight, by name.
    """
    silenced = {}
    for name, (conv, stride) in _dilated(model).items():
        rows, columns = (-(-side // stride) for side in crop)
        (height, width), (down, right) = conv.kernel_size, conv.dilation
        dead_rows = _offsets(height, down) >= rows
        dead_columns = _offsets(width, right) >= columns
        dead = (dead_rows[:, None] | dead_columns).to(conv.weight.device)
        if conv.weight[..., dead].any():
            conv.weight.masked_fill_(dead, 0.0)
            silenced[name] = max(down, right)
    return silenced


def misfit(silenced: dict[str, int], crop: tuple[int, int], output_stride: int) -> str:
    """Words what `silence_unreachable_taps` found."""
    rates = ", ".join(map(str, sorted(set(silenced.values()))))
    size = "x".join(str(-(-side // output_stride)) for side in crop)
    return (
        f"the training crop {list(crop)} is a map of {size} at output stride {output_stride}: taps "
        f"at dilation {rates} ({', '.join(silenced)}) see nothing but padding there and are held "
        "at zero. A larger data.crop or smaller model.aspp_rates or deform.dilation would use them"
    )


def _offsets(taps: int, dilation: int) -> Tensor:  # [taps] distances from the middle
    return (torch.arange(taps) - taps // 2).abs() * dilation


def _dilated(model: DeepLab) -> dict[str, tuple[nn.Conv2d, int]]:
    """Finds the dilated plain convolutions and the strides at which they work."""
    strides: dict[nn.Module, int] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        strides[layer] = _PROBE // inputs[0].shape[-1]

    convs = {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Conv2d and max(layer.dilation) > 1
    }
    if not convs:
        return {}
    hooks = [layer.register_forward_pre_hook(note) for layer in convs.values()]
    training = model.training
    model.eval()(model.mean.new_zeros(1, model.mean.shape[1], _PROBE, _PROBE))
    model.train(training)
    for hook in hooks:
        hook.remove()
    return {name: (layer, strides[layer]) for name, layer in convs.items() if layer in strides}
