"""`segdeform import` and the first minute after it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdeform.cli import main
from segdeform.importing.import_model import Imported
from segdeform.segmenter import load

MOBILE = "deeplabv3_mobilenet_v3_large"


def test_a_picture_is_labelled_in_the_first_minute(
    tmp_path: Path,
    files: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights, model, output = files(MOBILE), tmp_path / "voc21", tmp_path / "out"
    pixels = np.random.default_rng(1).integers(0, 255, (90, 133, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    words = ["import", f"torchvision:{MOBILE}", "--weights", str(weights), "--output", str(model)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "21 classes: background, aeroplane" in said and "--shorter-side 0" in said
    assert f"segdeform predict {model} PICTURES" in said
    assert main(["predict", str(model), str(tmp_path / "photo.png"), "--output", str(output)]) == 0
    with Image.open(output / "masks" / "photo.png") as mask:
        labels = np.array(mask)
    assert labels.shape == (90, 133) and labels.max() < 21
    np.testing.assert_array_equal(labels, load(model, "cpu").predict(pixels).labels)

    capsys.readouterr()
    assert main(["info", str(model)]) == 0
    table = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"imported from torchvision:{MOBILE}" in table and "licence torchvision is BSD" in table
    assert main(["info", str(model), "--json"]) == 0
    sha256 = json.loads(capsys.readouterr().out)["origin"]["sha256"]
    assert sha256 in table.replace(" ", "")

    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--deform-layers", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["deform"]["layers"] == 2
    assert len(load(model, "cpu").info["deformable_layers"]) == 2


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["torchvision:deeplabv3_resnet5"], 2, "Did you mean 'deeplabv3_resnet50'"),
        (["torchvision:fcn"], 2, "deeplabv3_mobilenet_v3_large, deeplabv3_resnet101"),
        (["deeplabv3_resnet50"], 2, "Did you mean 'torchvision:deeplabv3_resnet50'"),
        (["huggingface:x/y"], 2, "Known: torchvision:deeplabv3_resnet50"),
        (["lost.pth"], 5, "lost.pth is missing"),
        (["torchvision:deeplabv3_resnet50", "--weights", "lost.pth"], 5, "lost.pth is missing"),
        (["torchvision:deeplabv3_resnet50", "--weights", "."], 5, "is a folder"),
        (["w.pth", "--weights", "w.pth"], 2, "--weights is for torchvision:NAME"),
        (["w.onnx"], 5, "none of .pth"),
        (["w.pth", "--output", "full"], 2, "full exists already"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("w.pth", "w.onnx"):
        Path(name).write_bytes(b"")
    Path("full").mkdir()
    Path("full", "thesis.txt").write_text("text", encoding="utf-8")
    output = [] if "--output" in words else ["--output", "m"]
    assert main(["import", *words, *output]) == code
    said = capsys.readouterr().err
    assert named in said and said.count("\n") == 1
    assert not Path("m").exists() and Path("full", "thesis.txt").exists()


def test_other_files_are_refused_also_with_overwrite(
    tmp_path: Path, files: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("text", encoding="utf-8")
    words = ["import", str(files(MOBILE)), "--output", str(tmp_path), "--overwrite"]
    assert main(words) == 2
    assert "holds other files" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "text"


def test_class_lists_of_another_length_and_too_many_layers_are_refused(
    tmp_path: Path, files: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("road\ncar\n", encoding="utf-8")
    words = ["import", str(files(MOBILE)), "--output", str(tmp_path / "m")]
    assert main([*words, "--classes", str(names)]) == 2
    assert "names 2 classes" in capsys.readouterr().err
    assert main([*words, "--classes", str(tmp_path / "lost.txt")]) == 4
    assert main([*words, "--deform-layers", "99"]) == 3
    assert "deform.layers is 99" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_mistakes_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys; from segdeform.cli import main; "
        "code = main(['import', 'torchvision:fcn', '--output', 'm']); "
        "sys.exit(code + 100 * ('torch' in sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True)
    assert ended.returncode == 2, ended.stderr


def test_models_of_before_have_no_origin(imported: Callable[[str], tuple[Path, Imported]]) -> None:
    described = imported(MOBILE)[1].description.model_dump(mode="json")
    del described["origin"], described["model"]["stem"], described["model"]["aspp_mixing"]
    again = type(imported(MOBILE)[1].description).model_validate(described)
    assert again.origin is None and again.model == imported(MOBILE)[1].description.model
