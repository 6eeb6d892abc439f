from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import segdeform
from segdeform.config.schema import DeformConfig, EvalConfig, ModelConfig
from segdeform.errors import ConfigError, DataError, ModelError, SegdeformError, UsageError
from segdeform.files.manifest import MANIFEST, replacing_folder, write_manifest
from segdeform.files.tensors import write_tensors
from segdeform.models import build_model
from segdeform.models.deeplab import DeepLab
from segdeform.results.maps import Maps
from segdeform.results.result import Result
from segdeform.segmenter import ModelDescription, load, save_model, write_description

FILES = ("model.safetensors", "model.json", MANIFEST)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Computes on one thread: for networks this small more of them only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def description() -> ModelDescription:
    return ModelDescription(
        model=ModelConfig.model_validate(
            {"backbone": "mobilenet_v2", "weights": "/gone/w.pth", "head_channels": 8}
        ),
        deform=DeformConfig.model_validate({"layers": 2, "variant": "v1"}),
        classes=("ground", "Bäume"),
        palette=((0, 0, 0), (20, 255, 30)),
        mean=(0.5, 0.4, 0.3),
        eval=EvalConfig.model_validate({"flip": True}),
        training={"steps": 3, "data": {"name": "shapes"}},
    )


@pytest.fixture(scope="module")
def model(description: ModelDescription) -> DeepLab:
    torch.manual_seed(0)
    model = build_model(
        description.model, description.deform, 2, pretrained=False, mean=description.mean
    ).eval()
    for name, parameter in model.named_parameters():
        if "offset_conv" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def original(
    tmp_path_factory: pytest.TempPathFactory, model: DeepLab, description: ModelDescription
) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model(folder, model, description)
    return folder


@pytest.fixture
def folder(tmp_path: Path, original: Path) -> Path:
    """Returns a copy of a model folder, to be spoilt."""
    return shutil.copytree(original, tmp_path / "model")


def test_a_saved_model_computes_the_same(
    original: Path, model: DeepLab, description: ModelDescription
) -> None:
    state = torch.get_rng_state()
    segmenter = load(original, "cpu", trainable=True)
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.rand(1, 3, 40, 37)
    with torch.inference_mode():
        assert torch.equal(segmenter.model(images).logits, model(images).logits)
    assert not segmenter.model.training
    assert segmenter.classes == description.classes and segmenter.palette == description.palette
    assert segmenter.options == description.eval and segmenter.device == torch.device("cpu")
    assert segmenter.info["training"] == description.training
    assert segmenter.info["sha256"] == segmenter_hash(original)
    names = ["features.16.conv.1.0", "features.17.conv.1.0"]
    assert segmenter.info["deformable_layers"] == names
    assert segmenter.info["parameters"] == sum(p.numel() for p in model.parameters())
    assert json.loads(json.dumps(segmenter.info)) == segmenter.info


def test_a_model_is_kept_to_what_its_crop_taught_it(
    model: DeepLab,
    description: ModelDescription,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also where the crop stands among what was told of the training, as in older folders."""
    crop = (100, 200)  # 7 x 13 values at stride 16, of rates 6, 12 and 18
    older = {**description.training, "data": {"name": "shapes", "crop": list(crop)}}
    other = {**description.training, "data": {"name": "shapes", "crop": [9, 9]}}
    for name, keys in (("new", {"crop": crop, "training": other}), ("old", {"training": older})):
        value = description.model_dump(mode="json") | keys
        value["eval"]["scales"] = [0.5, 1.25]
        if name == "old":
            del value["crop"]
        save_model(tmp_path / name, model, ModelDescription.model_validate(value))
        caplog.clear()
        segmenter = load(tmp_path / name, "cpu", trainable=True)
        assert segmenter.info["crop"] == list(crop)
        assert segmenter.options.automatic_tile == 160
        loaded = segmenter.model.head.aspp.branches
        for branch, kept in ((1, "all"), (2, "row"), (3, "middle")):
            weight = loaded[branch][0][0].weight.detach()
            expected = model.head.aspp.branches[branch][0][0].weight.detach().clone()
            if kept != "all":
                expected[:, :, [0, 2]] = 0
            if kept == "middle":
                expected[..., [0, 2]] = 0
            assert torch.equal(weight, expected)
        assert f"training crop {list(crop)} is a map of 7x13" in caplog.text
        assert "taps at dilation 12, 18" in caplog.text


def test_a_window_that_the_folder_names_is_kept(folder: Path) -> None:
    content = json.loads((folder / "model.json").read_text()) | {"crop": [256, 320]}
    for named, found in ((None, 320), (64, 64), (4000, 4000)):
        content["eval"]["automatic_tile"] = named
        (folder / "model.json").write_text(json.dumps(content))
        write_manifest(folder)
        assert load(folder, "cpu").options.automatic_tile == found


def test_a_folder_of_before_value_range_loads(folder: Path) -> None:
    content = json.loads((folder / "model.json").read_text())
    assert content.pop("value_range") is None
    for added, found in (({}, None), ({"value_range": [5, 4095.5]}, (5, 4095.5))):
        (folder / "model.json").write_text(json.dumps(content | added))
        write_manifest(folder)
        assert load(folder, "cpu").value_range == found
    (folder / "model.json").write_text(json.dumps(content | {"value_range": [3, 3]}))
    write_manifest(folder)
    with pytest.raises(ModelError, match=r"model\.json is damaged.*value_range"):
        load(folder, "cpu")


def test_a_model_with_named_deformable_layers_is_kept(
    tmp_path: Path, description: ModelDescription
) -> None:
    torch.manual_seed(1)
    deform = DeformConfig.model_validate({"layers": ["features.1[12].*"]})
    described = description.model_copy(update={"deform": deform})
    model = build_model(described.model, deform, 2, pretrained=False, mean=described.mean).eval()
    save_model(tmp_path / "model", model, described)
    found = load(tmp_path / "model", "cpu", trainable=True)
    assert found.info["deformable_layers"] == ["features.11.conv.1.0", "features.12.conv.1.0"]
    assert found.info["deform"]["layers"] == ["features.1[12].*"]
    images = torch.rand(1, 3, 33, 40)
    with torch.inference_mode():
        expected = model.to(memory_format=torch.channels_last)(images).logits
        assert torch.equal(found.model(images).logits, expected)


def segmenter_hash(folder: Path) -> str:
    digest = json.loads((folder / MANIFEST).read_text())["files"]["model.safetensors"]["sha256"]
    assert isinstance(digest, str)
    return digest


def test_weights_are_float32_in_the_file(original: Path, model: DeepLab, tmp_path: Path) -> None:
    tensors = load_file(original / "model.safetensors")
    for name, value in model.state_dict().items():
        assert tensors[name].dtype == value.dtype and torch.equal(tensors[name], value)
    write_tensors(tmp_path / "half.safetensors", {"w": torch.ones(2, dtype=torch.bfloat16)})
    assert load_file(tmp_path / "half.safetensors")["w"].dtype == torch.float32


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_who_may_read_the_files_is_for_the_umask_to_say(
    mask: int, model: DeepLab, description: ModelDescription, tmp_path: Path
) -> None:
    former = os.umask(mask)
    try:
        save_model(tmp_path / "model", model, description)
    finally:
        os.umask(former)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~mask) and "model.safetensors" in modes


def test_half_precision_weights_are_computed_with_in_float32(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    half = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    save_file(half, folder / "model.safetensors")
    write_manifest(folder)
    for name, value in load(folder, "cpu", trainable=True).model.state_dict().items():
        assert value.dtype == tensors[name].dtype and torch.equal(value, half[name].to(value.dtype))


def test_pictures_are_given_as_arrays_or_paths(original: Path, tmp_path: Path) -> None:
    segmenter = segdeform.load(str(original), device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (30, 44, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    labels = segmenter.predict(image).labels
    assert labels.shape == (30, 44) and labels.dtype == np.uint8
    assert np.array_equal(segmenter.predict(tmp_path / "a.png"), labels)
    assert np.array_equal(segmenter.logits(str(tmp_path / "a.png")).argmax(0).numpy(), labels)
    # The average over both flips does not know left from right.
    assert np.mean(segmenter.predict(image[:, ::-1]).labels[:, ::-1] == labels) > 0.99


def test_many_pictures_are_given_as_lists_or_lazily(original: Path, tmp_path: Path) -> None:
    segmenter = segdeform.load(original, device="cpu")
    rng = np.random.default_rng(1)
    arrays = [rng.integers(0, 256, (20 + 3 * k, 31 - k, 3), np.uint8) for k in range(5)]
    paths = [tmp_path / f"{k}.png" for k in range(5)]
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    alone = [segmenter.predict(array).labels for array in arrays]
    results = segmenter.predict(paths)
    assert [result.source for result in results] == paths
    assert all(map(np.array_equal, [result.labels for result in results], alone))
    assert isinstance(segmenter.predict(tuple(arrays)), list) and segmenter.predict([]) == []
    taken = []

    def camera() -> Iterator[NDArray[np.uint8]]:
        for k, array in enumerate(arrays):
            taken.append(k)
            yield array

    lazily = segmenter.predict(camera())
    first = next(lazily)
    assert taken == [0] and first.source is None and np.array_equal(first.labels, alone[0])
    assert all(map(np.array_equal, [result.labels for result in lazily], alone[1:]))
    seen = list(segmenter.predict(iter(paths)))
    assert [result.source for result in seen] == paths
    (tmp_path / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"3\.png"):
        segmenter.predict(paths)
    lazily = segmenter.predict(iter(paths[2:]))
    assert next(lazily).source == paths[2]
    with pytest.raises(DataError, match=r"3\.png"):
        next(lazily)
    assert next(lazily).source == paths[4]  # one that cannot be read costs no other


def test_automatic_windows_follow_the_scales(original: Path) -> None:
    """A window of 320 pixels, reduced to an eighth, would show the network 40."""
    segmenter = segdeform.load(original, device="cpu").with_options(automatic_tile=320)
    reduced = segmenter.with_options(scales=(0.125,))
    assert reduced.options.automatic_tile == 2560
    assert reduced.with_options(scales=(0.125, 0.5)).options.automatic_tile == 640
    assert reduced.with_options(scales=(1.0,)).options.automatic_tile == 320
    assert segmenter.with_options(scales=(2.0,), automatic_tile=99).options.automatic_tile == 99
    assert segmenter.with_options(flip=False).options.automatic_tile == 320


def test_objects_are_shown_in_a_line(original: Path) -> None:
    segmenter = segdeform.load(original, device="cpu")
    result = segmenter.predict(np.zeros((8, 9, 3), np.uint8))
    assert len(repr(segmenter)) < 200 and len(repr(result)) < 200
    assert "8x9" in repr(result) and "2 classes" in repr(segmenter)
    assert result == result and result != segmenter.predict(np.zeros((8, 9, 3), np.uint8))


def test_several_threads_may_predict_at_once(original: Path) -> None:
    segmenter = segdeform.load(original, device="cpu")
    rng = np.random.default_rng(2)
    pictures = [rng.integers(0, 256, (40 + k, 52 - k, 3), np.uint8) for k in range(12)]
    alone = [segmenter.predict(picture).labels for picture in pictures]
    start = threading.Barrier(4)

    def work(first: int) -> list[NDArray[Any]]:
        start.wait()
        return [np.asarray(segmenter.predict(picture)) for picture in pictures[first::4]]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, range(4)))
    for first, labels in enumerate(together):
        assert all(map(np.array_equal, labels, alone[first::4]))


@pytest.mark.parametrize("options", [{"flip": False}, {"flip": True}, {"flip": False, "tile": 16}])
def test_probabilities_are_had_on_demand(original: Path, options: dict[str, Any]) -> None:
    segmenter = segdeform.load(original, device="cpu").with_options(**options)
    image = np.random.default_rng(4).integers(0, 256, (21, 34, 3), np.uint8)
    result = segmenter.predict(image)
    expected = segmenter.logits(image).softmax(0).numpy()
    assert result.probabilities.dtype == np.float16 and result.confidence.dtype == np.uint8
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-3)
    top = np.round(255 * expected.max(0)).astype(int)
    assert np.abs(result.confidence.astype(int) - top).max() <= 1
    assert result.probabilities is result.probabilities  # computed once
    asked = segmenter.label(image, confidence=True)
    assert np.array_equal(asked.confidence, result.confidence)


def test_a_result_tells_shares_and_draws_itself(original: Path) -> None:
    segmenter = segdeform.load(original, device="cpu")
    image = np.full((3, 4, 3), 100, np.uint8)
    labels = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]], np.uint8)
    result = Result(
        Maps(labels), image, ("ground", "Bäume", "none"), (*segmenter.palette, (9, 9, 9))
    )
    assert result.shares() == {"ground": 0.5, "Bäume": 0.5} and result.size == (3, 4)
    drawn = result.overlay()
    # Black classes are left as they are; the other is mixed with (20, 255, 30), the border most.
    assert (drawn[:, :2] == 100).all()
    assert drawn[0, 3].tolist() == [(100 * 128 + c * 128) >> 8 for c in (20, 255, 30)]
    assert drawn[0, 2].tolist() == [(100 * 16 + c * 240) >> 8 for c in (20, 255, 30)]
    assert (image == 100).all()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((3, 4, 5), np.uint8), "channels come last, give array.transpose(1, 2, 0)"),
        (np.zeros((4, 4, 2), np.uint8), "is [H, W], [H, W, 3] or [H, W, 4], not empty; this is [4"),
        (np.zeros((2, 4, 4, 3), np.uint8), "give one picture at a time"),
        (np.zeros((4, 4, 3), np.float32), "float32: of 0 to 1, give (255 * array).round().astype("),
        (np.zeros((4, 4), bool), "bool: give 255 * array.astype(numpy.uint8)"),
        (np.zeros((4, 4), np.int64), "int64: give array.astype(numpy.uint8), or set segmenter.val"),
        (np.zeros((0, 4, 3), np.uint8), "not empty; this is [0, 4, 3]"),
        (torch.zeros(3, 4, 4), "this is Tensor: give tensor.permute(1, 2, 0).cpu().numpy()"),
        ([[0, 0, 0]], "a picture is a path, an array or a PIL image; this is list"),
        (Image.new("F", (4, 5)), "float32: of 0 to 1"),
    ],
)
def test_other_arrays_are_refused_with_what_to_do(original: Path, image: Any, said: str) -> None:
    segmenter = load(original, "cpu")
    for method in (segmenter.predict, segmenter.logits):
        with pytest.raises(DataError) as caught:
            method(image)
        assert said in str(caught.value)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
@pytest.mark.parametrize("turn", [1, 6])
def test_pil_pictures_and_arrays_are_read_as_their_files(
    original: Path, tmp_path: Path, mode: str, turn: int
) -> None:
    """Whatever Pillow has opened, or made; its file is the truth."""
    rng = np.random.default_rng(3)
    if mode in ("I;16", "I"):
        values = rng.integers(0, 65536, (30, 44), np.uint16)
        made = Image.fromarray(values if mode == "I;16" else values.astype(np.int32))
    else:
        made = Image.fromarray(rng.integers(0, 256, (30, 44, 3), np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = turn
    suffix = {"CMYK": ".jpg", "YCbCr": ".tif", "I": ".tif"}.get(mode, ".png")
    made.save(tmp_path / f"a{suffix}", exif=exif)
    segmenter = load(original, "cpu")
    expected = segmenter.read(tmp_path / f"a{suffix}")
    assert expected.shape == ((30, 44, 3) if turn == 1 else (44, 30, 3))
    with Image.open(tmp_path / f"a{suffix}") as opened:
        np.testing.assert_array_equal(segmenter._pixels(opened), expected)
    if turn == 1 and suffix != ".jpg":
        np.testing.assert_array_equal(segmenter._pixels(made), expected)


def test_grey_deep_and_transparent_arrays(original: Path) -> None:
    segmenter = load(original, "cpu")
    grey = np.random.default_rng(4).integers(0, 256, (30, 44), np.uint8)
    expected = np.stack([grey] * 3, 2)
    for given in (
        grey,
        grey[..., None],
        np.dstack([expected, 255 - grey]),
        grey.astype(np.uint16) * 257,
        expected.astype(np.uint16) * 257,
    ):
        np.testing.assert_array_equal(segmenter._pixels(given), expected)
    segmenter.value_range = (-1.0, 4.1)  # 0.02 a step
    floats = grey.astype(np.float32) * 0.02 - 1
    np.testing.assert_array_equal(segmenter._pixels(floats), expected)
    assert np.array_equal(segmenter.predict(floats), segmenter.predict(expected))


def test_options_are_replaced_and_wrong_ones_named(original: Path) -> None:
    segmenter = load(original, "cpu")
    other = segmenter.with_options(tile=32, flip=True)
    assert (other.options.tile, other.options.flip, segmenter.options.tile) == (32, True, 0)
    with pytest.raises(ConfigError, match=r"unknown option 'tyle'. Did you mean 'tile'"):
        segmenter.with_options(tyle=3)
    with pytest.raises(ConfigError, match="overlap = 2: "):
        segmenter.with_options(overlap=2)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove"])
def test_damage_is_found_and_named(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        # A digit of a hash in the manifest; elsewhere any byte will do.
        position = content.rindex(b'"bytes"') - 10 if name == MANIFEST else len(content) // 2
        content[position] ^= 1
    if damage in ("cut", "empty"):
        del content[len(content) // 2 if damage == "cut" else 0 :]
    path.write_bytes(content)
    if damage == "remove":
        path.unlink()
    with pytest.raises(ModelError) as caught:
        load(folder, "cpu")
    text = str(caught.value)
    # A wrong hash in the manifest looks like a wrong file.
    assert (str(folder) if (name, damage) == (MANIFEST, "flip") else name) in text
    assert "\n" not in text


def test_unsuitable_tensors_are_refused_though_their_hash_is_right(folder: Path) -> None:
    path = folder / "model.safetensors"
    good = load_file(path)
    name = "head.score.bias"
    changes: dict[str, Callable[[dict[str, Tensor]], Any]] = {
        "lacks head.score.bias": lambda t: t.pop(name),
        "unknown stranger": lambda t: t.update(stranger=torch.zeros(1)),
        r"head.score.bias has the shape \[3\].*\[2\]": lambda t: t.update({name: torch.zeros(3)}),
        "head.score.bias is torch.int64": lambda t: t.update({name: torch.tensor([1, 2])}),
        "head.score.bias holds values": lambda t: t.update({name: torch.tensor([0, torch.nan])}),
    }
    for message, change in changes.items():
        tensors = dict(good)
        change(tensors)
        save_file(tensors, path)
        write_manifest(folder)
        with pytest.raises(ModelError, match=message) as caught:
            load(folder, "cpu")
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format_version", 2, "format version 2"),
        ("format_version", None, "does not describe a model"),
        ("stranger", 1, "stranger"),
        ("classes", [], "classes"),
        ("classes", ["a"], "2 colours for 1 classes"),
        ("palette", [[0, 0, 0], [0, 0, 256]], r"palette\.1\.2"),
        ("std", [1, 1, 0], r"std\.2"),
        ("deform", {"layers": 99}, "deform.layers is 99"),
        ("deform", {"layers": 2, "variant": "v1", "offset_groups": 7}, "offset_groups is 7"),
        ("deform", {"layers": 1, "variant": "v1"}, "unknown backbone"),
        ("model", {"backbone": "resnet101", "weights": "none"}, "and .* more"),
        (
            "model",
            {"backbone": "mobilenet_v2", "weights": "none", "head_channels": 10**6},
            "this network needs",
        ),
    ],
)
def test_an_unsuitable_description_is_refused_though_its_hash_is_right(
    folder: Path, key: str, value: Any, message: str
) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    write_manifest(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load(folder, "cpu")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"null"])
def test_a_description_that_is_no_json_object_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.json").write_bytes(content)
    write_manifest(folder)
    with pytest.raises(ModelError, match=r"model\.json"):
        load(folder, "cpu")


def test_a_run_folder_gives_its_model(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "run" / "model")
    (tmp_path / "run" / "checkpoints" / "step-00000009").mkdir(parents=True)
    assert load(tmp_path / "run", "cpu").info["path"] == str(tmp_path / "run" / "model")
    (tmp_path / "run" / "model" / "model.json").unlink()
    with pytest.raises(ModelError, match=r"model\.json"):  # never something older in silence
        load(tmp_path / "run", "cpu")


def test_a_run_in_progress_gives_its_newest_intact_checkpoint(
    model: DeepLab,
    description: ModelDescription,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    average = {name: value.clone() for name, value in model.state_dict().items()}
    average["head.score.bias"] += 1
    for step in (90, 1000, 100_000_000):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        with replacing_folder(folder) as new:
            write_tensors(new / "model.safetensors", model.state_dict())
            if step != 90:
                write_tensors(new / "ema.safetensors", average)
            (new / "state.json").write_text("{}")
            write_description(new, description)
    (tmp_path / "checkpoints" / "step-best").mkdir()

    def bias() -> float:
        segmenter = load(tmp_path, "cpu")
        found = (
            segmenter.model.state_dict()["head.score.bias"] - model.state_dict()["head.score.bias"]
        )
        return float(found[0])

    assert load(tmp_path, "cpu").info["path"].endswith("step-100000000")
    (tmp_path / "checkpoints" / "step-100000000" / "state.json").write_text("{1")
    assert bias() == 1  # of the averaged weights
    assert "state.json" in caplog.text
    (tmp_path / "checkpoints" / "step-00001000" / "ema.safetensors").unlink()
    assert load(tmp_path / "checkpoints" / "step-00000090", "cpu").info["weights"] == FILES[0]
    assert bias() == 0
    (tmp_path / "checkpoints" / "step-00000090" / "model.json").unlink()
    with pytest.raises(ModelError, match="all 3 checkpoints are damaged"):
        load(tmp_path, "cpu")


def test_where_there_is_no_model_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, message in [
        (tmp_path, "holds no model"),
        (tmp_path / "absent", "not a folder"),
        (tmp_path / "file", "not a folder"),
        (tmp_path / ("x" * 300), "x"),
    ]:
        with pytest.raises(ModelError, match=message) as caught:
            load(path, "cpu")
        assert caught.value.exit_code == 5


def test_a_model_is_not_saved_over_other_files(
    tmp_path: Path, model: DeepLab, description: ModelDescription
) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SegdeformError, match="other files"):
        save_model(tmp_path, model, description)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:99", "mps", ""])
def test_a_device_that_is_not_there_is_refused(original: Path, device: str) -> None:
    with pytest.raises(UsageError, match="--device"):
        load(original, device)
    assert load(original, "auto").device.type == ("cuda" if torch.cuda.is_available() else "cpu")
