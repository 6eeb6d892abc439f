"""What processes have together: the loss of a batch, a state, the statistics of BatchNorm."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segdeform.config.schema import TrainConfig
from segdeform.machine.processes import Processes, processes
from segdeform.models import build_model, freeze_batch_norm
from segdeform.models.frozen import FrozenBatchNorm2d
from segdeform.training.checkpoint import TrainState, optimizer_tensors
from segdeform.training.ema import averaged_model
from segdeform.training.losses import segmentation_loss
from segdeform.training.together import (
    average_statistics,
    batch_norm_warning,
    own_batch_norm,
    share_state,
    synchronize_batch_norm,
)
from tests.ranks import run_ranks
from tests.training.conftest import tiny_config

CPU, GPU = torch.device("cpu"), torch.device("cuda")


CASES: dict[str, dict[str, Any]] = {
    "cross entropy": {},
    "weights and smoothing": {"class_weights": (0.5, 2.0, 0.0), "label_smoothing": 0.2},
    "hard pixels, a share": {"loss": "ohem", "ohem_keep": 0.3, "ohem_threshold": 0.0},
    "hard pixels, all in one": {"loss": "ohem", "ohem_keep": 0.001, "ohem_threshold": 0.0},
    "hard pixels, a threshold": {"loss": "ohem", "ohem_keep": 0.0, "ohem_threshold": 0.3},
    "dice": {"loss": "dice"},
    "dice, weights": {"loss": "dice", "class_weights": (0.5, 2.0, 0.0)},
    "lovasz": {"loss": "lovasz"},
    "focal": {"loss": "focal", "class_weights": (0.5, 2.0, 0.0)},
    "boundary": {"loss": "boundary", "boundary_width": 1},
    "a sum": {"loss": {"cross_entropy": 1, "lovasz": 0.5, "dice": 0.25}},
}


def scores_and_labels() -> tuple[Tensor, Tensor, Tensor]:
    """Returns logits and auxiliary ones, [6, 3, 5, 7], and labels, most of them void in places."""
    generator = torch.Generator().manual_seed(0)
    logits, auxiliary = 2 * torch.randn(2, 6, 3, 5, 7, generator=generator)
    labels = torch.randint(0, 3, (6, 5, 7), generator=generator)
    void = torch.tensor([0.1, 0.99, 0.0, 0.5, 1.0, 1.0])[:, None, None]
    return logits, auxiliary, labels.where(torch.rand(6, 5, 7, generator=generator) >= void, 255)


def shares() -> dict[str, tuple[float, Tensor, Tensor]]:
    """Returns this process's share of each loss, with its gradients, for its part of the batch."""
    found = {}
    with processes(CPU) as peers:
        part = slice(6 * peers.rank // peers.size, 6 * (peers.rank + 1) // peers.size)
        for name, case in CASES.items():
            train_config = TrainConfig.model_validate(case)
            logits, auxiliary, labels = (tensor[part] for tensor in scores_and_labels())
            logits, auxiliary = logits.requires_grad_(), auxiliary.requires_grad_()
            weights = train_config.class_weights
            of_classes = None if weights is None else torch.tensor(weights)
            loss = segmentation_loss(logits, auxiliary, labels, train_config, of_classes, peers)
            loss.backward()  # type: ignore[no-untyped-call]
            assert logits.grad is not None and auxiliary.grad is not None
            found[name] = (loss.item(), logits.grad.numpy(), auxiliary.grad.numpy())
    return found


def test_shares_of_a_loss_add_up_to_that_of_the_whole_batch() -> None:
    """Rank 2 has no labelled pixel at all, and rank 0 nearly all of them."""
    (alone,) = run_ranks(1, shares)
    parts = run_ranks(3, shares)
    for name in CASES:
        whole = alone[name]
        assert sum(part[name][0] for part in parts) == pytest.approx(whole[0], rel=1e-6), name
        for place in (1, 2):
            gradient = np.concatenate([part[name][place] for part in parts])
            np.testing.assert_allclose(gradient, whole[place], rtol=1e-6, atol=1e-9, err_msg=name)
    assert len({alone[name][0] for name in CASES}) == len(CASES)


def shared_state() -> list[list[float]]:
    """Returns all of a state that began otherwise in every process, after it was shared."""
    with processes(CPU) as peers:
        torch.manual_seed(peers.rank)
        model: Any = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3))
        optimizer = torch.optim.AdamW(model.parameters())
        average = averaged_model(model, 0.9)
        state = TrainState(model, average, optimizer, torch.amp.GradScaler(enabled=False))
        if peers.first:
            model(torch.randn(2, 2, 3, 3)).square().sum().backward()
            optimizer.step()
            state.step, state.seconds, state.weights_sha256 = 7, 1.5, "abc"
            state.scores = {3: 0.25, 6: math.nan}
        share_state(peers, state)
        assert (state.step, state.seconds, state.weights_sha256) == (7, 1.5, "abc")
        assert state.scores[3] == 0.25 and math.isnan(state.scores[6]) and len(state.scores) == 2
        tensors = [*model.state_dict().values(), *average.module.state_dict().values()]
        return [t.flatten().tolist() for t in (*tensors, *optimizer_tensors(state).values())]


def test_a_state_is_shared_to_the_last_bit() -> None:
    first, *others = run_ranks(3, shared_state)
    assert len(first) == 2 * 7 + 3 * 4
    assert others == [first, first]


def statistics() -> tuple[list[float], list[float]]:
    """Returns the running mean that two BatchNorm layers, one of them frozen, have together."""
    with processes(CPU) as peers:
        model = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm2d(1)))
        freeze_batch_norm(model[1])
        for buffer in model.buffers():
            buffer.fill_(4 * peers.rank + 1)
        average_statistics(peers, model)
        return model[0].running_mean.tolist(), model[1][0].running_mean.tolist()


def test_running_statistics_are_those_of_all_processes() -> None:
    assert run_ranks(2, statistics) == [([3.0, 3.0], [1.0]), ([3.0, 3.0], [5.0])]


def test_batch_norm_is_synchronized_where_torch_can() -> None:
    config, peers = tiny_config(), Processes(0, 2)
    model = build_model(config.model, config.deform, 3)
    keys = list(model.state_dict())
    layers = len(own_batch_norm(model))
    warning = batch_norm_warning(model, peers, 4)
    assert warning is not None and warning.startswith(
        f"warning: {layers} BatchNorm layers see 2 of the 4 crops of a step"
    )
    assert warning.endswith("train.freeze_bn = true freezes the backbone's")
    frozen = build_model(config.model, config.deform, 3)
    freeze_batch_norm(frozen.backbone)
    warning = batch_norm_warning(frozen, peers, 4)
    assert warning is not None and warning.endswith("will not be that of one process")
    assert synchronize_batch_norm(model, peers, CPU) is model
    assert len(own_batch_norm(synchronize_batch_norm(model, Processes(), GPU))) == layers
    model = synchronize_batch_norm(model, peers, GPU)
    assert not own_batch_norm(model) and batch_norm_warning(model, peers, 4) is None
    freeze_batch_norm(model.backbone)
    kinds = {type(layer) for layer in model.backbone.modules()}
    assert FrozenBatchNorm2d in kinds and nn.SyncBatchNorm not in kinds
    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in model.head.modules())
    assert list(model.state_dict()) == keys
