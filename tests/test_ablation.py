"""The ablation: its statistics against scipy, its sentence, and real runs of tiny networks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from segdeform.ablation import (
    Ablation,
    Arm,
    ArmResult,
    Interval,
    compare_arms,
    drop_repeated,
    make_arms,
    verdict,
)
from segdeform.ablation.comparison import _low
from segdeform.cli import main
from segdeform.config.loading import load_config
from segdeform.errors import ModelError
from segdeform.files.lock import run_lock
from segdeform.preparing.shapes import write_shapes
from segdeform.segmenter import load
from segdeform.training.result import TrainResult


def test_intervals_are_students() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [0.61, 0.63, 0.6, 0.66, 0.64]
    for count, level in ((2, 0.95), (3, 0.95), (5, 0.99), (40, 0.95)):
        some = (values * 8)[:count]
        found = Interval.of(some, level)
        expected = stats.t.interval(level, count - 1, loc=np.mean(some), scale=stats.sem(some))
        assert (found.low, found.high) == pytest.approx(expected, rel=1e-9)
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


def result(layers: int, dilation: int | None, miou: Sequence[float]) -> ArmResult:
    arm = Arm(layers, "v2" if layers else None, dilation)
    seconds = dict.fromkeys(range(len(miou)), 60.0 + layers)
    return ArmResult(arm, dict(enumerate(miou)), seconds, dict.fromkeys(seconds, 1), 1000)


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


def claims(groups: tuple[int, int], draw: Callable[[], list[NDArray[np.float64]]]) -> list[float]:
    """Returns how often 400 ablations of D deformable and P plain networks say "paid", "did not"
    and, for the comparisons one by one, "beyond noise"; last how often the best deformable one
    would be said to beat the best plain one (with 1 and 5: to lose), by an
    interval that knows nothing of the choice."""
    said, sign = np.zeros(4), -1 if groups == (1, 5) else 1
    for _ in range(400):
        scores = draw()
        arms = [result(k + 1, None, scores[k]) for k in range(groups[0])]
        arms += [result(0, k or None, scores[groups[0] + k]) for k in range(groups[1])]
        sentence = verdict(arms)
        best, base = (max(part, key=np.mean) for part in (scores[: groups[0]], scores[groups[0] :]))
        said += (
            sentence.startswith("Deformable layers paid"),
            sentence.startswith("Deformable layers did not pay"),
            any(row["beyond_noise"] for row in compare_arms(arms)),
            _low([*((best - base) * sign)], 0.95) > 0,
        )
    return list(said / 400)


@pytest.mark.parametrize("groups", [(6, 1), (1, 5)])
def test_chance_pays_no_more_often_than_claimed(groups: tuple[int, int]) -> None:
    """Networks that are equal: whatever is said of them is wrong. 2.5% a claim, 5% for any."""
    rng = np.random.default_rng(0)
    paid, did_not, beyond, uncorrected = claims(
        groups, lambda: [*rng.normal(size=(sum(groups), 5))]
    )
    assert uncorrected > 0.05  # twice what is claimed
    assert paid <= 0.04 and did_not <= 0.04 and beyond <= 0.07  # 2 standard errors above


def test_a_plain_network_whose_seeds_differ_much_is_not_forgotten() -> None:
    """One of the plain networks is as good as the deformable one, though often not on few seeds."""
    rng = np.random.default_rng(1)

    def draw() -> list[NDArray[np.float64]]:
        return [rng.normal(0, 1, 4), rng.normal(0, 30, 4), rng.normal(-6, 1, 4)]

    paid, did_not, _, uncorrected = claims((1, 2), draw)
    assert uncorrected > 0.1
    assert paid <= 0.04 and did_not <= 0.04


def test_a_true_gain_is_still_found_among_many() -> None:
    rng = np.random.default_rng(2)
    paid, did_not, *_ = claims((4, 3), lambda: [rng.normal(4 * (k == 2), 1, 6) for k in range(7)])
    assert paid > 0.9 and did_not == 0


def test_comparisons_are_corrected_step_by_step() -> None:
    """By hand (Holm): of three, the smallest counts three times, the next twice, the last once."""
    stats = pytest.importorskip("scipy.stats")
    base = [0.5, 0.52, 0.49, 0.51, 0.5]
    noise = np.array([0.01, -0.012, 0.004, 0.006, -0.008])
    gains = (0.0128, 0.012, 0.035)
    arms = [result(0, None, base)]
    arms += [result(k + 1, None, base + noise + gain) for k, gain in enumerate(gains)]
    chances = [stats.ttest_1samp(noise + gain, 0).pvalue for gain in gains]
    assert chances[2] * 3 < 0.05 and 0.025 < chances[0] < chances[1] < 0.05 + 0.01
    assert [row["beyond_noise"] for row in compare_arms(arms)] == [False, False, True]
    assert compare_arms(arms[:2])[0]["beyond_noise"]  # alone it is clear


def test_seeds_without_a_score_are_left_out_of_the_comparison() -> None:
    plain, deformable = result(0, None, [0.5, 0.51, 0.52, 0.5]), result(3, None, [0.6, 0.62, 0.61])
    del plain.miou[1]
    (row,) = compare_arms([plain, deformable])
    assert row["mean"] == pytest.approx((0.1 + 0.09) / 2)
    assert "over 2 seeds" in verdict([plain, deformable])
    assert plain.to_json(5)["miou_by_seed"] == [0.5, None, 0.52, 0.5, None]
    plain.miou = {3: 0.5}
    assert "no seed in common" in verdict([plain, deformable])
    plain.miou = {}
    assert "too few runs have a score" in verdict([plain, deformable])
    json.dumps(compare_arms([plain, deformable]), allow_nan=False)


@pytest.mark.parametrize(
    ("config", "dropped"),
    [
        (
            "{backbone: mobilenet_v2, output_stride: 8}",
            ["layers0-dilation4", "layers3-v2-dilation4"],
        ),
        (
            "{backbone: mobilenet_v2, output_stride: 16}",
            ["layers0-dilation2", "layers3-v2-dilation2"],
        ),
        (
            "{backbone: resnet50, output_stride: 8}",
            [],
        ),  # its first convolution there has dilation 2
        ("{backbone: resnet50, output_stride: 32}", ["layers0-dilation1", "layers3-v2-dilation1"]),
    ],
)
def test_a_dilation_that_the_network_has_anyway_is_not_trained_again(
    config: str, dropped: list[str], tmp_path: Path
) -> None:
    arms = [
        Arm(layers, "v2" if layers else None, dilation)
        for layers in (0, 3)
        for dilation in (None, 1, 2, 4)
    ]
    (tmp_path / "c.yaml").write_text(f"model: {config}\n")
    configs = [load_config(tmp_path / "c.yaml", arm.overrides()) for arm in arms]
    kept, repeated = drop_repeated(arms, configs)
    assert [arm.name for arm, _ in repeated] == dropped
    assert all(same == Arm(arm.layers, arm.variant, None) for arm, same in repeated)
    assert kept == [arm for arm in arms if arm.name not in dropped]


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


def test_runs_that_fail_or_have_no_score_do_not_end_the_others(
    tiny: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Processes that stand for training runs: two fail, one has no labels to be scored by."""

    def command(plan: Ablation, arm: Arm, seed: int, device: str) -> list[str]:
        model = plan.folder(arm, seed) / "model"
        model.mkdir(parents=True)
        save_file({"w": np.zeros((2, 3 + arm.layers), np.float32)}, model / "model.safetensors")
        diverged = "raise SystemExit('segdeform: loss is nan')"
        return [sys.executable, "-c", diverged if (arm.layers, seed) == (0, 0) else ""]

    def read(run: Path) -> TrainResult:
        layers, seed = int(run.name[6]), int(run.name[-1])
        if (layers, seed) == (1, 1):
            raise ModelError(f"{run} is damaged")
        miou = None if (layers, seed) == (0, 1) else 0.5 + 0.1 * layers + 0.01 * seed
        return TrainResult(run, 2, 1.0, miou, 5.0, 7, 2)

    monkeypatch.setattr(Ablation, "command", command)
    monkeypatch.setattr("segdeform.ablation.runner.read_result", read)
    given = words(tiny, tmp_path, "--layers", "0,1", "--seeds", "3")
    assert main(given) == 8
    out, err = capsys.readouterr()
    assert "layers0-seed1: no score, 1 s" in err and "Nothing to compare" not in out
    assert err.splitlines()[-1].startswith(
        "segdeform: 2 of 6 runs failed, the first: layers0-seed0: loss is nan (see "
    )
    facts = json.loads((tmp_path / "ablation.json").read_text())
    plain, deformable = (arm["miou_by_seed"] for arm in facts["arms"])
    assert (plain, deformable) == ([None, None, 0.52], [0.6, None, 0.62])
    assert facts["comparisons"][0]["mean"] == pytest.approx(0.1)
    assert [arm["parameters"] for arm in facts["arms"]] == [6, 8]
    assert [text.partition(":")[0] for text in facts["failed"]] == [
        "layers0-seed0",
        "layers1-v2-seed1",
    ]


@pytest.fixture
def pretended() -> Iterator[pytest.MonkeyPatch]:
    """Has processes that do nothing stand for training runs from here on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ablation, "command", lambda *_: [sys.executable, "-c", ""])
        patch.setattr("segdeform.ablation.runner._parameters", lambda run: 7)
        patch.setattr(
            "segdeform.ablation.runner.read_result",
            lambda run: TrainResult(run, 2, 1.0, 0.5, 5.0, 7, 2),
        )
        yield patch


def test_a_failed_run_is_named_and_tried_again(
    tiny: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "layers0-seed0").write_text("in the way")
    assert main(words(tiny, tmp_path, "--layers", "0", "--seeds", "1")) == 8
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "1 of 1 runs failed" in err and "layers0-seed0: " in err
    (tmp_path / "layers0-seed0").unlink()
    request.getfixturevalue("pretended")
    assert main(words(tiny, tmp_path, "--layers", "0", "--seeds", "1")) == 0
    assert json.loads((tmp_path / "ablation.json").read_text())["failed"] == []


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


@pytest.mark.usefixtures("pretended")
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
    with run_lock(run):  # nobody trains on
        pass


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


def test_what_is_auto_is_chosen_once_for_all_runs(
    tiny: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    pretended: pytest.MonkeyPatch,
) -> None:
    given = [*words(tiny, tmp_path, "--layers", "0,1", "--seeds", "2"), "--set", "data.crop=auto"]
    given += ["--set", "train.class_weights=auto", "--set", "train.batch_size=auto"]
    told: list[list[str]] = []

    def command(plan: Ablation, arm: Arm, seed: int, device: str) -> list[str]:
        told.append(list(plan.overrides))
        return [sys.executable, "-c", ""]

    pretended.setattr(Ablation, "command", command)
    assert main(given) == 0
    assert "data.crop=[64, 64]: as large as pictures of 64x64" in capsys.readouterr().err
    assert len(told) == 4 and all(overrides == told[0] for overrides in told)
    config = load_config(tiny[0], told[0])  # the later settings count
    assert (config.data.crop, config.train.batch_size) == ((64, 64), 4)
    weights = config.train.class_weights
    assert weights is not None and len(weights) == 7

    pretended.setattr("segdeform.training.settling.choose", lambda *given: pytest.fail("again"))
    assert main(given) == 0
    assert told[-1] == told[0]
    assert main([*given, "--set", "data.crop=[32,32]"]) == 2
    assert "was begun with data.crop [64, 64], and now it is [32, 32]" in capsys.readouterr().err
