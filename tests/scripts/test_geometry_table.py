"""The table of plain and deformable convolution: its sets, its networks, its runs."""

from __future__ import annotations

import io
import json
import math
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from geometry.data import FRAME, SETS, Motion, Split, move, read_pictures, rotated, shifted
from geometry.report import Result, render_table, summarise
from geometry.training import (
    NETS,
    WIDTHS,
    Budget,
    accuracy,
    batches,
    build_classifier,
    count_parameters,
    describe_run,
    moved_once,
    plain_widths,
    train_classifier,
)
from geometry_table import main
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from cuda_ops import DeformConv2d
from segdeform.errors import DataError, DownloadError, UsageError
from tests.conftest import external_data
from tests.scripts.conftest import SCRIPTS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def digits(count: int = 6, channels: int = 1, side: int = 28) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (count, channels, side, side)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator)


def still(count: int) -> Motion:
    return Motion(torch.zeros(count), torch.zeros(count, 2, dtype=torch.int64))


@settings(max_examples=40, deadline=None)
@given(st.integers(-6, 6), st.integers(-6, 6))
def test_a_shift_moves_every_pixel_by_whole_pixels(down: int, right: int) -> None:
    images = digits(2, channels=3)
    motion = Motion(torch.zeros(2), torch.tensor([[down, right], [0, 0]]))
    moved = (255 * move(images, motion, FRAME)).round().byte()
    expected = np.zeros((2, 3, FRAME, FRAME), np.uint8)
    expected[0, :, 6 + down : 34 + down, 6 + right : 34 + right] = images[0]
    expected[1, :, 6:34, 6:34] = images[1]
    assert np.array_equal(moved.numpy(), expected)  # so that nothing is ever lost


def test_what_is_shifted_out_of_the_frame_is_lost_and_black_comes_in() -> None:
    images = torch.rand(1, 1, 8, 8) + 0.1
    moved = shifted(images, torch.tensor([[3, -2]]))
    assert torch.equal(moved[0, 0, 3:, :6], images[0, 0, :5, 2:])
    assert not moved[0, 0, :3].any() and not moved[0, 0, :, 6:].any()


def test_rotation_by_nothing_is_the_identity_also_beside_turned_pictures() -> None:
    images = torch.rand(3, 2, 9, 9)
    assert torch.equal(rotated(images, torch.zeros(3)), images)
    turned = rotated(images, torch.tensor([0.0, 30.0, 0.0]))
    assert torch.equal(turned[::2], images[::2]) and not torch.allclose(turned[1], images[1])


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_those_of_the_pixel_grid(quarters: int) -> None:
    images = torch.rand(2, 3, 10, 10)
    turned = rotated(images, torch.full((2,), 90.0 * quarters))
    assert torch.allclose(turned, torch.rot90(images, quarters, (2, 3)), atol=1e-4)


def test_rotation_agrees_with_pillow() -> None:
    y, x = np.mgrid[:FRAME, :FRAME]  # smooth, so that rules of interpolation make no difference
    image = np.exp(-((y - 15) ** 2 + (x - 24) ** 2) / 30).astype(np.float32)
    for angle in (17.0, -130.0):
        ours = rotated(torch.tensor(image)[None, None], torch.tensor([angle]))[0, 0]
        theirs = Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR)
        assert np.abs(ours.numpy() - np.asarray(theirs)).max() < 0.01


def test_no_rotation_loses_a_digit_s_corner() -> None:
    corner = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    corner[..., 0, 0] = 255
    for angle in range(0, 360, 15):
        motion = Motion(torch.tensor([float(angle)]), torch.zeros(1, 2, dtype=torch.int64))
        # A single pixel's bilinear shares sum to about 1 wherever it lies, unless they are cut off.
        assert 0.5 < float(move(corner, motion, FRAME).sum()) < 1.5


@pytest.mark.parametrize("name", SETS)
def test_motions_keep_to_their_limits_and_use_them(name: str) -> None:
    row = SETS[name]
    motion = Motion.draw(row, 4000, torch.Generator().manual_seed(1))
    assert (motion.angle.abs().max() > 0.98 * row.angle) or row.angle == 0
    assert float(motion.angle.abs().max()) <= row.angle
    assert motion.shift.unique().tolist() == list(range(-row.shift, row.shift + 1))


def test_batches_keep_labels_see_all_pictures_and_are_the_same_for_both_networks() -> None:
    images = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 28, 28)
    train = Split(images.contiguous(), torch.arange(20))
    row, budget = SETS["mnist-translated"], Budget(5, 8, None, None)
    seen = []
    for moved, labels in batches(row, train, budget, seed=4):
        assert moved.shape == (8, 1, FRAME, FRAME)
        assert torch.equal((255 * moved).round().amax((1, 2, 3)).long(), labels)
        seen += labels.tolist()
    assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20)) and seen[:20] != seen[20:]
    again = torch.cat([labels for _, labels in batches(row, train, budget, seed=4)])
    other = torch.cat([labels for _, labels in batches(row, train, budget, seed=5)])
    assert again.tolist() == seen and other.tolist() != seen


def test_test_pictures_are_moved_once_with_their_labels() -> None:
    test = Split(digits(5), torch.arange(5))
    row = SETS["mnist-rotated-translated"]
    first, second = moved_once(row, test), moved_once(row, test)
    assert torch.equal(first.images, second.images) and torch.equal(first.labels, test.labels)
    unmoved = moved_once(SETS["mnist"], test)
    assert torch.equal(unmoved.images, move(test.images, still(5), FRAME))
    assert not torch.equal(first.images, unmoved.images)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_plain_network_has_just_as_many_parameters(channels: int) -> None:
    deformable = count_parameters(build_classifier(channels, WIDTHS, deformable=True))
    plain = count_parameters(build_classifier(channels, plain_widths(channels), deformable=False))
    assert deformable <= plain <= 1.02 * deformable
    twin = count_parameters(build_classifier(channels, WIDTHS, deformable=False))
    offsets = sum((9 * width + 1) * 18 for width in WIDTHS[:3])  # 3x3 taps, 18 maps and biases
    assert deformable - twin == offsets
    row = SETS["mnist" if channels == 1 else "cifar"]
    described = {net: describe_run(row, net, channels, Budget(1, 2, None, None)) for net in NETS}
    assert described["plain"]["parameters"] == plain
    assert described["deformable"]["parameters"] == deformable
    assert described["plain"]["training"] == described["deformable"]["training"]


def test_without_offsets_the_deformable_network_is_its_plain_twin() -> None:
    torch.manual_seed(0)
    deformable = build_classifier(3, WIDTHS, deformable=True)
    twin = build_classifier(3, WIDTHS, deformable=False)
    missing, extra = twin.load_state_dict(deformable.state_dict(), strict=False)
    assert not missing and all("offset_conv" in name for name in extra)
    assert sum(isinstance(module, DeformConv2d) for module in deformable) == 3
    images = torch.rand(4, 3, 32, 32)
    assert torch.allclose(deformable(images), twin(images), atol=1e-5)
    with torch.no_grad():
        assert isinstance(deformable.conv4, DeformConv2d)
        nn.init.constant_(deformable.conv4.offset_conv.bias, 0.7)
    assert not torch.allclose(deformable(images), twin(images), atol=1e-3)


def test_a_seed_decides_a_run_and_scores_count_right_answers(tmp_path: Path) -> None:
    train = Split(digits(24), torch.arange(24) % 10)
    budget = Budget(3, 8, None, None)
    row = SETS["mnist-rotated"]
    runs = [
        train_classifier(row, "deformable", train, train, budget, seed, tmp_path / str(number))
        for number, seed in enumerate((0, 0, 1))
    ]
    states = [torch.cat([v.flatten() for v in run.model.state_dict().values()]) for run in runs]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])
    assert runs[0].curve == runs[1].curve and [p["step"] for p in runs[0].curve] == [1, 2, 3]
    offsets = runs[0].model.conv2.offset_conv.weight
    assert offsets.abs().max() > 0  # they learn
    moved = moved_once(row, train)
    with torch.no_grad():
        answers = runs[0].model.eval()(moved.images).argmax(1)
    assert accuracy(runs[0].model, moved) == (answers == moved.labels).double().mean().item()


def result(accuracy: float) -> Result:
    return {
        "accuracy": accuracy,
        "settings": {
            "pictures": "CIFAR-10, 6,000 pictures", "angle": 180, "shift": 0, "frame": 32,
            "parameters": 1234, "steps": 5, "batch": 2,
            "training": {"optimizer": "sgd", "lr": 0.1, "offset_lr_factor": 0.5},
        },
        "environment": {
            "date": "2026-01-02", "processor": "P", "threads": 1, "cores": 2, "python": "3",
            "torch": "2", "torchvision": "0", "backend": "native",
        },
    }  # fmt: skip


def test_the_table_by_hand() -> None:
    values = {"plain": (0.50, 0.52, 0.99), "deformable": (0.53, 0.56)}  # a third seed is half done
    results = {
        ("cifar-rotated", net, seed): result(value)
        for net in NETS
        for seed, value in enumerate(values[net])
    }
    (row,) = summarise(results, ["mnist", "cifar-rotated"])
    assert row["seeds"] == [0, 1] and row["plain"]["std"] == pytest.approx(math.sqrt(2))
    assert row["plain"]["mean"] == pytest.approx(51) and row["deformable"]["mean"] == 54.5
    # Differences 3 and 4: 3.5 +- t(1 degree of freedom) * sqrt(1/2) / sqrt(2).
    assert row["difference"]["low"] == pytest.approx(3.5 - 12.706 / 2, rel=1e-4)
    assert not row["difference"]["beyond_noise"]
    about = {"command": "python x", "runs": 5, "of": 6, "passes": {"CIFAR-10": 0.64}}
    text = render_table([row], list(results.values()), about)
    assert "| cifar-rotated | CIFAR-10, 6,000 pictures | 51.00 ± 1.41 | 54.50 ± 2.12 |" in text
    assert "| +3.50 (-2.85 to +9.85) | 2 | 53.01 / 55.16 |" in text
    assert (
        "5 of 6" in text
        and "0.64 over CIFAR-10" in text
        and "1,234 plain" in text
        and "by up to ±180° in 32 x 32" in text
    )


def write_data(root: Path) -> None:
    (root / "data/mnist").mkdir(parents=True)
    (root / "data/cifar10").mkdir()
    for split, count in (("train", 30), ("test", 12)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        np.savez(root / f"data/mnist/mnist_{split}.npz", x=digits(count)[:, 0].numpy(), y=labels)
    with zipfile.ZipFile(root / "data/cifar10/cifar10_jpeg_6000.zip", "w") as archive:
        for number, name in enumerate(
            f"{s}/{w}" for s in ("train", "test") for w in ("cat", "dog")
        ):
            buffer = io.BytesIO()
            Image.new("RGB", (32, 32), (60 * number, 9, 200)).save(buffer, "JPEG", quality=95)
            archive.writestr(f"{name}/0000.jpg", buffer.getvalue())


def test_files_are_read_as_they_are(tmp_path: Path) -> None:
    write_data(tmp_path)
    mnist, cifar = (read_pictures(source, tmp_path) for source in ("mnist", "cifar"))
    assert torch.equal(mnist.train.images, digits(30)) and mnist.test.labels[-1] == 1
    assert cifar.name == "CIFAR-10, 4 pictures" and cifar.train.labels.tolist() == [3, 5]
    first = cifar.test.images[0, :, 5, 5].int() - torch.tensor([120, 9, 200])  # red, green, blue
    assert first.abs().max() < 6
    assert mnist.sha256() != cifar.sha256()
    part = mnist.train.subset(7)
    assert len(part.labels) == 7 and torch.equal(part.images, mnist.train.subset(7).images)
    with pytest.raises(UsageError, match="31 pictures are asked for, and there are 30"):
        mnist.train.subset(31)


def test_what_torchvision_keeps_is_read_and_preferred(tmp_path: Path) -> None:
    write_data(tmp_path)
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    for split, count in (("train", 3), ("t10k", 2)):
        images = np.arange(count * 28 * 28, dtype=np.uint32).astype(np.uint8)
        head = struct.pack(">IIII", 0x803, count, 28, 28)  # the format's own: magic, sizes
        (tmp_path / f"MNIST/raw/{split}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        labels = struct.pack(">II", 0x801, count) + bytes(range(4, 4 + count))
        (tmp_path / f"MNIST/raw/{split}-labels-idx1-ubyte").write_bytes(labels)
    mnist = read_pictures("mnist", tmp_path)
    assert mnist.train.images.shape == (3, 1, 28, 28) and mnist.test.labels.tolist() == [4, 5]
    assert mnist.train.images[1, 0, 2, 3] == (28 * 28 + 2 * 28 + 3) % 256


def test_missing_and_damaged_data_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"no MNIST in .*mnist_train\.npz; --download"):
        read_pictures("mnist", tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        read_pictures("cifar", tmp_path / "none")
    write_data(tmp_path)
    (tmp_path / "data/cifar10/cifar10_jpeg_6000.zip").write_bytes(b"no archive")
    (tmp_path / "data/mnist/mnist_test.npz").write_bytes(b"no array")
    for source in ("mnist", "cifar"):
        with pytest.raises(DataError, match="cannot be read"):
            read_pictures(source, tmp_path)
    import torchvision

    def no_network(*args: object, **more: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", no_network)
    with pytest.raises(DownloadError, match=r"MNIST could not be fetched .*no network"):
        read_pictures("mnist", tmp_path / "new", download=True)


TINY = ("--threads", "1", "--batch", "4", "--steps", "4", "--seeds", "1")
ROWS = ("--sets", "mnist-rotated-translated,cifar")


def test_end_to_end_resumed_and_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path / "in")
    out = tmp_path / "out"
    words = ["--data", str(tmp_path / "in"), "--output", str(out), *TINY, *ROWS]
    script = [sys.executable, str(SCRIPTS / "experiments" / "geometry_table.py"), *words]
    first = subprocess.run(script, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert "| mnist-rotated-translated | MNIST |" in first.stdout
    assert first.stdout.strip() == (out / "table.md").read_text().strip()
    for name in ("curves.png", "sampling.png"):
        with Image.open(out / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 3
    assert len(list(out.glob("runs/*/events.out.tfevents.*"))) == 4
    # One run is lost, with its events left behind as by a kill: the same table comes again.
    lost = out / "runs/cifar-deformable-seed0.json"
    before, weights = json.loads(lost.read_text()), lost.with_suffix(".safetensors").read_bytes()
    lost.unlink()
    assert main(words) == 0
    shown = capsys.readouterr()
    assert shown.out == first.stdout and shown.err.count("done before") == 3
    after = json.loads(lost.read_text())
    assert after.pop("seconds") and before.pop("seconds") and after == before
    assert lost.with_suffix(".safetensors").read_bytes() == weights
    assert len(list(lost.with_suffix("").iterdir())) == 1

    assert main([*words, "--steps", "5"]) == 2
    wrong = "was made with steps 4, and now it is 5: choose another --output"
    assert wrong in capsys.readouterr().err
    lost.with_suffix(".safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert main(words) == 5
    assert "is damaged: remove" in capsys.readouterr().err
    lost.write_text('{"settings": 3}')
    assert main(words) == 5
    assert "is not a result of this script" in capsys.readouterr().err


def test_wrong_command_lines_end_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEGDEFORM_TEST_DATA", raising=False)
    where = ["--output", str(tmp_path / "out")]
    for more, code, text in (
        ([], 2, "give --data DIR"),
        (["--data", str(tmp_path), "--sets", "mnist-rotatd"], 2, "Did you mean 'mnist-rotated'?"),
        (["--data", str(tmp_path), *TINY], 4, "no MNIST in"),
        (["--download"], 2, "no data: give --data DIR"),
    ):
        assert main([*where, *more]) == code
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_real_pictures(tmp_path: Path) -> None:
    root = external_data("data/mnist/mnist_train.npz").parents[2]
    mnist, cifar = (read_pictures(source, root) for source in ("mnist", "cifar"))
    assert mnist.train.images.shape == (60000, 1, 28, 28) and len(mnist.test.labels) == 10000
    assert cifar.name == "CIFAR-10, 6,000 pictures"
    assert cifar.train.labels.bincount().tolist() == [500] * 10
    assert cifar.test.labels.bincount().tolist() == [100] * 10
