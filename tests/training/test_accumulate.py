"""A batch in parts: the same loss, gradient and weights; and blocks that are computed again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from segdeform.config.schema import Config
from segdeform.errors import ConfigError
from segdeform.files.tensors import read_tensors
from segdeform.machine.processes import own_rank
from segdeform.models import build_model
from segdeform.models.deeplab import DeepLab
from segdeform.models.recompute import recompute_blocks
from segdeform.training import state as states
from segdeform.training.loop import train
from tests.ranks import run_ranks
from tests.training.conftest import ReporterThat, send, tiny_config
from tests.training.test_distributed import (  # noqa: F401
    distance,
    partly_void,
    small_config,
    weights,
    without_kinks,
)

LOSSES: dict[str, Any] = {
    "pixels": {"loss": {"cross_entropy": 1, "focal": 1, "boundary": 0.5}, "label_smoothing": 0.1},
    "regions": {"loss": {"ohem": 1, "dice": 0.5, "lovasz": 0.5}, "ohem_keep": 0.4},
}


def logged_losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in lines if entry["kind"] == "train"]


@pytest.mark.parametrize(("loss", "auxiliary"), [("pixels", False), ("regions", True)])
def test_four_parts_are_the_whole_batch(
    partly_void: Path,  # noqa: F811
    weights: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loss: str,
    auxiliary: bool,
) -> None:
    """Of which some have no labelled pixel at all; after 20 steps, and all BatchNorm frozen."""
    build = states._build_network

    def smooth(*arguments: Any, **named: Any) -> tuple[DeepLab, str | None]:
        network, digest = build(*arguments, **named)
        # The auxiliary head has BatchNorm and dropout of its own.
        for module in network.modules():
            if isinstance(module, _DropoutNd):
                module.p = 0.0
            if isinstance(module, torch.nn.BatchNorm2d) and auxiliary:
                module.eval()
                module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
        return without_kinks(network), digest

    monkeypatch.setattr(states, "_build_network", smooth)
    ends, losses = [], []
    for parts in (1, 4):
        settings = {"class_weights": [0.2, 1.0, 3.0, 1.0, 2.0, 0.5, 1.5], "weight_decay": 0.0}
        config = small_config(
            weights, steps=20, lr=3e-3, batch_size=8, accumulate=parts, **settings, **LOSSES[loss]
        )
        model = config.model.model_copy(update={"auxiliary_head": auxiliary})
        config = config.model_copy(update={"model": model})
        run = tmp_path / str(parts)
        train(config, partly_void, run, device="cpu", workers=0, reporter=ReporterThat())
        ends.append(read_tensors(run / "model" / "model.safetensors"))
        losses.append(logged_losses(run))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert distance(ends[1], ends[0]) < 1e-6
    assert losses[0][-1] != losses[0][0]


def test_dropout_is_the_same_in_both_passes(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the gradient would be of other scores than the loss; and statistics move once a part."""
    seen: list[tuple[bool, Tensor]] = []
    forward = DeepLab.forward

    def look(self: DeepLab, images: Tensor) -> Any:
        output = forward(self, images)
        if self.training:
            seen.append((torch.is_grad_enabled(), output.logits.detach().clone()))  # type: ignore[union-attr]
        return output

    monkeypatch.setattr(DeepLab, "forward", look)
    config = tiny_config(steps=1, batch_size=6, accumulate=3, loss="dice")
    train(config, shapes, tmp_path, device="cpu", workers=0, reporter=ReporterThat())
    assert [graph for graph, _ in seen] == [False] * 3 + [True] * 3
    for (_, first), (_, second) in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(seen[0][1], seen[1][1])
    tensors = read_tensors(tmp_path / "model" / "model.safetensors")
    counts = {int(v) for name, v in tensors.items() if name.endswith("num_batches_tracked")}
    assert counts == {3}


@pytest.mark.parametrize("loss", ["focal", {"lovasz": 1, "cross_entropy": 0.5}])
def test_a_killed_run_in_parts_ends_with_the_same_bits(
    shapes: Path, tmp_path: Path, loss: Any
) -> None:
    config = tiny_config(steps=3, batch_size=4, accumulate=2, loss=loss, checkpointing=True)
    options: dict[str, Any] = {"device": "cpu", "workers": 0}
    train(config, shapes, tmp_path / "a", reporter=ReporterThat(), **options)
    with pytest.raises(Exception, match="saved at step 2"):
        train(config, shapes, tmp_path / "b", reporter=ReporterThat(2, send(15)), **options)
    train(config, shapes, tmp_path / "b", resume=True, reporter=ReporterThat(), **options)
    ends = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in "ab"]
    assert ends[0] == ends[1]
    other = tiny_config(steps=3, batch_size=4, accumulate=2, loss={"lovasz": 2.0})
    with pytest.raises(ConfigError, match=r"train\.\w+ is .* now and was"):
        train(other, shapes, tmp_path / "b", resume=True, reporter=ReporterThat(), **options)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"batch_size": 6, "accumulate": 4}, r"train\.accumulate = 4: use a multiple"),
        ({"batch_size": 2, "accumulate": 2}, "leaves one value a channel"),
    ],
)
def test_parts_that_cannot_be(
    shapes: Path, tmp_path: Path, keys: dict[str, int], says: str
) -> None:
    config = tiny_config(**keys)
    tiny = config.data.model_copy(update={"crop": (16, 16)})
    config = config.model_copy(update={"data": tiny})
    with pytest.raises(ConfigError, match=says):
        train(config, shapes, tmp_path, device="cpu", workers=0, reporter=ReporterThat())


def test_batch_norm_of_parts_is_told(shapes: Path, tmp_path: Path) -> None:
    reporter = ReporterThat()
    config = tiny_config(steps=1, batch_size=6, accumulate=2)
    train(config, shapes, tmp_path, device="cpu", workers=0, reporter=reporter)
    assert any("see 3 of the 6 crops of a step, those of one part" in m for m in reporter.messages)


@pytest.mark.parametrize(
    ("backbone", "blocks"), [("resnet18", 8), ("mobilenet_v2", 17), ("mobilenet_v3_large", 15)]
)
def test_blocks_computed_again_give_the_same_bits(backbone: str, blocks: int) -> None:
    """Outputs, gradients and statistics, and of less memory."""
    config = tiny_config()
    model = config.model.model_copy(update={"backbone": backbone})
    images = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    found = []
    for again in (False, True):
        torch.manual_seed(1)
        network = build_model(model, config.deform, 4).train()
        if again:
            assert recompute_blocks(network.backbone) == blocks
        kept: dict[int, int] = {}

        def pack(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        torch.manual_seed(2)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = network(images).logits
        own = {p.untyped_storage().data_ptr() for p in network.parameters()}
        size = sum(nbytes for place, nbytes in kept.items() if place not in own)
        logits.square().mean().backward()
        gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
        found.append((logits.detach(), gradients, network.state_dict(), size))
    (logits, gradients, state, size), (logits2, gradients2, state2, size2) = found
    assert torch.equal(logits, logits2) and state.keys() == state2.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, gradients2[name]), name
    for name, value in state.items():
        assert torch.equal(value, state2[name]), name
    assert size2 < 0.7 * size


def test_the_average_of_a_network_computed_again_is_its_own(shapes: Path, tmp_path: Path) -> None:
    """A copy of the network must not call the blocks of the one that it is a copy of."""
    scores = []
    for again in (False, True):
        config = tiny_config(steps=3, ema_decay=0.9, eval_every=1, checkpointing=again)
        run = tmp_path / str(again)
        train(config, shapes, run, device="cpu", workers=0, reporter=ReporterThat())
        lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
        scores.append([entry["miou"] for entry in lines if entry["kind"] == "val"])
        scores.append((run / "model" / "model.safetensors").read_bytes())
    assert scores[:2] == scores[2:]


def trains_smoothly(config: str, data: Path, run: Path) -> None:
    """Trains a network without kinks in one of several processes."""
    build = states._build_network

    def smooth(*arguments: Any, **named: Any) -> tuple[DeepLab, str | None]:
        network, digest = build(*arguments, **named)
        return without_kinks(network, own_rank()), digest

    states._build_network = smooth
    own = run if own_rank() == 0 else run.with_name("nowhere")
    options: dict[str, Any] = {"device": "cpu", "workers": 0, "reporter": ReporterThat()}
    train(Config.model_validate_json(config), data, own, **options)


def test_processes_in_parts_have_the_loss_of_the_whole_batch(
    partly_void: Path,  # noqa: F811
    weights: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Also a loss that no sum over pixels is: two passes, and scores exchanged in between."""
    losses, ends = [], []
    for size, parts in ((1, 1), (2, 2)):
        config = small_config(
            weights, steps=5, lr=3e-3, batch_size=8, accumulate=parts, **LOSSES["regions"]
        )
        run = tmp_path / str(size)
        run_ranks(size, trains_smoothly, config.model_dump_json(), partly_void, run)
        losses.append(logged_losses(run))
        ends.append(read_tensors(run / "model" / "model.safetensors"))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert distance(ends[1], ends[0]) < 1e-6
