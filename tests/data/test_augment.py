"""Transforms of albumentations on finished crops, and crops around pixels of rare classes."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segdeform.config.loading import dump_config, load_config
from segdeform.config.schema import Config, DataConfig
from segdeform.data import load_dataset
from segdeform.data.augment import Augmentation, _transforms, refuse_augmentation
from segdeform.data.batches import Batches
from segdeform.data.loader import train_loader
from segdeform.data.transforms import TrainTransform
from segdeform.errors import ConfigError
from segdeform.preparing.shapes import write_shapes
from segdeform.training.loop import train
from tests.training.conftest import ReporterThat, tiny_config

IGNORED = {np.uint8: 255, np.uint16: 65535}
FILL = (120, 110, 100)


def crop(
    height: int = 41, width: int = 57, channels: int = 3, kind: Any = np.uint8
) -> tuple[Any, Any]:
    """Returns a picture that tells its labels, 0 to 3, by its first channel."""
    labels = np.kron(
        np.random.default_rng(0).integers(0, 4, (height // 7 + 1, width // 7 + 1)), np.ones((7, 7))
    )[:height, :width].astype(kind)
    image = np.repeat((60 * labels + 20)[..., None], channels, 2).astype(np.uint8)
    return image, labels


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    "entry",
    [
        {"name": "Affine", "rotate": [30, 40], "translate_percent": 0.2},
        {"name": "GridDistortion", "num_steps": 3, "distort_limit": [0.2, 0.4]},
        {"name": "Perspective", "scale": [0.1, 0.2]},
        {"name": "VerticalFlip"},
        {"name": "OneOf", "transforms": [{"name": "Affine", "shear": [10, 30], "p": 1.0}]},
    ],
)
def test_picture_and_labels_move_together(entry: dict[str, Any], kind: Any) -> None:
    """Outside of the picture lies the mean, and nothing that is scored."""
    image, labels = crop(kind=kind)
    ignored = IGNORED[kind]
    moved = Augmentation([{**entry, "p": 1.0}], FILL, ignored)
    picture, classes = moved(image, labels, 3, 1, 4)
    assert not np.array_equal(classes, labels)
    assert classes.dtype == kind and set(np.unique(classes)) <= {0, 1, 2, 3, ignored}
    seen = classes != ignored
    right = np.abs(picture[..., 0].astype(int) - (60 * classes.astype(int) + 20)) <= 8
    assert right[seen].mean() > 0.75  # edges are blended
    if (~seen).any():
        assert (np.abs(picture[~seen].astype(int) - FILL) <= 60).mean() > 0.6
    assert seen.mean() > 0.5 and (seen.all() or entry["name"] != "VerticalFlip")


def test_a_hole_keeps_its_labels_and_shows_the_mean() -> None:
    image, labels = crop()
    holes = Augmentation([{"name": "CoarseDropout", "p": 1.0}], FILL, 255)
    picture, classes = holes(image, labels, 0, 0, 1)
    np.testing.assert_array_equal(classes, labels)
    changed = (picture != image).any(2)
    assert changed.any() and (picture[changed] == FILL).all()


def test_colours_leave_labels_alone() -> None:
    image, labels = crop()
    changed = Augmentation([{"name": "RandomGamma", "gamma_limit": [150, 160], "p": 1}], FILL, 255)
    picture, classes = changed(image, labels, 0, 0, 0)
    np.testing.assert_array_equal(classes, labels)
    table = {int(v): float(np.mean(picture[image == v])) for v in np.unique(image)}
    for value, found in table.items():  # between powers of 1.5 and 1.6
        low, high = (255 * (value / 255) ** gamma for gamma in (1.6, 1.5))
        assert low - 1 <= found <= high + 1


def test_every_transform_that_is_taken_is_a_function_of_its_crop() -> None:
    image, labels = crop()
    taken = []
    for name in _transforms():
        entries = [{"name": name, "p": 1.0}]
        try:
            refuse_augmentation(entries, (41, 57), 3, np.dtype(np.uint8))
        except ConfigError:
            continue
        taken.append(name)
        once, again = (Augmentation(entries, FILL, 255) for _ in range(2))
        first = once(image, labels, 1, 2, 3)
        random.seed(8)
        np.random.seed(8)
        before = random.getstate()
        again(image, labels, 9, 9, 9)  # another one comes between
        second = again(image, labels, 1, 2, 3)
        for one, two in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, two, err_msg=name)
        assert random.getstate() == before, name
    assert len(taken) > 60 and {"RandomGamma", "Affine", "GaussNoise", "CLAHE"} <= set(taken)


def test_the_seed_the_pass_and_the_picture_decide() -> None:
    image, labels = crop()
    noise = Augmentation([{"name": "GaussNoise", "p": 1.0}], FILL, 255)
    seen = {noise(image, labels, *key)[0].tobytes() for key in np.ndindex(3, 3, 3)}
    assert len(seen) == 27


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, seed=0, train=5, val=2, size=64)
    return root


AUGMENT = (
    {"name": "ElasticTransform", "alpha": 30, "sigma": 6, "p": 0.7},
    {"name": "SomeOf", "n": 1, "transforms": [{"name": "CLAHE", "p": 1}, {"name": "Posterize"}]},
)


def test_loaders_of_any_number_of_workers_and_ranks_make_the_same_crops(shapes: Path) -> None:
    dataset = load_dataset("shapes", shapes, "train")
    config = DataConfig(name="shapes", crop=(33, 41), augment=AUGMENT, class_balance=0.5)

    def batches(**options: Any) -> list[Any]:
        made = train_loader(
            dataset, config, seed=3, first_step=options.pop("first", 0), batch_size=4, **options
        )
        return [(images.numpy(), labels.numpy()) for images, labels in made]

    alone = batches(steps=4, workers=0)
    for other in (
        batches(steps=4, workers=2),
        [*batches(steps=2, workers=0), *batches(first=2, steps=2, workers=1)],
    ):
        for (images, labels), (same, same_labels) in zip(alone, other, strict=True):
            np.testing.assert_array_equal(images, same)
            np.testing.assert_array_equal(labels, same_labels)
    ranks = [batches(steps=4, workers=0, rank=rank, world_size=2) for rank in (0, 1)]
    for step, (images, _) in enumerate(alone):
        np.testing.assert_array_equal(images, np.concatenate([r[step][0] for r in ranks]))
    plain = config.model_copy(update={"augment": ()})
    made = next(
        iter(train_loader(dataset, plain, seed=3, first_step=0, steps=1, batch_size=4, workers=0))
    )
    assert not np.array_equal(made[0].numpy(), alone[0][0])
    assert Batches(dataset, config, 3, 4, 0, 1).nbytes


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"name": "RandomGama"}, "no transform 'RandomGama'. Did you mean 'RandomGamma'"),
        ({"name": "Compose", "transforms": []}, "no transform 'Compose'"),
        (
            {"name": "RandomGamma", "gama_limit": 3},
            "no argument 'gama_limit'. Did you mean 'gamma_l",
        ),
        ({"name": "RandomGamma", "gamma_limit": "x"}, "RandomGamma: gamma_limit: input should be"),
        ({"name": "RandomCrop"}, "RandomCrop: height: field required"),
        ({"name": "RandomRotate90"}, "makes a crop of 41x57x3 uint8 into 57x41x3"),
        ({"name": "D4"}, "D4 makes a crop of 41x57x3 uint8 into 57x41x3"),  # now and then
        ({"name": "Normalize"}, "into 41x57x3 float32; it has to stay the same"),
        ({"name": "HistogramMatching"}, "HistogramMatching fails on crops of 41x57x3"),
        ({"name": "Affine", "rotate": 20, "mask_interpolation": 1}, "mixes labels, which are cla"),
        ({"name": "OneOf"}, "OneOf takes transforms"),
        ({"name": "OneOf", "transforms": [{"name": "Blurr"}]}, "no transform 'Blurr'"),
        (
            {
                "name": "OneOf",
                "transforms": [{"name": "CLAHE"}, {"name": "ToFloat", "p": 0.01}],
            },
            "ToFloat makes a crop of 41x57x3 uint8 into 41x57x3 float32",
        ),
        (
            {
                "name": "Sequential",
                "transforms": [
                    {"name": "SomeOf", "n": 1, "transforms": [{"name": "Transpose", "p": 0.01}]}
                ],
            },
            "Transpose makes a crop of 41x57x3 uint8 into 57x41x3",
        ),
        (
            {
                "name": "Sequential",
                "transforms": [
                    {"name": "Affine", "rotate": 20, "mask_interpolation": 1, "p": 0.01}
                ],
            },
            "Affine mixes labels",
        ),
    ],
)
def test_what_cannot_be_is_said_in_a_line(entry: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        refuse_augmentation([entry], (41, 57), 3, np.dtype(np.uint8))
    assert says in str(raised.value) and "\n" not in str(raised.value)
    assert str(raised.value).startswith("data.augment: ")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Transpose", "a crop of 41x57x3 uint8 became one of 57x41x3 uint8"),
        ("ToFloat", "a crop of 41x57x3 uint8 became one of 41x57x3 float32"),
    ],
)
def test_a_kind_that_changes_now_and_then_is_noticed(name: str, says: str) -> None:
    """When it happens, should the draws before a training not have met it."""
    rare = Augmentation([{"name": name, "p": 0.05}], FILL, 255)
    image, labels = crop()
    with pytest.raises(ConfigError, match=says):
        for index in range(200):
            rare(image, labels, 0, 0, index)


def test_pictures_of_other_channels() -> None:
    for channels in (1, 5):
        refuse_augmentation([{"name": "GaussNoise"}], (41, 57), channels, np.dtype(np.uint16))
        refuse_augmentation(
            [{"name": "Affine", "rotate": 20}], (41, 57), channels, np.dtype(np.uint8)
        )
    with pytest.raises(ConfigError, match="ToSepia fails on crops of 41x57x5"):
        refuse_augmentation([{"name": "ToSepia"}], (41, 57), 5, np.dtype(np.uint8))


def test_a_run_refuses_before_anything_is_read_and_remembers(shapes: Path, tmp_path: Path) -> None:
    def config(*entries: dict[str, Any]) -> Config:
        plain = tiny_config(steps=1)
        return plain.model_copy(update={"data": plain.data.model_copy(update={"augment": entries})})

    options: dict[str, Any] = {"device": "cpu", "workers": 0, "reporter": ReporterThat()}
    with pytest.raises(ConfigError, match="no transform 'Gamma'"):
        train(config({"name": "Gamma"}), shapes, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
    train(config({"name": "RandomGamma"}), shapes, tmp_path / "run", **options)
    again = load_config(tmp_path / "run" / "config.yaml")
    assert again.data.augment == ({"name": "RandomGamma"},)
    with pytest.raises(ConfigError, match=r"data\.augment is .*0\.3.* now and was"):
        train(config({"name": "RandomGamma", "p": 0.3}), shapes, tmp_path / "run", resume=True)


def test_configs(tmp_path: Path) -> None:
    text = "data: {augment: [{name: RandomGamma, gamma_limit: [80, 120]}, {name: CLAHE}]}"
    (tmp_path / "a.yaml").write_text(text)
    config = load_config(tmp_path / "a.yaml", ["data.class_balance=0.5"])
    (tmp_path / "b.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "b.yaml") == config
    with pytest.raises(ConfigError, match="has no name; write"):
        load_config("shapes", ["data.augment=[{p: 0.5}]"])
    with pytest.raises(ConfigError, match=r"data\.augment"):
        load_config("shapes", ["data.augment=RandomGamma"])
    script = (
        "import sys; from segdeform.config.loading import load_config;"
        f"load_config({str(tmp_path / 'a.yaml')!r}); assert 'albumentations' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


class TestClassBalance:
    def labels(self) -> Any:
        """Returns 97% of class 0, and three classes of 1 to 300 pixels."""
        labels = np.zeros((120, 160), np.uint8)
        labels[100:110, 20:50] = 1
        labels[5:9, 150:155] = 2
        labels[60, 80] = 3
        labels[:, :5] = 255
        return labels

    def shares(self, balance: float) -> Any:
        """Returns the share of the crops that show each class."""
        cut = TrainTransform((31, 37), (0.8, 1.25), 1.0, 0.5, 0.0, 0.0, class_balance=balance)
        labels = self.labels()
        image = np.zeros((*labels.shape, 3), np.uint8)
        seen = np.zeros(4)
        for index in range(400):
            found = np.unique(cut(image, labels, 0, 0, index)[1])
            seen[found[found < 4]] += 1
        return seen / 400

    def test_rare_classes_are_seen_by_the_rule(self) -> None:
        plain, balanced, half = self.shares(0.0), self.shares(1.0), self.shares(0.5)
        for k in (1, 2):
            assert balanced[k] > 0.2 and balanced[k] > 1.8 * plain[k]  # a quarter is drawn for it
            assert plain[k] < half[k] < balanced[k]
        # A single pixel may fall between the rows of a crop that shrinks it.
        assert balanced[3] > 0.15 and balanced[3] > 1.8 * plain[3]
        assert plain[0] == 1 and balanced[0] > 0.9

    @pytest.mark.parametrize("factor", [0.7, 1.6])
    def test_a_turned_crop_shows_its_pixel_too(self, factor: float) -> None:
        """A window of the size before the turn alone holds it in two thirds of them."""
        labels = np.full((201, 223), 255, np.uint8)
        labels[95:99, 120:124] = 5
        image = np.zeros((*labels.shape, 3), np.uint8)
        cut = TrainTransform((43, 51), (factor, factor), 1.0, 0.5, 50.0, 0.0, class_balance=1.0)
        shown = [5 in cut(image, labels, 0, 0, index)[1] for index in range(300)]
        assert np.mean(shown) > 0.97

    def test_without_it_nothing_is_drawn(self) -> None:
        labels = self.labels()
        image = np.random.default_rng(0).integers(0, 256, (*labels.shape, 3), np.uint8)
        cut = TrainTransform((31, 37), (0.8, 1.25), 1.0, 0.5, 0.0, 0.0)
        same = TrainTransform((31, 37), (0.8, 1.25), 1.0, 0.5, 0.0, 0.0, class_balance=0.0)
        np.testing.assert_array_equal(
            cut(image, labels, 1, 2, 3)[0], same(image, labels, 1, 2, 3)[0]
        )

    @pytest.mark.parametrize("size", [(9, 11), (31, 300), (200, 20)])
    def test_small_pictures_and_pictures_without_labels(self, size: tuple[int, int]) -> None:
        cut = TrainTransform((31, 37), (0.5, 2.0), 0.5, 0.5, 0.0, 0.0, class_balance=1.0)
        labels = np.full(size, 255, np.uint8)
        image = np.zeros((*size, 3), np.uint8)
        assert (cut(image, labels, 0, 0, 0)[1] == 255).all()
        labels[size[0] - 2 :, size[1] - 2 :] = 7
        assert all(7 in cut(image, labels, 0, 0, index)[1] for index in range(40))
