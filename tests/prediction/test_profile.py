"""What a prediction's time went to: each part is counted once, and the largest is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import nn

from segdeform.machine.pipeline import WAITING_FOR_READERS, WAITING_FOR_WRITERS
from segdeform.machine.stopwatch import Stopwatch
from segdeform.models.backbones import build_backbone
from segdeform.models.deeplab import DeepLab
from segdeform.models.heads import DeepLabHead
from segdeform.network import decoded_scores, kept_features
from segdeform.prediction.predict import predict
from segdeform.prediction.profile import (
    LABELLING,
    LOOP,
    NETWORK,
    READING,
    WRITING,
    lines,
    network_timed,
    profile_of,
)
from tests.prediction.test_predict import save_picture, segmenter

__all__ = ["segmenter"]  # a fixture


class Highest(nn.Module):
    """Scores classes by the last features."""

    def forward(self, features: Any) -> torch.Tensor:
        return features.high[:, :3]


def test_every_part_of_every_picture_is_timed_once(segmenter: Any, tmp_path: Path) -> None:
    for k in range(7):
        save_picture(tmp_path / "in" / f"{k}.png", k)
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    segmenter.model = DeepLab(build_backbone("resnet18", "none", 32), Highest()).eval()
    seen: Counter[str] = Counter()
    open_ones: list[str] = []

    @contextmanager
    def clock(what: str) -> Iterator[None]:
        seen[what] += 1
        if what in (LOOP, LABELLING, NETWORK):  # of the thread that calls
            if what == NETWORK:
                assert open_ones == [LOOP, LABELLING]
            open_ones.append(what)
        yield
        if what in (LOOP, LABELLING, NETWORK):
            assert open_ones.pop() == what

    with network_timed(segmenter, clock):
        predict(segmenter, [tmp_path / "in"], tmp_path / "out", clock=clock)
    assert seen[LOOP] == 1 and seen[READING] == seen[WAITING_FOR_READERS] == 8
    # Four of a size go through the network together, then three.
    assert (seen[NETWORK], seen[LABELLING], seen[WRITING]) == (2, 2 + 7, 7)
    assert 1 <= seen[WAITING_FOR_WRITERS] <= 8
    assert not open_ones
    before = seen.copy()
    predict(segmenter, [tmp_path / "in"], tmp_path / "out2")
    assert seen == before  # nothing is left of it


def test_parts_of_the_network_in_windows_are_its_time_too(segmenter: Any) -> None:
    """Large pictures meet backbone and head one by one; a part within the whole counts once."""
    model = DeepLab(build_backbone("resnet18", "none", 32), DeepLabHead(512, 3, 8)).eval()
    segmenter.model, watch = model, Stopwatch()
    images = torch.rand(1, 3, 40, 52)
    with torch.inference_mode(), network_timed(segmenter, watch):
        model.maps(images)
        assert watch.times[NETWORK] == 1
        kept, _ = kept_features(model, images)
        assert watch.times[NETWORK] == 2
        decoded_scores(model, kept, None)
        assert watch.times[NETWORK] == 3
    assert not vars(model).keys() & {"maps", "features"} and "decode" not in vars(model.head)


def test_a_stopwatch_adds_up_what_threads_do() -> None:
    watch = Stopwatch()

    def work() -> None:
        for _ in range(200):
            with watch("a"):
                pass

    several = [Thread(target=work) for _ in range(5)]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    with pytest.raises(OSError), watch("b"):
        raise OSError
    assert watch.times == {"a": 1000, "b": 1} and min(watch.seconds.values()) > 0


@pytest.mark.parametrize(
    ("spent", "verdict"),
    [
        ({NETWORK: 8.0, LABELLING: 8.5}, "The network bounds it: a GPU"),
        ({NETWORK: 8.0, LABELLING: 8.5}, "reading and writing keep 30% of one core"),
        ({NETWORK: 3.0, LABELLING: 3.5, WAITING_FOR_READERS: 4.0}, "Reading bounds it: 40%"),
        ({NETWORK: 3.0, LABELLING: 3.5, WAITING_FOR_WRITERS: 6.0}, "Writing bounds it: 60%"),
        ({NETWORK: 2.0, LABELLING: 9.0}, "Labels bound it"),
        ({NETWORK: 2.0, LABELLING: 2.5}, "but the records"),
    ],
)
def test_the_largest_part_is_named(segmenter: Any, spent: dict[str, float], verdict: str) -> None:
    watch = Stopwatch()
    watch.seconds = {LOOP: 10.0, READING: 1.0, WRITING: 2.0} | spent
    watch.times = {READING: 53, WRITING: 50}  # three failed
    profile = profile_of(watch)
    told = list(lines(profile, segmenter))
    assert verdict in told[-1]
    assert told[0] == "profile: 50 pictures in 10.00 s, 5.00 a second"
    network = next(line for line in told if line.strip().startswith("network"))
    share, each = f"{spent[NETWORK] / 10:.1%}", f"{20 * spent[NETWORK]:.1f}"
    assert network.split() == ["network", share, each, "ms", "a", "picture"]
    parts = profile.to_json()
    named = ("waiting_for_pictures", "network", "labels", "waiting_for_writing", "rest")
    assert sum(parts[name] for name in named) == pytest.approx(10)


def test_a_gpu_is_told_other_things(segmenter: Any) -> None:
    watch = Stopwatch()
    watch.seconds, watch.times = (
        {LOOP: 10.0, NETWORK: 9.0, LABELLING: 9.5},
        {READING: 5, WRITING: 5},
    )
    segmenter.device = torch.device("cuda")
    assert "--precision bf16" in profile_of(watch).verdict(segmenter)
    segmenter.precision = "bf16"
    assert "--precision" not in profile_of(watch).verdict(segmenter)
