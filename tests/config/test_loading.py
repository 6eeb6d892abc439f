"""Config files: what is accepted, and the one line that every mistake becomes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segdeform.config.loading import dump_config, load_config, load_draft, shipped_configs
from segdeform.config.schema import Config
from segdeform.data import DATASETS
from segdeform.errors import ConfigError
from segdeform.models import build_model


def write(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problem(folder: Path, text: str, *overrides: str) -> str:
    """Returns the message that a config file's text ends in, without the folder."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, text), overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{folder}/")


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_shipped_configs_build_a_network_and_name_their_own_command(name: str) -> None:
    config = load_draft(name).filled()
    assert config.data.name in DATASETS
    with torch.device("meta"):
        build_model(config.model, config.deform, classes=3, pretrained=False)
    assert f"segdeform train {name} --data" in shipped_configs()[name].read_text(encoding="utf-8")


def test_the_configs_that_people_rely_on_are_shipped() -> None:
    assert shipped_configs().keys() >= {
        *("camvid", "camvid-long", "cityscapes", "folder", "paper-cityscapes", "paper-voc"),
        *("shapes", "voc"),
    }


def test_paper_config_is_the_papers_network() -> None:
    config = load_config("paper-voc")
    assert (config.model.backbone, config.model.head, config.model.head_channels) == (
        "resnet101",
        "deeplab",
        1024,
    )
    assert (config.deform.variant, config.deform.layers) == ("v1", 3)
    assert config.train.freeze_bn and not config.model.auxiliary_head


@pytest.mark.parametrize("text", ["", "train:\n", "{}"])
def test_what_is_left_out_has_its_default(tmp_path: Path, text: str) -> None:
    assert load_config(write(tmp_path, text)) == Config()


def test_exponents_without_a_dot_are_numbers(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "train: {lr: 1e-3}")).train.lr == 0.001


def test_a_file_comes_before_a_shipped_config_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "camvid").write_text("train: {steps: 7}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_config("camvid").train.steps == 7


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.steps=1"], "--set train.steps=1: train.warmup_steps = 5 leaves nothing of train"),
        (["train.lr=1", "train.warmup_steps=20"], "--set train.warmup_steps=20: train.warmup_st"),
        (
            ["train.steps=3", "train.warmup_steps=4"],
            "--set train.steps=3, --set train.warmup_steps=4: train.warmup_steps = 4 leaves",
        ),
        (["data.scale=[2,1]"], "--set data.scale=[2,1]: data.scale is [low, high]"),
        (["train.class_weights=[0,0]"], "--set train.class_weights=[0,0]: train.class_weights ="),
    ],
)
def test_an_override_is_blamed_for_what_it_breaks_together_with_other_keys(
    tmp_path: Path, overrides: list[str], said: str
) -> None:
    (tmp_path / "my.yaml").write_text("train: {steps: 20, warmup_steps: 5}")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "my.yaml", overrides)
    assert str(caught.value).startswith(said) and "my.yaml" not in str(caught.value)


def test_a_folder_does_not_hide_a_shipped_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "camvid").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config("camvid").data.name == "camvid"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {lrr: 1}", "my.yaml: unknown key 'train.lrr'. Did you mean 'train.lr'?"),
        ("train: {crop: 1}", "my.yaml: unknown key 'train.crop'. Did you mean 'data.crop'?"),
        ("eval: {flipp: true}", "my.yaml: unknown key 'eval.flipp'. Did you mean 'eval.flip'?"),
        ("trian: {lr: 1}", "my.yaml: unknown key 'trian'. Did you mean 'train'?"),
        ("steps: 3", "my.yaml: unknown key 'steps'. Did you mean 'train.steps'?"),
        ("1: 2", "my.yaml: unknown key '1'. Known: data, model, deform, train, eval."),
        ("- a", "my.yaml: expected the sections data, model, deform, train, eval"),
        ("train: 5", "my.yaml: train = 5: must hold 'key: value' lines"),
        ("train: {lr: -1}", "my.yaml: train.lr = -1: input should be greater than 0"),
        ("train: {lr: .nan}", "my.yaml: train.lr = NaN: input should be a finite number"),
        ('train: {lr: "1"}', 'my.yaml: train.lr = "1": input should be a valid number'),
        ("train: {steps: true}", "my.yaml: train.steps = true: input should be a valid integer"),
        ("train: {steps: 1.5}", "my.yaml: train.steps = 1.5: input should be a valid integer"),
        ("train: {lr: 2020-01-01}", 'my.yaml: train.lr = "2020-01-01": input should be a valid n'),
        (
            "data: {crop: [9, 0]}",
            "my.yaml: data.crop[1] = 0: input should be greater than or equal",
        ),
        ("data: {crop: [9]}", "my.yaml: data.crop = [9]: too few values"),
        (
            "train: {class_weights: [0, 0]}",
            "my.yaml: train.class_weights = [0, 0]: all are 0: nothing would be learned from",
        ),
        (
            "train: {class_weights: [1, -2]}",
            "my.yaml: train.class_weights = [1, -2]: it takes a weight for each class, none of",
        ),
        ("train: {class_weights: []}", "my.yaml: train.class_weights = []: it takes a weight for"),
        ("data: {scale: [2, 1]}", "my.yaml: data.scale is [low, high] with low <= high"),
        (
            "train: {steps: 20, warmup_steps: 20}",
            "my.yaml: train.warmup_steps = 20 leaves nothing of train.steps = 20: make it "
            "smaller (--set train.warmup_steps=0: none)",
        ),
        (
            "deform: {layers: -1}",
            "my.yaml: deform.layers = -1: it takes a number from 0 on, or nam",
        ),
        ("deform: {layers: 1.5}", "my.yaml: deform.layers = 1.5: it takes a number from 0 on"),
        ('deform: {layers: "3"}', 'my.yaml: deform.layers = "3": it takes a number from 0 on'),
        ("deform: {layers: true}", "my.yaml: deform.layers = true: it takes a number from 0 on"),
        ("deform: {layers: []}", "my.yaml: deform.layers = []: it takes a number from 0 on"),
        ("deform: {layers: [a, 2]}", "my.yaml: deform.layers = "),
        (
            "model: {aspp_rates: []}",
            "my.yaml: model.aspp_rates = []: tuple should have at",
        ),
        ("model: {aspp_rates: [6, 0]}", "my.yaml: model.aspp_rates[1] = 0: input should be gr"),
        ("eval: {automatic_tile: 0}", "my.yaml: eval.automatic_tile = 0: input should be great"),
        ("model: {head: unet}", "my.yaml: model.head = \"unet\": input should be 'deeplab', "),
        ("train: {lr: &a [*a]}", "my.yaml: a value is no number, text"),
        ("train: {lr: 1, lr: 2}", "my.yaml, line 1, column 16: not valid YAML: the key 'lr' is"),
        (
            "train: {lr: -1, momentum: 2, steps: 0}",
            "my.yaml: train.steps = 0: input should be greater than or equal to 1 "
            "(and 2 more problems)",
        ),
    ],
)
def test_a_mistake_names_file_key_value_and_rule(tmp_path: Path, text: str, message: str) -> None:
    assert problem(tmp_path, text).startswith(message)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("5", 5),
        ("layer4.*.conv2", ("layer4.*.conv2",)),
        ("['a.*', b]", ("a.*", "b")),
        ("'*'", ("*",)),
    ],
)
def test_deformable_layers_are_a_number_or_names(
    tmp_path: Path, text: str, layers: int | tuple[str, ...]
) -> None:
    config = load_config(write(tmp_path, ""), [f"deform.layers={text}"])
    assert config.deform.layers == layers
    (tmp_path / "again.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "again.yaml") == config


def test_overrides_are_yaml_and_the_last_one_counts(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {lr: 2, steps: 5}")
    settings = ["train.lr=1", "data.crop=[360, 480]", "train.lr=1e-4", "train.clip_grad_norm=null"]
    config = load_config(path, [*settings, "model.weights=none"])
    assert (config.train.lr, config.train.steps, config.data.crop) == (1e-4, 5, (360, 480))
    assert (config.train.clip_grad_norm, config.model.weights) == (None, "none")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", "--set train.lr: expected key=value"),
        ("train.lrr=1", "--set train.lrr=1: unknown key 'train.lrr'. Did you mean 'train.lr'?"),
        ("lr=1", "--set lr=1: unknown key 'lr'. Did you mean 'train.lr'?"),
        ("train=1", "--set train=1: 'train' is a section; set one of train.steps, "),
        ("=1", "--set =1: unknown key ''."),
        ("train.lr=0", "--set train.lr=0: train.lr = 0: input should be greater than 0"),
        ("train.lr=", "--set train.lr=: train.lr = null: input should be a valid number"),
        ("data.crop=8,8", '--set data.crop=8,8: data.crop = "8,8": input should be a valid'),
        ("train.lr=[", "--set train.lr=[, line 1, column 2: not valid YAML"),
    ],
)
def test_a_wrong_override_is_named_instead_of_the_file(
    tmp_path: Path, override: str, message: str
) -> None:
    assert problem(tmp_path, "", override).startswith(message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("camvit", "camvit: no such config file or shipped config. Did you mean 'camvid'?"),
        (
            "camvid.yaml",
            "camvid.yaml: no such config file or shipped config. Did you mean 'camvid'",
        ),
        (".", ".: is a folder. Known: camvid, "),
    ],
)
def test_a_config_that_is_not_there_brings_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    assert str(caught.value).startswith(message)


def test_a_dumped_config_is_complete_and_readable() -> None:
    text = dump_config(Config())
    assert "  crop: [256, 256]\n" in text and "  clip_grad_norm: null\n" in text
    keys = sum(len(type(section).model_fields) for _, section in Config())
    assert sum(line.startswith("  ") for line in text.splitlines()) == keys


positive = st.floats(min_value=1e-12, max_value=1e12)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    train=st.fixed_dictionaries(
        {
            "lr": positive,
            "steps": st.integers(1, 10**9),
            "clip_grad_norm": st.none() | positive,
            "class_weights": st.none() | st.lists(positive, min_size=1, max_size=4).map(tuple),
            "freeze_bn": st.booleans(),
        }
    ),
    model=st.fixed_dictionaries({"weights": st.text(max_size=20)}),
    data=st.fixed_dictionaries({"train_split": st.text(max_size=9), "flip": st.floats(0, 1)}),
)
def test_every_config_reads_back_equal(
    tmp_path: Path, train: dict[str, object], model: dict[str, object], data: dict[str, object]
) -> None:
    config = Config.model_validate({"train": train, "model": model, "data": data})
    assert load_config(write(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.seed=auto", r"--set train\.seed=auto: train\.seed = \"auto\": input should"),
        ("train.lr=-1", r"--set train\.lr=-1: train\.lr = -1: input should be greater than 0"),
    ],
)
def test_a_draft_is_refused_before_a_data_set_is_seen(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_draft("folder", [override])


def test_what_may_be_right_once_the_rest_is_chosen_is_taken() -> None:
    draft = load_draft("folder", ["train.warmup_steps=50000", "train.class_weights=[0, 1]"])
    assert draft.filled().train.class_weights == (0, 1)  # a class may be left out of the loss


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["model.stem=deep"], "no ImageNet weights"),
        (["model.stem=deep", "model.weights=none", "model.backbone=mobilenet_v2"], "of ResNets"),
        (["model.head_convs=1"], "model.head = deeplabv3, not of deeplabv3plus"),
        (["model.head=deeplabv3", "model.low_channels=12"], "not of deeplabv3"),
        (["model.head=deeplab", "model.aspp_mixing=3"], "not of deeplab"),
        (["model.head=upernet", "model.aspp_rates=[1, 2]"], "deeplabv3 or deeplabv3plus, not of u"),
        (["model.head=segformer", "model.aspp_mixing=3"], "not of segformer"),
        (["model.head=segformer", "model.low_channels=12"], "not of segformer"),
        (["model.head=upernet", "model.head_convs=2"], "not of upernet"),
    ],
)
def test_a_part_that_the_network_does_not_have_is_refused(
    tmp_path: Path, overrides: list[str], named: str
) -> None:
    message = problem(tmp_path, "{}", *overrides)
    assert named in message and any(override in message for override in overrides)
