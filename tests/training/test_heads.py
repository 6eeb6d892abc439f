"""Networks with each head over four stages: trained, kept in a folder, read again, described."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from segdeform.cli.info import print_facts
from segdeform.config.schema import Config
from segdeform.data.image_io import read_image
from segdeform.segmenter import load
from segdeform.training.loop import train
from tests.training.conftest import ReporterThat, tiny_config


def config(head: str) -> Config:
    values = tiny_config(steps=10, batch_size=1, lr=0.02).model_dump()
    values["model"] |= {"head": head, "auxiliary_head": True}
    return Config.model_validate(values)


@pytest.mark.parametrize(
    ("head", "field"),
    [
        ("upernet", "the means of the whole picture's cells in grids of 1x1, 2x2, 3x3, 6x6;"),
        ("segformer", "531 pixels; windows have"),  # (245 of the backbone + 16 + 4) * 2 + 1
    ],
    ids=["upernet", "segformer"],
)
def test_a_network_trains_on_single_pictures_and_its_folder_holds_it(
    head: str, field: str, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(head), shapes, tmp_path, device="cpu", reporter=ReporterThat())
    lines = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 10 and np.mean(losses[5:]) < np.mean(losses[:5])
    trained, folded = (load(tmp_path, "cpu", trainable=way) for way in (True, False))
    assert trained.info["model"]["head"] == head and trained.info["model"]["aspp_rates"] is None
    picture = read_image(next((shapes / "val" / "images").iterdir()))[:61, :47].copy()
    expected = trained.logits(picture)
    assert expected.shape == (len(trained.classes), 61, 47)
    torch.testing.assert_close(folded.logits(picture), expected, atol=1e-4, rtol=1e-3)
    low = load(tmp_path, "cpu", precision="bf16").predict(picture)
    assert (low.labels == folded.predict(picture).labels).mean() > 0.95
    print_facts(folded.info)
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"mobilenet_v2, {head} head of 16" in printed and field in printed
