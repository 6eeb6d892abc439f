"""The ablation: its statistics against scipy, its sentence, and real runs of tiny networks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segdeform.ablation import Arm, ArmResult, Interval, make_arms, verdict
from segdeform.cli import main
from segdeform.files.lock import run_lock
from segdeform.preparing.shapes import write_shapes
from segdeform.segmenter import load


def test_intervals_are_students() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [0.61, 0.63, 0.6, 0.66, 0.64]
    for count in (2, 3, 5):
        found = Interval.of(values[:count])
        mean, sem = sum(values[:count]) / count, stats.sem(values[:count])
        expected = stats.t.interval(0.95, count - 1, loc=mean, scale=sem)
        assert (found.low, found.high) == pytest.approx(expected, rel=1e-3)
    many = Interval.of([0.0, 1.0] * 20)
    low, high = stats.t.interval(0.95, 39, loc=0.5, scale=stats.sem([0.0, 1.0] * 20))
    assert many.low is not None and many.low <= low and many.high is not None and high <= many.high
    assert Interval.of([0.5]) == Interval(0.5, None, None) and not Interval.of([0.5]).beyond_noise


def test_every_network_is_trained_once() -> None:
    arms = make_arms([0, 3], ["v1", "v2"], [2, 4])
    assert [arm.name for arm in arms] == [
        "layers0-dilation2", "layers3-v1-dilation2", "layers3-v2-dilation2",
        "layers0-dilation4", "layers3-v1-dilation4", "layers3-v2-dilation4",
    ]  # fmt: skip
    assert make_arms([0], ["v1", "v2"], [None]) == [Arm(0, None, None)]
    plain = make_arms([0, 3], ["v2"], [None], plain_dilations=[4, 6])
    assert [arm.name for arm in plain] == [
        "layers0", "layers3-v2", "layers0-dilation4", "layers0-dilation6",
    ]  # fmt: skip
    assert Arm(3, "v1", None).overrides() == ["deform.layers=3", "deform.variant=v1"]


def result(layers: int, dilation: int | None, miou: list[float]) -> ArmResult:
    arm = Arm(layers, "v2" if layers else None, dilation)
    return ArmResult(arm, miou, [60.0 + layers] * len(miou), [1] * len(miou), 1000)


@pytest.mark.parametrize(
    ("plain", "deformable", "says"),
    [
        ([0.50, 0.51, 0.52], [0.60, 0.62, 0.61], "paid: layers3-v2 against layers0"),
        ([0.60, 0.62, 0.61], [0.50, 0.51, 0.52], "did not pay"),
        ([0.50, 0.51, 0.52], [0.49, 0.53, 0.53], "cannot be told from noise"),
        ([0.50], [0.60], "One seed cannot tell"),
    ],
)
def test_the_verdict_says_what_the_numbers_say(
    plain: list[float], deformable: list[float], says: str
) -> None:
    assert says in verdict([result(0, None, plain), result(3, None, deformable)])


def test_the_best_plain_network_is_what_counts() -> None:
    """A larger dilation alone may give all that deformable layers seemed to give."""
    arms = [
        result(0, 2, [0.5, 0.5, 0.51]),
        result(0, 6, [0.6, 0.61, 0.6]),
        result(3, 2, [0.6, 0.6, 0.61]),
    ]
    assert "layers0-dilation6" in verdict(arms) and "noise" in verdict(arms)
    assert "Nothing to compare" in verdict(arms[:2])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ablation")
    write_shapes(folder / "shapes", train=6, val=2, size=64)
    (folder / "tiny.yaml").write_text(
        "data: {name: shapes, crop: [64, 64], scale: [1, 1]}\n"
        "model: {backbone: mobilenet_v2, weights: none, head_channels: 8}\n"
        "train: {steps: 2, batch_size: 2}\n"
    )
    return folder / "tiny.yaml", folder / "shapes"


def words(tiny: tuple[Path, Path], output: Path, *more: str) -> list[str]:
    return ["ablate", str(tiny[0]), "--data", str(tiny[1]), "--output", str(output), *more]


def test_runs_are_compared_and_not_repeated(
    tiny: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words(tiny, tmp_path, "--layers", "0,1", "--seeds", "1", "--threads", "1", "--json")
    assert main(given) == 0
    facts = json.loads(capsys.readouterr().out)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert main(given) == 0
    assert json.loads(capsys.readouterr().out) == facts
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert [arm["arm"] for arm in facts["arms"]] == ["layers0", "layers1-v2"]
    for arm in facts["arms"]:
        run = tmp_path / f"{arm['arm']}-seed0"
        assert arm["miou_by_seed"] == [json.loads((run / "metrics.json").read_text())["miou"]]
        assert arm["parameters"] == load(run, "cpu").info["parameters"]
    assert facts["comparisons"][0]["against"] == "layers0"


def test_a_failed_run_is_named_and_tried_again(
    tiny: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "layers0-seed0").write_text("in the way")
    assert main(words(tiny, tmp_path, "--layers", "0", "--seeds", "1")) == 8
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "1 of 1 runs failed" in err and "layers0-seed0: " in err
    (tmp_path / "layers0-seed0").unlink()
    assert main(words(tiny, tmp_path, "--layers", "0", "--seeds", "1")) == 0


def test_a_folder_of_something_else_is_refused(
    tiny: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tiny[1].rglob("*"))
    assert main(words(tiny, tiny[1])) == 2
    assert "holds something else than an ablation" in capsys.readouterr().err
    assert sorted(tiny[1].rglob("*")) == before
    (tmp_path / "logs").mkdir()
    with run_lock(tmp_path):
        assert main(words(tiny, tmp_path)) == 10


def test_other_settings_are_refused_before_a_run_starts(
    tiny: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words(tiny, tmp_path, "--layers", "0", "--seeds", "1")
    assert main(given) == 0
    capsys.readouterr()
    assert main([*given, "--set", "train.steps=3"]) == 2
    err = capsys.readouterr().err
    assert "was begun with train.steps 2, and now it is 3: choose another --output" in err
    assert "overwrite" not in err
    for damage in ("[]", "{"):
        (tmp_path / "settings.json").write_text(damage)
        assert main(given) == 2
        assert "settings.json: is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(("which", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_an_interruption_saves_the_runs(
    tiny: tuple[Path, Path], tmp_path: Path, which: signal.Signals, code: int
) -> None:
    endless = ("--set", "train.steps=100000", "--set", "train.log_every=1")
    given = words(tiny, tmp_path, "--layers", "0", "--seeds", "1", *endless)
    process = subprocess.Popen([sys.executable, "-m", "segdeform", *given], stderr=subprocess.PIPE)
    run, until = tmp_path / "layers0-seed0", time.monotonic() + 90
    log = run / "log.jsonl"
    while not (log.exists() and '"loss"' in log.read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(which)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code and b"the same command goes on" in err
    assert list((run / "checkpoints").glob("step-*"))
    inode = (run / ".lock").stat().st_ino
    assert f":{inode} " not in Path("/proc/locks").read_text()  # nobody trains on


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("--layers", "0,x"), 2, "--layers 0,x: expected whole numbers from 0"),
        (("--dilation", "0"), 2, "--dilation 0: expected whole numbers from 1"),
        (("--variant", "v3"), 2, "--variant v3"),
        (("--set", "train.stepz=3"), 3, "train.stepz"),
    ],
)
def test_bad_arguments_are_named_before_the_first_run(
    more: tuple[str, ...],
    code: int,
    message: str,
    tiny: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(words(tiny, tmp_path / "out", *more)) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
