"""Pictures a second of `segdeform predict`, against the network alone, in one process.

    python scripts/benchmark_predict.py [--backbone mobilenet_v2] [--layers 3] [--side 512]

The network is random and made for inference (BatchNorm folded); the pictures are generated JPEGs.
`--precision` and `--compile` are those of the command. Each round measures the network on tensors
in memory, then all of `predict` into a new folder, so that a machine's moods meet both; medians
over the rounds are printed. `--onnx` adds ONNX Runtime on the same network without deformable
layers (extra dev).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from segdeform.config.schema import DeformConfig, EvalConfig, ModelConfig
from segdeform.machine.cpu import keep_freed_memory
from segdeform.models import build_model
from segdeform.models.deeplab import DeepLab
from segdeform.models.folding import fold_batch_norm
from segdeform.models.precision import Precision, compute_in
from segdeform.prediction.predict import predict
from segdeform.segmenter import Segmenter

PREDICTIONS = {
    "predict, masks": ("masks",),
    "predict, masks and overlays": ("masks", "overlays"),
}


def random_segmenter(
    backbone: str, layers: int, precision: Precision = "fp32", classes: int = 21
) -> Segmenter:
    """Builds a network whose BatchNorm and offsets are as after a training."""
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"backbone": backbone, "weights": "none"})
    model = build_model(config, DeformConfig(layers=layers), classes).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if hasattr(module, "offset_conv"):
            nn.init.normal_(module.offset_conv.weight, std=0.01)
    fold_batch_norm(model)
    compute_in(model, precision)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    palette = tuple((k * 37 % 256, k * 91 % 256, k * 53 % 256) for k in range(classes))
    names = tuple(f"class {k}" for k in range(classes))
    device, info = torch.device("cpu"), {"sha256": "0"}
    return Segmenter(
        model, names, palette, EvalConfig(), device, info, None, None, precision=precision
    )


def write_pictures(folder: Path, count: int, side: int) -> Tensor:
    """Writes JPEGs of smooth noise; returns one as the network takes it, [1, 3, side, side]."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (side // 16, side // 16, 3), np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{k}.jpg", quality=90)
    pixels = torch.tensor(np.asarray(Image.open(folder / "0.jpg")))
    return pixels.permute(2, 0, 1)[None].float() / 255


def onnx_runner(model: DeepLab, picture: Tensor, threads: int) -> Callable[[], object]:
    """Exports the plain network and returns a call of ONNX Runtime on a picture in memory."""
    import onnxruntime

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            return self.model(images)[0]

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "m.onnx"
        program = torch.onnx.export(Scores().eval(), (picture,), dynamo=True, opset_version=20)
        assert program is not None
        program.save(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name, array = session.get_inputs()[0].name, picture.contiguous().numpy()
    return lambda: session.run(None, {name: array})


def seconds(work: Callable[[], object], times: int = 1) -> tuple[float, float]:
    """Returns the seconds of one of several calls, by the clock and of all cores' work."""
    begun, worked = time.perf_counter(), time.process_time()
    for _ in range(times):
        work()
    return (time.perf_counter() - begun) / times, (time.process_time() - worked) / times


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--onnx", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    segmenter = random_segmenter(given.backbone, given.layers, given.precision)
    if given.compile:
        segmenter.compile(print)
    with tempfile.TemporaryDirectory() as place, torch.inference_mode():
        folder = Path(place) / "in"
        picture = write_pictures(folder, given.pictures, given.side)
        picture = picture.contiguous(memory_format=torch.channels_last)
        for _ in range(3):  # a size is compiled for when it comes again
            segmenter.model.maps(picture)
        whole = {
            "network alone": lambda: segmenter.model.maps(picture),
            "labels of a picture in memory": lambda: segmenter.predict(
                (picture[0].permute(1, 2, 0) * 255).to(torch.uint8).numpy()
            ),
        }
        if given.onnx:
            plain = random_segmenter(given.backbone, 0).model
            whole["ONNX Runtime, plain network, scores"] = onnx_runner(
                plain, picture, given.threads
            )
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in whole}
        runs |= {name: [] for name in PREDICTIONS}
        for number in range(given.rounds):
            for name, work in whole.items():
                runs[name].append(seconds(work, given.pictures))
            for name, outputs in PREDICTIONS.items():
                out = Path(place) / f"out{number}{len(outputs)}"
                both = seconds(lambda: predict(segmenter, [folder], out, outputs=outputs))  # noqa: B023
                runs[name].append((both[0] / given.pictures, both[1] / given.pictures))
    made = f"{given.precision}{', compiled' if given.compile else ''}"
    print(
        f"{given.backbone}, {given.layers} deformable layers, {given.side}x{given.side} pixels, "
        f"{made}; milliseconds a picture and share of the network's pace, by the clock and by the "
        "work of all cores, which other processes change less"
    )
    base = [statistics.median(column) for column in zip(*runs["network alone"], strict=True)]
    for name, taken in runs.items():
        middle = [statistics.median(column) for column in zip(*taken, strict=True)]
        shown = (f"{1000 * m:8.1f} {b / m:7.1%}" for b, m in zip(base, middle, strict=True))
        print(f"{name:40} {'   '.join(shown)}")


if __name__ == "__main__":
    main()
