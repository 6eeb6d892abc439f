"""VOC and SBD from small archives in their real layouts, and trainaug from the official lists."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from segdeform.data import load_dataset, read_pair
from segdeform.data.image_io import UInt8
from segdeform.errors import DataError, SegdeformError, UsageError
from segdeform.files.download import Checksum
from segdeform.preparing import voc as prepare_voc
from segdeform.preparing.prepare import prepare
from segdeform.preparing.voc import trainaug_names
from tests.conftest import external_data
from tests.files.test_download import Handler, url  # noqa: F401, the fixture

TRAIN, VAL = ["2007_01", "2007_02"], ["2007_03"]
SBD_TRAIN, SBD_VAL = ["2007_01", "2007_03", "2008_05"], ["2008_04"]
TRAINAUG = ["2007_01", "2007_02", "2008_04", "2008_05"]


def labels(name: str) -> UInt8:
    rng = np.random.default_rng(int(name.replace("_", "")))
    return rng.integers(0, 21, (6, 8), np.uint8)


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def picture(pixels: Any, form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, form)
    return file.getvalue()


def mat(values: Any, key: str = "GTcls") -> bytes:
    file = io.BytesIO()
    savemat(file, {key: {"Boundaries": np.zeros((20, 1)), "Segmentation": values}})
    return file.getvalue()


@pytest.fixture
def voc_tar(tmp_path: Path) -> Path:
    path = tmp_path / "voc.tar"
    home = "VOCdevkit/VOC2012"
    with tarfile.open(path, "w") as archive:
        for split, names in (("train", TRAIN), ("val", VAL)):
            text = "".join(f"{name}\n" for name in names)
            add(archive, f"{home}/ImageSets/Segmentation/{split}.txt", text.encode())
        for name in {*TRAIN, *VAL, *SBD_TRAIN, *SBD_VAL}:
            add(archive, f"{home}/JPEGImages/{name}.jpg", picture(np.zeros((6, 8, 3)), "JPEG"))
        for name in TRAIN + VAL:
            mask = picture(np.where(labels(name) == 3, 255, labels(name)), "PNG")
            add(archive, f"{home}/SegmentationClass/{name}.png", mask)
    return path


@pytest.fixture
def sbd_tgz(tmp_path: Path) -> Path:
    return write_sbd(tmp_path / "sbd.tgz", {})


def write_sbd(path: Path, changed: dict[str, bytes | None]) -> Path:
    files = {f"cls/{name}.mat": mat(labels(name)) for name in (*SBD_TRAIN, *SBD_VAL)}
    files["train.txt"] = "".join(f"{name}\n" for name in SBD_TRAIN).encode()
    files["val.txt"] = "".join(f"{name}\n" for name in SBD_VAL).encode()
    files["img/2008_04.jpg"] = b"not needed"
    with tarfile.open(path, "w:gz") as archive:
        add(archive, "benchmark_RELEASE/BSDS/code.m", b"not needed")
        for name, content in (files | changed).items():
            if content is not None:
                add(archive, f"benchmark_RELEASE/dataset/{name}", content)
    return path


def names_of(root: Path, split: str) -> list[str]:
    return [sample.name for sample in load_dataset("voc", root, split).samples]


def files(root: Path) -> dict[str, int]:
    return {
        path.relative_to(root).as_posix(): path.stat().st_mtime_ns
        for path in root.rglob("*")
        if path.is_file()
    }


def test_trainaug_is_the_official_list() -> None:
    folder = external_data("data/voc_official_lists")
    train, val, official = (
        (folder / f"{name}.txt").read_text().split() for name in ("train", "val", "trainaug")
    )
    # SBD holds pictures of VOC's train and val too.
    sbd = [*set(official).difference(train), *train[:500], *val[:1000]]
    assert len(trainaug_names(train, val, sbd)) == prepare_voc.TRAINAUG == 10_582
    assert trainaug_names(train, val, sbd) == sorted(official)


def test_voc_and_sbd_from_archives(voc_tar: Path, sbd_tgz: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    summary = prepare("voc", root, archives=[sbd_tgz, voc_tar])
    assert summary.splits == {"trainaug": 4, "train": 2, "val": 1}
    listing = root / "VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt"
    assert listing.read_text() == "".join(f"{name}\n" for name in TRAINAUG)
    assert any("VOC's own masks for 2 of them, SBD's for 2" in line for line in summary.messages)
    trainaug = load_dataset("voc", root, "trainaug")
    for index, name in enumerate(TRAINAUG):
        own = labels(name)
        expected = np.where(own == 3, 255, own) if name in TRAIN else own
        np.testing.assert_array_equal(read_pair(trainaug, index)[1], expected)
    added = root / "VOCdevkit/VOC2012/SegmentationClassAug"
    assert sorted(path.name for path in added.iterdir()) == ["2008_04.png", "2008_05.png"]
    with Image.open(added / "2008_04.png") as mask:
        assert mask.mode == "P"
    assert sorted(path.name for path in root.iterdir()) == ["VOCdevkit"]

    before = files(root)
    for archives in ([], [sbd_tgz, voc_tar]):
        again = prepare("voc", root, archives=archives)
        assert "was there already, nothing written" in again.messages
    assert files(root) == before


def test_pictures_of_train_are_cached_once_as_part_of_trainaug(
    voc_tar: Path, sbd_tgz: Path, tmp_path: Path
) -> None:
    summary = prepare("voc", tmp_path / "root", archives=[sbd_tgz, voc_tar], cache=True)
    told = [line.split(":")[0] for line in summary.messages if line.startswith("cache of")]
    assert told == ["cache of trainaug", "cache of val"]
    alone = prepare("voc", tmp_path / "other", archives=[voc_tar], sbd=False, cache=True)
    assert any(line.startswith("cache of train:") for line in alone.messages)


def test_sbd_may_come_later_or_never(voc_tar: Path, sbd_tgz: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    first = prepare("voc", root, archives=[voc_tar])
    assert first.splits == {"train": 2, "val": 1}
    assert any("--archive benchmark.tgz" in line for line in first.messages)
    assert len(prepare("voc", root, archives=[sbd_tgz], sbd=False).splits) == 2
    home = root / "VOCdevkit" / "VOC2012"
    assert prepare("voc", home, archives=[sbd_tgz]).splits["trainaug"] == 4
    assert names_of(root, "trainaug") == TRAINAUG
    other = prepare("voc", tmp_path / "other", archives=[sbd_tgz, voc_tar], sbd=False)
    assert other.splits == {"train": 2, "val": 1}
    assert not any("SBD" in line for line in other.messages)


def test_real_voc_pictures_are_prepared_in_place() -> None:
    root = external_data("data/VOCdevkit")
    summary = prepare("voc", root)
    assert summary.splits == {"train": 440, "val": 65}
    assert summary.messages[0] == "was there already, nothing written"


@pytest.mark.parametrize("step", ["unpacking voc.tar", "converting SBD's masks", "reading val"])
def test_ctrl_c_leaves_nothing_half_and_is_continued(
    step: str, voc_tar: Path, sbd_tgz: Path, tmp_path: Path
) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what == step and 2 * done >= total:
            raise KeyboardInterrupt

    root = tmp_path / "root"
    with pytest.raises(SegdeformError, match="goes on from there") as caught:
        prepare("voc", root, archives=[voc_tar, sbd_tgz], progress=interrupt)
    assert caught.value.exit_code == 130
    home = root / "VOCdevkit" / "VOC2012"
    assert home.exists() == (step != "unpacking voc.tar")
    if step == "converting SBD's masks":
        with pytest.raises(DataError, match="no such split"):
            load_dataset("voc", root, "trainaug")
    summary = prepare("voc", root, archives=[voc_tar, sbd_tgz])
    assert summary.splits == {"trainaug": 4, "train": 2, "val": 1}
    assert sorted(path.name for path in root.iterdir()) == ["VOCdevkit"]


def test_a_half_unpacked_archive_is_not_published_by_another(
    voc_tar: Path, sbd_tgz: Path, tmp_path: Path
) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SegdeformError):
        prepare("voc", tmp_path / "root", archives=[voc_tar], progress=interrupt)
    with pytest.raises(DataError, match="none of the archives holds VOC"):
        prepare("voc", tmp_path / "root", archives=[sbd_tgz])
    assert prepare("voc", tmp_path / "root", archives=[voc_tar]).splits == {"train": 2, "val": 1}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"cls/2008_04.mat": None}, r"2008_04\.mat: cannot be read"),
        ({"cls/2008_04.mat": b""}, r"2008_04\.mat: is no mask"),
        ({"cls/2008_04.mat": b"MATLAB 5.0" * 50}, r"2008_04\.mat: is no mask"),
        ({"cls/2008_04.mat": mat(labels("1"), "GTinst")}, r"2008_04\.mat: is no mask"),
        ({"cls/2008_04.mat": mat(labels("1") + np.uint8(9))}, r"2008_04\.mat: holds labels"),
        ({"cls/2008_04.mat": mat(np.zeros((2, 2)))}, r"2008_04\.mat: is no mask"),
        ({"cls/2008_04.mat": mat(np.zeros((2, 2), np.uint8))}, r"2008_04\.png: is 2x2"),
        ({"val.txt": b"2008_04\n2008_04\n"}, r"val\.txt: lists '2008_04' twice"),
        ({"val.txt": b"2008_09\n"}, r"2008_09\.jpg: missing, but listed by SBD"),
        ({"val.txt": b""}, r"val\.txt: lists no picture"),
        ({"val.txt": None}, r"val\.txt"),
    ],
)
def test_a_damaged_sbd_is_named(
    changed: dict[str, bytes | None], named: str, voc_tar: Path, tmp_path: Path
) -> None:
    archive = write_sbd(tmp_path / "sbd.tgz", changed)
    with pytest.raises(DataError, match=named) as caught:
        prepare("voc", tmp_path / "root", archives=[voc_tar, archive])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["VOCtrainval_11-May-2012.tar", "benchmark.tgz"])
def test_an_official_name_needs_the_official_content(
    name: str, voc_tar: Path, tmp_path: Path
) -> None:
    archive = voc_tar.rename(tmp_path / name)
    with pytest.raises(SegdeformError, match="has not the MD5") as caught:
        prepare("voc", tmp_path / "root", archives=[archive])
    assert caught.value.exit_code == 12
    assert not (tmp_path / "root").exists() or list((tmp_path / "root").iterdir()) == []


def test_a_link_in_the_place_of_the_staging_folder_is_not_followed(
    voc_tar: Path, tmp_path: Path
) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    (root / ".segdeform-unpacking").symlink_to(elsewhere)
    with pytest.raises(UsageError, match="is a link; remove it"):
        prepare("voc", root, archives=[voc_tar])
    assert elsewhere.is_dir() and list(elsewhere.iterdir()) == []


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add(archive, "readme", b"")
    with pytest.raises(DataError, match="neither VOC 2012"):
        prepare("voc", tmp_path / "root", archives=[tmp_path / "x.tar"])
    with pytest.raises(DataError, match=r"none\.tar: cannot be read"):
        prepare("voc", tmp_path / "root", archives=[tmp_path / "none.tar"])


@pytest.fixture
def served(
    url: str,  # noqa: F811
    voc_tar: Path,
    sbd_tgz: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], None]:
    """Has both archives at hand under the addresses that torchvision would give."""
    from hashlib import md5

    content = {path.name: path.read_bytes() for path in (voc_tar, sbd_tgz)}
    base = url.rpartition("/")[0]
    monkeypatch.setattr(
        prepare_voc,
        "_official",
        lambda: {name: (f"{base}/{name}", md5(data).hexdigest()) for name, data in content.items()},
    )
    monkeypatch.setattr(prepare_voc, "_NEED", {"VOC": 1, "SBD": 1})

    def serve(handler: Handler) -> None:
        handler.serve(content[handler.path.strip("/")])

    Handler.always = staticmethod(serve)  # type: ignore[assignment]
    return lambda: None


@pytest.mark.usefixtures("served")
def test_voc_and_sbd_are_downloaded_into_an_empty_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert prepare("voc", root).splits == {"trainaug": 4, "train": 2, "val": 1}
    assert sorted(path.name for path in root.iterdir()) == ["VOCdevkit", "archives"]
    assert len(Handler.requests) == 2
    assert prepare("voc", root, download=True).messages[0] == "was there already, nothing written"
    assert len(Handler.requests) == 2


@pytest.mark.usefixtures("served")
def test_nothing_is_downloaded_among_other_people_s_files(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "thesis.txt").write_text("years")
    with pytest.raises(DataError, match=r"does not hold VOC 2012.*--download fetches it"):
        prepare("voc", root)
    assert Handler.requests == [] and [path.name for path in root.iterdir()] == ["thesis.txt"]


@pytest.mark.usefixtures("served")
def test_only_what_lacks_is_downloaded(voc_tar: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    prepare("voc", root, archives=[voc_tar])
    assert Handler.requests == []
    assert prepare("voc", root, download=True).splits["trainaug"] == 4
    assert len(Handler.requests) == 1


@pytest.mark.usefixtures("served")
def test_a_failing_download_leaves_no_data_set(tmp_path: Path) -> None:
    Handler.always = staticmethod(lambda handler: handler.reply(404))  # type: ignore[assignment]
    with pytest.raises(SegdeformError, match="404") as caught:
        prepare("voc", tmp_path / "root")
    assert caught.value.exit_code == 12
    assert not (tmp_path / "root" / "VOCdevkit").exists()


@pytest.mark.usefixtures("served")
def test_the_disk_is_looked_at_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_voc, "_NEED", {"VOC": 1 << 60, "SBD": 1})
    with pytest.raises(SegdeformError, match="of disk") as caught:
        prepare("voc", tmp_path / "root")
    assert caught.value.exit_code == 7
    assert Handler.requests == []


def test_the_addresses_are_torchvisions() -> None:
    (voc, sbd) = prepare_voc._official().items()
    assert voc[0] == "VOCtrainval_11-May-2012.tar" and sbd[0] == "benchmark.tgz"
    assert (voc[1][1], sbd[1][1]) == (
        "6cd6e144f989b92b3379bac3b3de84fd",
        "82b4d87ceb2ed10f6038a1cba92111cb",
    )
    assert all(entry[1][0].startswith("https://") for entry in (voc, sbd))
    assert Checksum("md5", voc[1][1])


@pytest.mark.slow
def test_the_whole_of_trainaug_is_made_from_the_official_lists(tmp_path: Path) -> None:
    folder = external_data("data/voc_official_lists")
    train, val, official = (
        (folder / f"{name}.txt").read_text().split() for name in ("train", "val", "trainaug")
    )
    home, sbd = tmp_path / "VOC2012", tmp_path / "sbd"
    for place in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (home / place).mkdir(parents=True)
    (sbd / "cls").mkdir(parents=True)
    for name in ("train", "val"):
        listing = home / "ImageSets" / "Segmentation" / f"{name}.txt"
        listing.write_bytes((folder / f"{name}.txt").read_bytes())
    for name in {*train, *val, *official}:
        (home / "JPEGImages" / f"{name}.jpg").touch()
    for name in {*train, *val}:
        (home / "SegmentationClass" / f"{name}.png").touch()
    both = sorted({*official} - {*train}) + train[:500] + val[:1000]
    (tmp_path / "one.mat").write_bytes(mat(labels("1")))
    for name in both:
        (sbd / "cls" / f"{name}.mat").hardlink_to(tmp_path / "one.mat")
    (sbd / "train.txt").write_text("\n".join(both[:8000]))
    (sbd / "val.txt").write_text("\n".join(both[8000:]))
    said = prepare_voc.merge_sbd(home, sbd, lambda *now: None)
    assert "10,582 pictures; VOC's own masks for 1,464 of them, SBD's for 9,118" in said
    written = (home / "ImageSets/Segmentation/trainaug.txt").read_text().splitlines()
    assert written == sorted(official) and len(written) == 10_582
    assert len(load_dataset("voc", home, "trainaug")) == 10_582
    assert len(list((home / "SegmentationClassAug").iterdir())) == 9_118
