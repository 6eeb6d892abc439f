"""What a first training is given where its config says `auto`, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from segdeform.config.loading import Draft, load_draft
from segdeform.config.schema import AUTO_KEYS, Config
from segdeform.errors import ConfigError, UsageError
from segdeform.training.choices import Seen, choose, choose_precision, choose_steps, values_of
from segdeform.training.pace import Pace, duration, expected

GIB = 2**30
ROADS = Seen(
    classes=("road", "crack"),
    pixels=(98_400, 1_600),
    train=((320, 480),) * 94,
    val=((320, 480),) * 24,
)


def seen(**facts: Any) -> Seen:
    return Seen(**{**vars(ROADS), **facts})


def chosen(facts: Seen, *overrides: str, budget: tuple[float, Pace] | None = None) -> Any:
    """Returns the values chosen for the shipped config, by key, and their reasons likewise."""
    draft = load_draft("folder", overrides)
    first = choose(draft, facts, lambda config, classes: GIB)
    first += choose_precision(draft, facts, None)
    choices = [*first, *choose_steps(draft, facts, first, budget)]
    assert values_of(choices).keys() == draft.auto
    draft.config(values_of(choices))  # is valid
    return values_of(choices), {choice.key: choice.reason for choice in choices}


def test_every_key_that_may_be_auto_has_a_rule() -> None:
    draft = load_draft("camvid", [f"{key}=auto" for key in sorted(AUTO_KEYS)])
    assert draft.auto == AUTO_KEYS
    first = choose(draft, ROADS, lambda config, classes: GIB)
    first += choose_precision(draft, ROADS, None)
    choices = [*first, *choose_steps(draft, ROADS, first, None)]
    assert values_of(choices).keys() == AUTO_KEYS
    assert draft.config(values_of(choices)).model.backbone == "mobilenet_v2"


@pytest.mark.parametrize(
    ("device", "native", "cost", "precision", "reason"),
    [
        ("cuda", True, None, "bf16", "natively"),
        ("cuda", False, None, "fp32", "fp16 needs loss scaling"),
        ("cpu", False, None, "fp32", "no instructions"),
        ("cpu", True, 0.62, "bf16", "0.62 times"),
        ("cpu", True, 0.95, "fp32", "0.95 times"),
        ("cpu", True, 2.1, "fp32", "2.10 times"),
        ("cpu", True, None, "fp32", "not measured"),
    ],
)
def test_precision(
    device: str, native: bool, cost: float | None, precision: str, reason: str
) -> None:
    draft = load_draft("camvid", ["train.precision=auto"])
    seen = Seen(**{**vars(ROADS), "device": device, "native_bf16": native})
    (choice,) = choose_precision(draft, seen, cost)
    assert (choice.key, choice.value) == ("train.precision", precision)
    assert reason in choice.reason
    assert choose_precision(load_draft("camvid"), seen, cost) == []


@pytest.mark.parametrize(
    ("train", "device", "crop"),
    [
        (((320, 480),), "cpu", [320, 320]),
        (((512, 512),), "cpu", [320, 320]),
        (((512, 512),), "cuda", [512, 512]),
        (((3000, 4000),), "cuda", [512, 512]),
        (((300, 2000),), "cpu", [288, 320]),
        (((28, 28),), "cpu", [16, 16]),
        (((9, 31),), "cpu", [16, 16]),  # no crop is smaller than a value of the map
        # One in ten may be smaller: crops hang over its edges.
        ((*((200, 260),) * 19, (64, 64)), "cpu", [192, 256]),
        ((*((200, 260),) * 4, (64, 64)), "cpu", [64, 64]),
    ],
)
def test_the_crop_fits_into_the_pictures(
    train: tuple[tuple[int, int], ...], device: str, crop: list[int]
) -> None:
    values, _ = chosen(seen(train=train, device=device))
    assert values["data.crop"] == crop


def test_the_crop_is_a_multiple_of_the_output_stride_that_was_given() -> None:
    values, _ = chosen(seen(train=((100, 100),)), "model.output_stride=32")
    assert values["data.crop"] == [96, 96]
    values, _ = chosen(seen(train=((100, 110),)), "model.output_stride=8")
    assert values["data.crop"] == [96, 104]


def test_the_reason_of_the_crop_names_the_smallest_and_the_largest_picture() -> None:
    _, reasons = chosen(seen(train=((10, 300), (40, 50), (100, 90))))
    assert "pictures from 40x50 to 100x90" in reasons["data.crop"]
    _, reasons = chosen(seen(train=((320, 320),)))
    assert "larger than 320 costs more than it gives without a GPU" in reasons["data.crop"]


@pytest.mark.parametrize(
    ("pixels", "weights"),
    [
        # Median share 0.5: sqrt(0.5 / 0.984), sqrt(0.5 / 0.016).
        ((98_400, 1_600), [0.713, 5.59]),
        ((1_600, 98_400), [5.59, 0.713]),
        ((22, 78), [1.508, 0.801]),
        ((25, 75), None),  # half of an equal share
        (tuple([95] * 19 + [95]), None),  # 5% is not below 5%
        (tuple([96] * 19 + [94]), [1.0] * 19 + [1.011]),
        # 90, 8 and 2%; the fourth class is in no mask, and no weight can teach it.
        ((900, 80, 20, 0), [0.298, 1.0, 2.0, 1.0]),
        ((999_990, 10), [0.707, 10.0]),  # at most ten
        ((500, 500, 0), None),  # what is in no mask is not rare
        ((10, 0), None),
        ((0, 0), None),
        ((7,), None),
    ],
)
def test_rare_classes_weigh_more(pixels: tuple[int, ...], weights: list[float] | None) -> None:
    names = tuple("abcdefghijklmnopqrst"[: len(pixels)])
    values, reasons = chosen(seen(classes=names, pixels=pixels))
    assert values["train.class_weights"] == weights
    if weights == [0.713, 5.59]:
        assert "b has 1.60% of the labelled pixels" in reasons["train.class_weights"]


def test_150_classes_get_a_weight_each() -> None:
    pixels = tuple(1000 * (150 - k) for k in range(150))
    values, _ = chosen(seen(classes=tuple(map(str, range(150))), pixels=pixels))
    weights = values["train.class_weights"]
    assert len(weights) == 150 and weights == sorted(weights) and weights[-1] == 8.689  # of 75.5


@pytest.mark.parametrize(
    ("facts", "size"),
    [
        ({}, 8),
        ({"memory": 8 * GIB}, 8),
        ({"memory": 8 * GIB - 1}, 7),
        ({"memory": 1}, 1),  # it is tried
        ({"train": ((64, 64),) * 7}, 4),
        ({"train": ((64, 64),)}, 4),
        ({"processes": 3}, 9),
        ({"processes": 2, "memory": 3 * GIB}, 6),
        ({"processes": 2, "memory": 6 * GIB}, 8),  # which each of the two has
        ({"processes": 16}, 16),
    ],
)
def test_the_batch_fits_into_memory_and_is_shared_equally(facts: Any, size: int) -> None:
    values, _ = chosen(seen(**facts))
    assert values["train.batch_size"] == size


@pytest.mark.parametrize(
    ("facts", "steps"),
    [
        # 94 pictures are 94 * 1.5 crops of 320x320: 40 passes in batches of 8.
        ({}, 705),
        ({"train": ((512, 512),) * 24}, 400),  # 307 are too few
        ({"train": ((64, 64),)}, 400),
        ({"train": ((1280, 1280),) * 1000}, 20_000),
        ({"train": ((96, 96),) * 800}, 4000),
    ],
)
def test_without_a_budget_steps_are_passes_over_the_pictures(facts: Any, steps: int) -> None:
    values, reasons = chosen(seen(**facts))
    assert values["train.steps"] == steps
    assert values["train.warmup_steps"] == min(50, steps // 20)
    assert "--minutes 15" in reasons["train.steps"]


def test_without_a_budget_evaluations_take_no_more_than_a_tenth() -> None:
    values, _ = chosen(ROADS)
    assert values["train.eval_every"] == 177  # three on the way to step 705, and the last
    values, _ = chosen(seen(val=((4000, 6000),) * 24))
    assert values["train.eval_every"] == 0
    values, _ = chosen(seen(val=((320, 480),) * 1000))  # larger than train: once on the way
    assert values["train.eval_every"] == 353
    values, reasons = chosen(seen(val=((8, 8),)), "train.steps=3")  # as many as evaluations
    assert values["train.eval_every"] == 0 and "few steps" in reasons["train.eval_every"]


@pytest.mark.parametrize(("step", "every"), [(None, 250), (2.0, 30), (6.5, 10), (0.001, 1000)])
def test_a_kill_costs_a_minute_as_far_as_that_is_not_too_often(
    step: float | None, every: int
) -> None:
    budget = None if step is None else (900.0, Pace(step, 1.0))
    assert chosen(ROADS, "train.steps=500", budget=budget)[0]["train.save_every"] == every


PACE = Pace(step=2.0, evaluation=10.0, saving=1.0, before=40.0)


def test_a_budget_is_filled_with_steps_less_all_else() -> None:
    values, reasons = chosen(ROADS, budget=(900.0, PACE))
    assert values["train.save_every"] == 30  # a minute
    # 0.96 * 900 - 40 - 8 - 10 - 2 = 804, less three evaluations on the way; 2 + 1 / 30 a step
    assert values["train.steps"] == int(774 / (2 + 1 / 30)) == 380
    assert values["train.eval_every"] == 95
    assert values["train.warmup_steps"] == 19
    whole = 40 + 380 * 2 + 13 + 4 * 10
    assert 0.9 * 900 < whole < 900
    assert "15 minutes" in reasons["train.steps"] and "steps of 2 s" in reasons["train.steps"]


def test_slow_evaluations_are_left_to_the_end() -> None:
    values, _ = chosen(ROADS, budget=(900.0, Pace(2.0, 300.0, 1.0, 40.0)))
    assert (values["train.eval_every"], values["train.steps"]) == (0, int(514 / (2 + 1 / 30)))


def test_evaluations_that_were_asked_for_are_counted_in() -> None:
    values, _ = chosen(ROADS, "train.eval_every=10", budget=(900.0, PACE))
    assert values["train.steps"] == int(804 / (2 + 1 / 30 + 1))


@pytest.mark.parametrize("seconds", [36_000.0, 1.7e308])
def test_more_time_than_the_pictures_are_worth_is_left(seconds: float) -> None:
    fast = Pace(
        step=0.01, evaluation=0.0, saving=0.0, before=0.0
    )  # so many steps that a float has no such number
    values, reasons = chosen(ROADS, budget=(seconds, PACE if seconds < 1e300 else fast))
    assert values["train.steps"] == 4 * 705
    assert "160 passes" in reasons["train.steps"]


def test_a_budget_for_less_than_ten_steps_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--minutes 1: 10 steps of 2 s .* take 84 s here"):
        chosen(ROADS, budget=(60.0, PACE))
    values, _ = chosen(ROADS, budget=(100.0, PACE))
    assert values["train.steps"] >= 10


def test_without_weights_to_start_from_everything_learns() -> None:
    values, reasons = chosen(seen(no_weights="no network"))
    keys = ("model.weights", "train.freeze_bn", "train.backbone_lr_factor")
    assert [values[key] for key in keys] == ["none", False, 1.0]
    assert "no network" in reasons["model.weights"]
    values, _ = chosen(ROADS)
    assert [values[key] for key in keys] == ["imagenet", True, 0.25]
    values, _ = chosen(ROADS, "model.weights=none")
    assert [values[key] for key in keys[1:]] == [False, 1.0]


def test_the_rate_goes_with_the_batch() -> None:
    assert chosen(ROADS)[0]["train.lr"] == 0.003
    assert chosen(ROADS, "train.batch_size=32")[0]["train.lr"] == 0.006
    assert chosen(ROADS, "train.batch_size=4")[0]["train.lr"] == 0.0021
    assert chosen(ROADS, "train.optimizer=sgd")[0]["train.lr"] == 0.02


@pytest.mark.parametrize("head", ["deeplab", "upernet", "segformer"])
def test_heads_without_dilations_are_given_none(head: str) -> None:
    """Nor those of a folder to begin with, whose network is another one."""
    values, reasons = chosen(seen(rates=(1, 2, 3)), f"model.head={head}", "model.aspp_rates=auto")
    assert values["model.aspp_rates"] is None
    assert reasons["model.aspp_rates"] == "this head has no dilations"


def test_what_was_set_is_not_chosen() -> None:
    values, _ = chosen(ROADS, "data.crop=[96, 64]", "train.batch_size=7", "train.steps=1000")
    assert not values.keys() & {"data.crop", "train.batch_size", "train.steps"}
    # A pixel predicted is 0.3 of one trained on: 43 million, and 1.1 for each evaluation.
    assert values["train.eval_every"] == 250 and values["train.warmup_steps"] == 50


def test_a_warm_up_that_was_set_leaves_something_of_the_steps() -> None:
    with pytest.raises(ConfigError, match=r"warmup_steps = 400 leaves nothing of train\.steps"):
        chosen(ROADS, "train.warmup_steps=400", budget=(900.0, PACE))


def test_a_config_made_in_code_leaves_nothing_open() -> None:
    draft = Draft.of(Config())
    assert not draft.auto and draft.config({}) == Config()
    assert draft.leave_open("train.steps").auto == {"train.steps"}


def test_times_are_told_by_two_digits() -> None:
    times = {0.0451: "0.045 s", 2.04: "2 s", 12.4: "12 s", 98: "98 s", 100: "1.7 minutes"}
    times |= {840: "14 minutes", 5400: "90 minutes", 6000: "1.7 hours", 86400: "24 hours"}
    assert {seconds: duration(seconds) for seconds in times} == times
    assert expected(Pace(1.2, 60.0), 610, 3) == (
        "about 15 minutes: 610 steps of 1.2 s, 3 evaluations of 60 s"
    )
    assert expected(Pace(0.1, 2.0), 20, 1).endswith("20 steps of 0.1 s, 1 evaluation of 2 s")
