from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segdeform.checking import check_sound
from segdeform.data import load_dataset, read_pair
from segdeform.data.image_io import UInt8, write_image, write_index_png
from segdeform.errors import DataError, UsageError
from segdeform.preparing import shapes_drawing
from segdeform.preparing.shapes import CLASSES, PALETTE, write_shapes
from segdeform.preparing.shapes_drawing import draw_picture
from segdeform.preparing.shapes_outlines import OUTLINES, pose


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.png"))
    }


def draw(index: int) -> tuple[UInt8, UInt8]:
    return draw_picture(np.random.Generator(np.random.Philox(index)), 256)


@pytest.fixture(scope="module")
def drawn() -> list[tuple[UInt8, UInt8]]:
    return [draw(index) for index in range(60)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes") / "shapes"
    write_shapes(root, train=40, val=12)
    return root


def test_the_data_set_is_sound(root: Path) -> None:
    for split, count in (("train", 40), ("val", 12)):
        dataset = load_dataset("shapes", root, split)
        assert (dataset.name, len(dataset)) == ("shapes", count)
        assert dataset.classes == CLASSES
        assert dataset.palette == PALETTE
        assert len(set(PALETTE)) == len(CLASSES) >= 7
        check_sound([dataset])
        assert read_pair(dataset, 0)[0].shape == (256, 256, 3)


def test_a_picture_depends_on_seed_split_and_index_only(root: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "few", train=3, val=2)
    few, many = digests(tmp_path / "few"), digests(root)
    assert few == {name: many[name] for name in few}
    assert len(set(many.values())) == len(many)
    write_shapes(tmp_path / "other", seed=1, train=3, val=2)
    assert not set(digests(tmp_path / "other").values()) & set(many.values())


def test_a_second_run_writes_nothing_and_an_interrupted_one_starts_again(tmp_path: Path) -> None:
    root = tmp_path / "shapes"

    def stop(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shapes(root, train=4, val=2, size=64, progress=stop)
    assert not root.exists()
    root.mkdir()
    assert write_shapes(root, train=4, val=2, size=64)
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert not write_shapes(root, train=4, val=2, size=64)
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_nothing_else_is_ever_overwritten(tmp_path: Path) -> None:
    write_shapes(tmp_path / "shapes", train=1, val=1, size=32)
    (tmp_path / "precious.txt").write_text("mine")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="something else"):
        write_shapes(tmp_path / "shapes", seed=3, train=1, val=1, size=32)
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(UsageError, match="something else"):
            write_shapes(place, train=1, val=1)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_what_is_not_there_is_told_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="segdeform prepare shapes --output"):
        load_dataset("shapes", tmp_path, "train")


def test_every_class_appears_and_objects_are_as_many_and_as_large_as_said(
    drawn: list[tuple[UInt8, UInt8]],
) -> None:
    shares = (
        np.array([np.bincount(labels.ravel(), minlength=len(CLASSES)) for _, labels in drawn])
        / 256**2
    )
    assert np.all((shares[:, 1:] > 0).sum(axis=0) > len(drawn) / 6)
    assert 0.6 < shares[:, 0].mean() < 0.9
    counts = [sum(_parts(labels == kind) for kind in range(1, len(CLASSES))) for _, labels in drawn]
    assert 3 <= np.mean(counts) <= 6.5


def _mean_colours(outline_only: bool, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean colour of each class in each of 80 pictures, [M, 3], and the class, [M]."""
    colours, kinds = [], []
    for index in range(first, first + 80):
        rng = np.random.Generator(np.random.Philox(index))
        picture, labels = draw_picture(rng, 128, outline_only)
        for kind in np.unique(labels[labels > 0]):
            colours.append(picture[labels == kind].mean(axis=0))
            kinds.append(kind)
    return np.array(colours), np.array(kinds)


@pytest.mark.parametrize(("outline_only", "least", "most"), [(False, 0.6, 1), (True, 0, 0.3)])
def test_colours_tell_the_class_unless_the_outline_alone_shall(
    outline_only: bool, least: float, most: float
) -> None:
    known, known_kinds = _mean_colours(outline_only, first=0)
    asked, truth = _mean_colours(outline_only, first=1000)
    nearest = np.abs(asked[:, None] - known[None]).sum(axis=2).argmin(axis=1)
    assert least <= np.mean(known_kinds[nearest] == truth) <= most  # of six classes


def test_deformation_bends_and_shears_and_leaves_the_rest_alone() -> None:
    def narrowness(deformation: float) -> list[float]:
        discs = (
            pose(np.random.default_rng(seed), OUTLINES["disc"](), 40, 256, deformation)[0]
            for seed in range(30)
        )
        widths = [np.sqrt(np.linalg.eigvalsh(np.cov(disc.T))) for disc in discs]
        return [high / low for low, high in widths]

    assert np.allclose(narrowness(0), 1, atol=0.02)
    assert 1.02 < np.mean(narrowness(1)) < np.mean(narrowness(2))
    place = [pose(np.random.default_rng(1), OUTLINES["disc"](), 40, 256, d)[0] for d in (0, 2)]
    assert np.abs(place[0].mean(axis=0) - place[1].mean(axis=0)).max() < 20


def test_a_harder_style_is_another_data_set_and_says_so(tmp_path: Path) -> None:
    write_shapes(tmp_path / "usual", train=2, val=1, size=64)
    hard = {"train": 2, "val": 1, "size": 64, "outline_only": True, "deformation": 2.0}
    assert write_shapes(tmp_path / "hard", **hard)
    assert not set(digests(tmp_path / "usual").values()) & set(digests(tmp_path / "hard").values())
    assert not write_shapes(tmp_path / "hard", **hard)
    with pytest.raises(UsageError, match="something else"):
        write_shapes(tmp_path / "hard", train=2, val=1, size=64)


def _parts(mask: np.ndarray) -> int:
    return int(cv2.connectedComponents(mask.astype(np.uint8))[0]) - 1


def test_edges_of_the_picture_lie_on_the_edges_of_the_labels(
    drawn: list[tuple[UInt8, UInt8]],
) -> None:
    on_edge, elsewhere = [], []
    for picture, labels in drawn[:20]:
        grey = picture.astype(float).mean(axis=2)
        steps = np.abs(np.diff(grey, axis=1))
        edge = np.diff(labels.astype(int), axis=1) != 0
        on_edge.append(steps[edge].mean())
        elsewhere.append(steps[~edge].mean())
    assert np.mean(on_edge) > 4 * np.mean(elsewhere)


@pytest.mark.parametrize("name", OUTLINES)
def test_outlines_have_about_unit_radius_and_poses_keep_their_topology(name: str) -> None:
    outline = OUTLINES[name]()
    radii = [np.linalg.norm(contour, axis=1).max() for contour in outline]
    assert 0.95 < max(radii) < 1.45
    rng = np.random.default_rng(0)
    for _ in range(50):
        posed = pose(rng, outline, 60, 256)
        fine = np.zeros((1024, 1024), np.uint8)
        offset = 512 - posed[0].mean(axis=0)
        cv2.fillPoly(fine, [(contour + offset).astype(np.int32) for contour in posed], 1)
        assert _parts(fine) == 1
        assert _parts(1 - fine) == len(posed)  # a ring keeps its hole, nothing else gets one


def test_bending_keeps_lengths_along_the_middle() -> None:
    line = np.stack([np.linspace(-1, 1, 200), np.zeros(200)], axis=1)

    class Fixed:
        """Hands out the drawn numbers: two angles, bend, shear, centre."""

        def __init__(self) -> None:
            self.numbers = iter([0.0, 0.0, 0.5, 0.0, np.array([0.5, 0.5])])

        def uniform(self, *_: float) -> object:
            return next(self.numbers)

    (bent,) = pose(Fixed(), [line], 1.0, 0)  # type: ignore[arg-type]
    assert np.linalg.norm(np.diff(bent, axis=0), axis=1).sum() == pytest.approx(2, abs=1e-3)
    # A circle of radius 2 through the origin: every point is 2 away from (0, 2).
    np.testing.assert_allclose(np.linalg.norm(bent - [0, 2], axis=1), 2, atol=1e-9)


def test_single_pixel_colours_do_not_give_the_class_away(root: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "colour_baseline.py"
    result = subprocess.run(
        [sys.executable, str(script), "shapes", str(root)],
        capture_output=True,
        text=True,
        check=True,
    )
    miou = float(result.stdout.split()[-1])
    # The ground is told by its colours, and each colour of an object belongs to three classes.
    assert 1 / len(CLASSES) / 2 < miou < 0.4


def test_the_colour_classifier_sees_colours_where_there_are_any(tmp_path: Path) -> None:
    """The baseline must be able to win, or its low score on shapes would mean nothing."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        labels = rng.integers(0, 3, (20, 20)).astype(np.uint8)
        write_image(tmp_path / split / "images" / "a.png", np.array(PALETTE, np.uint8)[labels])
        write_index_png(tmp_path / split / "masks" / "a.png", labels, PALETTE)
    script = Path(__file__).parents[2] / "scripts" / "colour_baseline.py"
    command = [sys.executable, str(script), "folder", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.split()[-1] == "1.0000"


def test_large_objects_lie_below_small_ones_and_all_stay_in_sight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        radii: list[float] = []

        def posed(*arguments: Any, radii: list[float] = radii) -> Any:
            radii.append(arguments[2])
            return pose(*arguments)

        monkeypatch.setattr(shapes_drawing, "pose", posed)
        objects = shapes_drawing._objects(rng, 128, 1.0)
        assert radii == sorted(radii, reverse=True)
        covers = [cover >= 0.5 for _, cover in objects]
        for number, cover in enumerate(covers):
            above = np.any([np.zeros((128, 128), bool), *covers[number + 1 :]], axis=0)
            assert (cover & ~above).sum() >= 0.7 * cover.sum() > 0


def test_labels_are_those_of_what_covers_most_of_a_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    objects = shapes_drawing._objects(rng, 96, 1.0)
    monkeypatch.setattr(shapes_drawing, "_objects", lambda *_: objects)
    _, owners, classes = shapes_drawing.draw_objects(rng, 96)
    expected = np.zeros((96, 96), np.uint8)
    for number, (_, cover) in enumerate(objects, 1):
        expected[cover >= 0.5] = number
        assert ((cover > 0) & (cover < 0.5)).any()  # where it makes a difference
    np.testing.assert_array_equal(owners, expected)
    assert classes.tolist() == [0, *(kind + 1 for kind, _ in objects)]
