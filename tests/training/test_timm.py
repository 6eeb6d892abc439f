"""A training on a network of timm, and the model folder that it leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from segdeform.config.schema import Config
from segdeform.segmenter import load
from segdeform.training.loop import train
from tests.training.conftest import ReporterThat, send, tiny_config


def of_timm(weights: Path, **keys: object) -> Config:
    """Returns a config of three steps that begins with a file of timm's keys."""
    values = tiny_config(steps=3, save_every=1, freeze_bn=True, **keys).model_dump(mode="json")
    values["model"] |= {"backbone": "timm/test_resnet.r160_in1k", "weights": str(weights)}
    return Config.model_validate(values)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(2)
    state = timm.create_model("test_resnet").state_dict()
    path = tmp_path / "resnet.safetensors"
    safetensors.torch.save_file(state, path)
    return path


def run(config: Config, data: Path, folder: Path, **how: object) -> Path:
    options = {"device": "cpu", "workers": 0, "reporter": ReporterThat()} | how
    train(config, data, folder, **options)  # type: ignore[arg-type]
    return folder


def test_it_trains_stops_goes_on_and_predicts(shapes: Path, tmp_path: Path, weights: Path) -> None:
    config = of_timm(weights)
    whole = load(run(config, shapes, tmp_path / "whole"), "cpu")
    stopped = ReporterThat(1, send(15))
    with pytest.raises(SystemExit):
        try:
            run(config, shapes, tmp_path / "parts", reporter=stopped)
        except BaseException as error:
            raise SystemExit from error
    resumed = load(run(config, shapes, tmp_path / "parts", resume=True), "cpu")
    assert whole.info["sha256"] == resumed.info["sha256"]
    assert whole.info["mean"] == [0.5] * 3  # timm names it for this network
    assert len(whole.info["deformable_layers"]) == 2
    picture = np.random.default_rng(0).integers(0, 256, (53, 71, 3), np.uint8)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    labels = load(tmp_path / "whole", "cpu").predict(picture).labels
    assert labels.shape == (53, 71)
    assert torch.equal(state, torch.get_rng_state())  # building drew no number


def test_buffers_that_no_file_has_are_there_after_loading(shapes: Path, tmp_path: Path) -> None:
    values = tiny_config(steps=1).model_dump(mode="json")
    values["model"] |= {"backbone": "timm/resnetblur18", "head": "deeplab"}
    trained = run(Config.model_validate(values), shapes, tmp_path / "run")
    network = load(trained, "cpu").network
    blurs = {n: b for n, b in network.named_buffers() if n.endswith("filt")}
    assert blurs and all(
        torch.allclose(b.sum((1, 2, 3)), torch.ones(len(b))) for b in blurs.values()
    )
