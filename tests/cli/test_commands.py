"""The commands on real, tiny data: what they print, write and refuse."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segdeform.segmenter import load
from tests.cli.conftest import Command


def test_train_leaves_a_run_and_names_the_next_commands(
    command: Command, config: Path, shapes: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ("train", config, "--data", shapes, "--output", run, "--workers", "0")
    first = command(*arguments, "--set", "train.steps=1", "--set", "train.seed=5")
    assert first.code == 0
    assert f"segdeform predict {run} PICTURES" in first.out
    assert "1 steps" in first.out and "step 1/1" in first.err
    assert "deformable layers: features.17.conv.1.0\n" in first.err
    assert "seed: 5" in (run / "config.yaml").read_text(encoding="utf-8")

    again = command(*arguments)
    assert again.code == 2
    assert "--resume" in again.err and "--overwrite" in again.err

    resumed = command(*arguments, "--set", "train.steps=1", "--set", "train.seed=5", "--resume")
    assert resumed.code == 0

    replaced = command(*arguments, "--set", "train.steps=2", "--overwrite", "--json")
    assert replaced.code == 0
    assert json.loads(replaced.out)["steps"] == 2


def test_threads_are_set_before_the_work(
    command: Command, config: Path, run: Path, shapes: Path, tmp_path: Path
) -> None:
    where = ("--data", shapes, "--threads")
    words = ("--output", tmp_path / "r", "--set", "deform.offset_groups=7")  # of 960 channels
    assert command("train", config, *words, *where, 3).code == 3
    assert torch.get_num_threads() == 3
    assert command("eval", run, *where, 1).code == 0
    assert torch.get_num_threads() == 1


def test_mistyped_paths_and_splits_are_told_before_torch_is_imported(
    config: Path, run: Path, shapes: Path, tmp_path: Path
) -> None:
    """Importing it takes seconds; nothing is left that blocks the corrected command."""
    picture = shapes / "val" / "images" / "00000.png"
    train = ("train", config, "--output", tmp_path / "new", "--data")
    cases: list[tuple[int, str, tuple[object, ...]]] = [
        (3, "lost.yaml", ("train", "lost.yaml", "--data", shapes, "--output", tmp_path / "new")),
        (4, "nowhere", (*train, "nowhere")),
        (4, "'vall'", (*train, shapes, "--set", "data.val_split=vall")),
        (5, "lost.pth", (*train, shapes, "--set", "model.weights=lost.pth")),
        (2, "data set itself", ("train", config, "--data", shapes, "--output", shapes)),
        (2, "model.weights=", ("train", config, "--data", shapes, "--output", run)),
        (4, "nowhere", ("ablate", config, "--data", "nowhere", "--output", tmp_path / "new")),
        (2, "else than an ablation", ("ablate", config, "--data", shapes, "--output", shapes)),
        (5, "lost", ("eval", "lost", "--data", shapes)),
        (4, "nowhere", ("eval", run, "--data", "nowhere")),
        (4, "'vall'", ("eval", run, "--data", shapes, "--split", "vall")),
        (2, "earlier evaluation", ("eval", run, "--data", shapes, "--output", shapes)),
        (2, "--scales 1,x", ("eval", run, "--data", shapes, "--scales", "1,x")),
        (5, "lost", ("predict", "lost", picture, "--output", tmp_path / "new")),
        (2, "nowhere", ("predict", run, "nowhere", "--output", tmp_path / "new")),
        (2, "is a run", ("predict", run, picture, "--output", run)),
        (5, "lost", ("explain", "lost", picture)),
        (4, "lost.png", ("explain", run, "lost.png")),
        (4, "nowhere", ("explain", run, "--data", "nowhere")),
        (5, "lost", ("info", "lost")),
        (4, "nowhere", ("check", "nowhere")),
        (4, "lost", ("compare", "lost", "lost")),
        (2, "imagenet", ("prepare", "imagenet", "--output", tmp_path / "new")),
    ]
    script = (
        "import json, sys\nfrom segdeform.cli import main\n"
        "codes = [main(words) for words in json.loads(sys.argv[1])]\n"
        "print(json.dumps([codes, 'torch' in sys.modules]))"
    )
    words = json.dumps([[str(word) for word in words] for _, _, words in cases])
    ended = subprocess.run(
        [sys.executable, "-c", script, words], capture_output=True, text=True, check=True
    )
    assert json.loads(ended.stdout) == [[code for code, _, _ in cases], False]
    lines = ended.stderr.splitlines()
    for (_, said, given), line in zip(cases, lines, strict=True):
        assert line.startswith("segdeform: ") and said in line, given
    assert not list(tmp_path.iterdir())


def test_a_trained_model_is_used_without_what_takes_long_to_import(
    run: Path, shapes: Path, tmp_path: Path
) -> None:
    """Each of them takes about as long as torch itself."""
    words = [
        ["predict", run, shapes / "val" / "images", "--output", tmp_path],
        ["eval", run, "--data", shapes, "--json"],
    ]
    heavy = ("torchvision", "torch._dynamo", "albumentations")
    script = (
        "import json, sys\nfrom segdeform.cli import main\n"
        "codes = [main(words) for words in json.loads(sys.argv[1])]\n"
        f"print(codes, set({heavy!r}) & sys.modules.keys(), file=sys.stderr)"
    )
    given = json.dumps([[str(word) for word in each] for each in words])
    ended = subprocess.run(
        [sys.executable, "-c", script, given], capture_output=True, text=True, check=True
    )
    assert ended.stderr.splitlines()[-1] == "[0, 0] set()"


def test_eval_prints_a_table_and_writes_only_where_told(
    command: Command, run: Path, shapes: Path, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    printed = command("eval", run, "--data", shapes, "--threads", 1)
    assert "trained on" not in printed.err
    seen = command("eval", run, "--data", shapes, "--split", "train").err
    assert "warning: 6 of 6 pictures were trained on" in seen
    assert printed.code == 0
    assert "crescent" in printed.out and "mIoU" in printed.out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before

    words = ("eval", run / "model", "--data", shapes, "--output", tmp_path, "--threads", 1)
    written = command(*words, "--json")
    result = json.loads(written.out)
    assert {"report.html", "images.csv", "counts.npy"} <= {path.name for path in tmp_path.iterdir()}
    assert result == json.loads((tmp_path / "metrics.json").read_bytes())
    assert result["protocol"]["split"] == "val"
    assert f"mIoU {result['miou']:.4f}" in printed.out
    assert result == json.loads((run / "metrics.json").read_bytes())


def test_ctrl_c_ends_the_check_of_eval_at_once(run: Path, shapes: Path) -> None:
    script = (
        "import os, sys, time, segdeform.checking.scan as scan\n"
        "from segdeform.cli import main\n"
        "def slow(*arguments):\n"
        "    os.write(2, b'reading\\n')\n"
        "    time.sleep(60)\n"
        "scan._read_pair = slow\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["eval", str(run), "--data", str(shapes), "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "reading\n"
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=30)  # the threads sleep for longer
    finally:
        process.kill()
    assert process.returncode == 130
    assert "segdeform: interrupted" in err.splitlines()  # other threads may say they read


def test_eval_options_replace_those_of_the_model(command: Command, run: Path, shapes: Path) -> None:
    options = ("--tile", 32, "--overlap", 0.5, "--scales", "0.5,1", "--flip", "--split", "train")
    more = ("--blend", "uniform", "--boundary-width", 0.05, "--threads", 1)
    words = ("eval", run, "--data", shapes, "--dataset", "shapes", *options, *more)
    protocol = json.loads(command(*words, "--json").out)["protocol"]
    assert protocol["split"] == "train"
    assert protocol["boundary_width"] == "0.05 of the diagonal"
    assert protocol["inference"]["blend"] == "uniform"
    inference = protocol["inference"]
    assert (inference["tile"], inference["overlap"]) == (32, 0.5)
    assert (inference["scales"], inference["flip"]) == ([0.5, 1.0], True)


def test_compare_tells_what_changed(
    command: Command, run: Path, shapes: Path, tmp_path: Path
) -> None:
    words = ("eval", run, "--data", shapes, "--threads", 1, "--output")
    assert command(*words, tmp_path / "plain").code == 0
    assert command(*words, tmp_path / "flip", "--flip").code == 0
    printed = command("compare", tmp_path / "plain", tmp_path / "flip")
    assert printed.code == 0
    assert "inference.flip is False in A, True in B" in printed.out
    assert "told from noise" in printed.out.splitlines()[-1]
    outcome = json.loads(command("compare", tmp_path / "plain", tmp_path / "flip", "--json").out)
    scores = [
        json.loads((tmp_path / name / "metrics.json").read_bytes())["miou"]
        for name in ("plain", "flip")
    ]
    assert outcome["miou"]["change"] == pytest.approx(scores[1] - scores[0])

    assert command(*words, tmp_path / "train", "--split", "train").code == 0
    refused = command("compare", tmp_path / "plain", tmp_path / "train")
    assert refused.code == 4 and "other pictures (2 and 6" in refused.err
    assert command("compare", tmp_path / "plain", run).code == 4


def test_predict_writes_masks_goes_on_after_a_bad_picture_and_ends_with_8(
    command: Command, run: Path, shapes: Path, tmp_path: Path
) -> None:
    inputs = tmp_path / "in"
    shutil.copytree(shapes / "val" / "images", inputs / "deep")
    (inputs / "bad.jpg").write_bytes(b"no picture")
    output = tmp_path / "out"
    words = ("predict", run, inputs, "--output", output, "--precision", "fp32", "--profile")
    ended = command(*words)
    assert ended.code == 8
    assert "profile: 2 pictures in " in ended.out and "bound" in ended.out.splitlines()[-1]
    assert "2 pictures predicted" in ended.out and str(output / "overview.png") in ended.out
    assert "bad.jpg" in ended.err
    assert ended.err.splitlines()[-1].startswith("segdeform: 1 picture of 3 failed")
    with Image.open(output / "masks" / "deep" / "00000.png") as mask:
        labels = np.array(mask)
    expected = load(run, "cpu").predict(inputs / "deep" / "00000.png").labels
    np.testing.assert_array_equal(labels, expected)

    (inputs / "bad.jpg").unlink()
    again = command("predict", run, inputs, "--output", output, "--no-overlays", "--json")
    assert again.code == 0
    assert len(json.loads(again.out)["done"]) == 2


def test_predictions_are_in_bf16_where_that_is_faster_and_scores_only_where_told(
    command: Command, run: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predicted(*options: object) -> tuple[str, int]:
        picture = shapes / "val" / "images" / "00000.png"
        ended = command("predict", run, picture, "--output", tmp_path, "--no-overlays", *options)
        assert ended.code == 0
        said = json.loads((tmp_path / "summary.json").read_bytes())["precision"]
        return said, ended.out.count("1 of them before")

    def scored(*options: object) -> str:
        ended = command("eval", run, "--data", shapes, "--json", *options)
        precision: str = json.loads(ended.out)["protocol"]["precision"]
        return precision

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert predicted() == ("bf16", 0)
    assert predicted("--precision", "bf16") == ("bf16", 1)  # what auto comes to, again
    assert predicted("--precision", "fp32") == ("fp32", 0)
    assert (scored(), scored("--precision", "auto")) == ("fp32", "bf16")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert predicted() == ("fp32", 1)


def test_info_shows_what_the_folder_holds(command: Command, run: Path) -> None:
    facts = json.loads(command("info", run, "--json").out)
    parameters = sum(p.numel() for p in load(run, "cpu", trainable=True).model.parameters())
    assert facts["parameters"] == parameters
    table = command("info", run)
    assert table.code == 0
    assert facts["deformable_layers"] == ["features.17.conv.1.0"]
    assert "features.17.conv.1.0" in table.out
    assert "mobilenet_v2" in table.out and f"{parameters:,}" in table.out
    words = " ".join(table.out.replace("│", " ").split())
    assert "1 layer, v2, 1 offset group:" in words
    assert "whole; too large for that, in windows with the labels of the whole; scale 1" in words
    # MobileNetV2 looks 245 pixels far; its pyramid, at the rates of a crop of 64, 3 values of 16.
    assert "windows have 256 more on every side for the backbone" in words
    assert "tile 0" not in words and "scale 1; no flip" in words
    checkpoint = command("info", run / "checkpoints" / "step-00000002")
    assert checkpoint.code == 0 and "steps 2" in checkpoint.out


def test_doctor_finds_this_installation_healthy(command: Command) -> None:
    ended = command("doctor", "--json")
    report = json.loads(ended.out)
    assert report["healthy"] and ended.code == 0
    assert {"torch", "CPU kernels", "v2, uneven groups on cpu"} <= {
        check["name"] for check in report["checks"]
    }


def test_doctor_ends_with_8_when_a_check_fails(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segdeform.machine.doctor._PACKAGES", ("segdeform-does-not-need-this",))
    ended = command("doctor")
    assert ended.code == 8
    assert "pip install" in " ".join(ended.out.split())


def test_prepare_verifies_a_data_set_in_place(command: Command, shapes: Path) -> None:
    report = json.loads(command("prepare", "folder", "--output", shapes, "--json").out)
    assert report["splits"] == {"train": 6, "val": 2}
    assert "crescent" in report["classes"]


def bomb(path: Path) -> None:
    """Writes the head of a PNG of 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


class TestBadInput:
    """Each ends in one line with its exit code, and with no run folder that looks finished."""

    def refused(self, command: Command, code: int, said: str, *arguments: object) -> None:
        ended = command(*arguments)
        _, ours, message = ended.err.partition("segdeform: ")
        assert (ended.code, ended.out, ours) == (code, "", "segdeform: ")
        assert said in message
        assert "Traceback" not in ended.err

    def train(self, config: Path, shapes: Path, output: Path, *settings: str) -> list[object]:
        words: list[object] = ["train", config, "--data", shapes, "--output", output]
        for setting in settings:
            words += ["--set", setting]
        return [*words, "--workers", "0"]

    def test_unknown_key(
        self, command: Command, config: Path, shapes: Path, tmp_path: Path
    ) -> None:
        words = self.train(config, shapes, tmp_path / "r", "train.lrr=1")
        self.refused(command, 3, "Did you mean 'train.lr'?", *words)
        words = [*self.train(config, shapes, tmp_path / "r", "train.steps=9"), "--minutes", 3]
        self.refused(command, 2, "--minutes 3 and --set train.steps=9 contradict", *words)
        for minutes in ("inf", "1e+308"):  # whose seconds are infinite, too
            words = [*self.train(config, shapes, tmp_path / "r"), "--minutes", minutes]
            self.refused(command, 2, f"--minutes {minutes}: give a number", *words)
        assert not (tmp_path / "r").exists()

    def test_missing_data_root(self, command: Command, config: Path, tmp_path: Path) -> None:
        words = self.train(config, tmp_path / "nowhere", tmp_path / "r")
        self.refused(command, 4, str(tmp_path / "nowhere"), *words)
        assert not (tmp_path / "r").exists()

    def test_missing_split(self, command: Command, run: Path, shapes: Path) -> None:
        self.refused(command, 4, "test", "eval", run, "--data", shapes, "--split", "test")

    def test_label_outside_the_classes(
        self, command: Command, config: Path, shapes: Path, tmp_path: Path
    ) -> None:
        data = tmp_path / "data"
        shutil.copytree(shapes, data)
        mask = data / "train" / "masks" / "00003.png"
        labels = np.zeros((64, 64), np.uint8)
        labels[7, 9] = 77
        Image.fromarray(labels).save(mask)
        words = self.train(config, data, tmp_path / "r")
        self.refused(command, 4, f"{mask}: label 77 at row 7, column 9", *words)

    def test_weights_that_do_not_fit(
        self, command: Command, config: Path, shapes: Path, run: Path, tmp_path: Path
    ) -> None:
        weights = run / "model" / "model.safetensors"
        words = self.train(config, shapes, tmp_path / "r", f"model.weights={weights}")
        self.refused(command, 5, "model.safetensors", *words)

    def test_a_folder_that_is_no_model(self, command: Command, tmp_path: Path) -> None:
        self.refused(command, 5, str(tmp_path), "info", tmp_path)

    def test_one_flipped_bit(self, command: Command, run: Path, tmp_path: Path) -> None:
        shutil.copytree(run / "model", tmp_path / "model")
        weights = tmp_path / "model" / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-100] ^= 1
        weights.write_bytes(content)
        self.refused(command, 5, "model.safetensors", "info", tmp_path / "model")

    def test_a_bomb_among_the_pictures_does_not_stop_the_others(
        self, command: Command, run: Path, shapes: Path, tmp_path: Path
    ) -> None:
        bomb(tmp_path / "bomb.png")
        pictures = (shapes / "val" / "images" / "00000.png", tmp_path / "bomb.png")
        ended = command("predict", run, *pictures, "--output", tmp_path / "out")
        assert ended.code == 8 and "1 picture predicted" in ended.out

    def test_a_loss_that_is_no_number(
        self, command: Command, config: Path, shapes: Path, tmp_path: Path
    ) -> None:
        words = self.train(config, shapes, tmp_path / "r", "train.lr=1e30")
        self.refused(command, 9, "step", *words)

    def test_a_run_folder_in_use(
        self, command: Command, config: Path, shapes: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "r").mkdir()
        with (tmp_path / "r" / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.refused(
                command, 10, str(tmp_path / "r"), *self.train(config, shapes, tmp_path / "r")
            )

    def test_no_network_for_the_weights(
        self,
        command: Command,
        config: Path,
        shapes: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
        words = self.train(config, shapes, tmp_path / "r", "model.weights=imagenet")
        self.refused(command, 12, "model.weights", *words)

    def test_wrong_inference_options(self, command: Command, run: Path, shapes: Path) -> None:
        words = ("eval", run, "--data", shapes)
        self.refused(command, 2, "--scales 1,x", *words, "--scales", "1,x")
        self.refused(command, 2, "--tile", *words, "--tile", "-1")
        self.refused(command, 2, "--device gpu", *words, "--device", "gpu")

    def test_an_unknown_data_set(self, command: Command, run: Path, shapes: Path) -> None:
        words = ("eval", run, "--data", shapes, "--dataset", "shape")
        self.refused(command, 2, "Did you mean 'shapes'?", *words)
        self.refused(command, 2, "camvid", "prepare", "camvit", "--output", shapes)


def test_what_eval_cannot_do_is_said_before_the_files_are_read(
    command: Command, run: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*arguments: object) -> None:
        raise AssertionError("the files were read")

    monkeypatch.setattr("segdeform.checking.check_sound", read)
    words = ("eval", run, "--data", shapes, "--threads", 1, "--output", tmp_path / "result")
    refused = command(*words, "--official")
    assert refused.code == 2 and "--official is for cityscapes" in refused.err
    refused = command(*words, "--submission", tmp_path / "labels.zip")
    assert refused.code == 2 and "cityscapes" in refused.err
