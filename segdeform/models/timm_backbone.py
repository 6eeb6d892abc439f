"""Networks of timm (PyTorch Image Models) as feature extractors: `model.backbone: timm/NAME`.

timm builds the network with `features_only` and an output stride; here its parts are made such that
the rest of this package can work with them: exact strides at any size of picture, BatchNorm apart
from its activation, explicit padding, names of the convolutions that each BatchNorm follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from cuda_ops.layers import DeformConv2d
from segdeform.errors import ConfigError
from segdeform.models.features import Backbone, Features
from segdeform.models.resizing import cut
from segdeform.models.same_padding import padded_pool, plain_convolution

TIMM = "timm/"  # before the name in a config
_ROWS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # what blocks stand in, side by side
_PROBE = (64, 96)  # pixels: two and three values at the largest stride


class TimmBackbone(Backbone):
    """Is a network of timm without what follows its last stage.

    Pictures are padded below and to the right, by zeros after normalisation, to a multiple of the
    largest stride, so that each stage halves its maps exactly; the features are cut to
    ceil(size / stride). The first features of strides 4 and 8, those before the last and the last
    ones are what heads see.

    Args:
        network: built by timm with `features_only`, its `feature_info` telling strides.

    Raises:
        ConfigError: its maps are not [N, C, H / stride, W / stride], or a stride is missing.
    """

    deformable_kernels = (3, 5, 7)

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network = network
        info: Any = network.feature_info
        strides, widths = list(info.reduction()), list(info.channels())
        self._places = stages_of(strides, name)
        *_, self.middle_stride, self.stride = (strides[place] for place in self._places)
        self.low_channels, self.second_channels, self.middle_channels, self.channels = (
            widths[place] for place in self._places
        )
        # Blurs mirror the border of their maps, which takes more values than one.
        blurs = any(hasattr(layer, "filt_size") for layer in network.modules())
        self.least = 3 * self.stride if blurs else 0
        _split_activations(network)
        _write_padding_down(network)
        self.norm_pairs = _probe(self, name, [(w, s) for w, s in zip(widths, strides, strict=True)])

    def forward(self, x: Tensor) -> Features:  # [N, C, H, W]
        rows, columns = x.shape[-2:]
        whole = [_shrunk(side, self.stride) * self.stride for side in (rows, columns)]
        if torch.compiler.is_compiling():  # by steps that hold for all sizes
            more = self.stride - 1
            maps = self.network(cut(F.pad(x, (0, more, 0, more)), (whole[0], whole[1])))
        else:
            whole = [max(side, self.least) for side in whole]
            maps = self.network(F.pad(x, (0, whole[1] - columns, 0, whole[0] - rows)))
            for place, stride in zip(self._places, self.stage_strides, strict=True):
                if maps[place].shape[-2:] != (whole[0] // stride, whole[1] // stride):
                    raise ValueError(f"features of stride {stride} have another size")
        low, second, middle, high = (
            cut(maps[place], (_shrunk(rows, stride), _shrunk(columns, stride)))
            for place, stride in zip(self._places, self.stage_strides, strict=True)
        )
        return Features(low, middle, high, second if self.gives_second else None)

    @property
    def picture_channels(self) -> int:
        """C of the pictures."""
        return _channels(self.network)

    def strides(self) -> list[tuple[nn.Module, int]]:
        """Lists the layers that look at several places, with the stride of what goes into them."""
        seen: list[tuple[nn.Module, int]] = []

        def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append((layer, _PROBE[1] // inputs[0].shape[-1]))

        _run_once(
            self.network,
            lambda name, layer: (
                layer.register_forward_pre_hook(note)
                if hasattr(layer, "kernel_size") or hasattr(layer, "filt_size")
                else None
            ),
        )
        return seen

    def blocks(self) -> dict[str, nn.Module]:
        """Lists the blocks of several weighted layers that its stages repeat, in their order."""
        found: dict[str, nn.Module] = {}
        for name, parent in self.named_modules():
            if not isinstance(parent, _ROWS) and not type(parent).__name__.endswith("Stage"):
                continue
            for own, child in parent.named_children():
                kinds = (nn.Conv2d, nn.Linear, DeformConv2d)
                if sum(isinstance(layer, kinds) for layer in child.modules()) > 1:
                    found[f"{name}.{own}"] = child
        return {
            name: block
            for name, block in found.items()
            if not any(other.startswith(f"{name}.") for other in found)
        }


def _shrunk(side: int, stride: int) -> int:
    return (side - 1) // stride + 1  # as `enlarge` has it


def stages_of(strides: list[int], name: str) -> tuple[int, int, int, int]:
    """Returns which features are those of strides 4 and 8, those before the last, and the last."""
    last = len(strides) - 1
    if 4 not in strides or 8 not in strides or last < 2:
        raise ConfigError(
            f"model.backbone = {TIMM}{name} has features at strides {strides}; a head here needs "
            "those of 4, 8 and more"
        )
    return strides.index(4), strides.index(8), last - 1, last


def _split_activations(network: nn.Module) -> None:
    """Puts a BatchNorm and its activation in the place of timm's layers that are both, in place."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if not isinstance(child, nn.BatchNorm2d) or type(child).__name__ != "BatchNormAct2d":
                continue
            norm = nn.BatchNorm2d(
                child.num_features, child.eps, child.momentum, child.affine, device="meta"
            )
            norm._parameters.update(child._parameters)
            norm._buffers.update(child._buffers)
            after = [layer for layer in child.children() if type(layer) is not nn.Identity]
            setattr(parent, name, nn.Sequential(norm.train(child.training), *after))


def _write_padding_down(network: nn.Module) -> None:
    """Puts explicit padding in the place of that which is computed from the size, in place.

    Weights that are standardised stay so.
    """
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d) and type(child).__name__ == "Conv2dSame":
                setattr(parent, name, plain_convolution(child))
            elif isinstance(child, nn.AvgPool2d) and type(child).__name__ == "AvgPool2dSame":
                setattr(parent, name, padded_pool(child, 0.0))
            elif isinstance(child, nn.MaxPool2d) and type(child).__name__ == "MaxPool2dSame":
                setattr(parent, name, padded_pool(child, -math.inf))


def _probe(
    backbone: TimmBackbone, name: str, expected: list[tuple[int, int]]
) -> tuple[tuple[str, str], ...]:
    """Runs the network once; returns the (convolution, BatchNorm) that follow each other, by name.

    Raises ConfigError: its maps are not as it says (width, stride).
    """
    made: dict[int, tuple[str, Tensor]] = {}
    pairs: list[tuple[str, str]] = []

    def note(conv: str, output: Tensor) -> None:
        made[id(output)] = (conv, output)  # the tensor is kept, so that its id stays its own

    def look(norm: str, given: Tensor) -> None:
        if id(given) in made:
            pairs.append((made[id(given)][0], norm))

    def hook(layer_name: str, layer: nn.Module) -> RemovableHandle | None:
        path = f"network.{layer_name}"
        if isinstance(layer, nn.Conv2d):
            return layer.register_forward_hook(lambda _layer, _x, y: note(path, y))
        if isinstance(layer, nn.BatchNorm2d):
            return layer.register_forward_pre_hook(lambda _layer, x: look(path, x[0]))
        return None

    try:
        maps = _run_once(backbone.network, hook)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"model.backbone = {TIMM}{name} does not take pictures of any size: "
            f"{str(error).partition(chr(10))[0] or type(error).__name__}"
        ) from error
    shapes = [tuple(values.shape[1:]) for values in maps]
    rows, columns = _PROBE
    if shapes != [(width, rows // stride, columns // stride) for width, stride in expected]:
        raise ConfigError(
            f"model.backbone = {TIMM}{name} makes maps of {shapes} from {rows}x{columns} pixels, "
            "which heads here do not take"
        )
    return tuple(_once(pairs))


@torch.no_grad()
def _run_once(
    network: nn.Module, hook: Callable[[str, nn.Module], RemovableHandle | None]
) -> list[Tensor]:
    """Runs a network on an empty picture, with a hook for each layer for which there is one."""
    first = next(network.parameters())
    hooks = [hook(name, layer) for name, layer in network.named_modules()]
    training = network.training
    picture = first.new_zeros(1, _channels(network), *_PROBE)
    try:
        maps: list[Tensor] = network.eval()(picture)
    finally:
        for handle in hooks:
            if handle is not None:
                handle.remove()
        network.train(training)
    return maps


def _channels(network: nn.Module) -> int:
    return next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d)).in_channels


def _once(pairs: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Leaves out what runs or is read several times: a convolution then is not its norm's alone."""
    convs, norms = [conv for conv, _ in pairs], [norm for _, norm in pairs]
    for conv, norm in pairs:
        if convs.count(conv) == 1 and norms.count(norm) == 1:
            yield conv, norm
