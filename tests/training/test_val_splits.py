"""Several splits scored beside the one that decides."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segdeform.cli import main
from segdeform.config.loading import load_config
from segdeform.config.schema import Config
from segdeform.data import load_dataset
from segdeform.errors import ConfigError
from segdeform.evaluation.evaluate import evaluate
from segdeform.preparing.shapes import write_shapes
from segdeform.segmenter import load
from segdeform.training import curves, loop
from segdeform.training.curves import picture, read_log
from segdeform.training.loop import train
from segdeform.training.pictures import Pictures
from tests.ranks import run_ranks
from tests.training.conftest import ReporterThat, send, tiny_config

OPTIONS: dict[str, Any] = {"device": "cpu", "workers": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes with a second split, `night`: three darker pictures of another size."""
    root = tmp_path_factory.mktemp("splits") / "shapes"
    write_shapes(root, seed=0, train=4, val=2, size=64)
    other = tmp_path_factory.mktemp("other")
    write_shapes(other, seed=9, train=3, val=1, size=80)
    shutil.copytree(other / "train", root / "night")
    for path in (root / "night" / "images").iterdir():
        Image.open(path).point(lambda value: value // 3).save(path)
    return root


def scored(val_split: Any, **keys: Any) -> Config:
    values = tiny_config(**{"eval_every": 2, "save_every": 1, "lr": 0.05} | keys).model_dump()
    values["data"] |= {"val_split": val_split}
    return Config.model_validate(values)


def run(config: Config, data: Path, folder: Path, **more: Any) -> Path:
    train(config, data, folder, **OPTIONS | {"reporter": ReporterThat()} | more)
    return folder


def evaluations(folder: Path) -> list[dict[str, Any]]:
    return [entry for entry in read_log(folder / "log.jsonl") if entry["kind"] == "val"]


@pytest.fixture(scope="module")
def both(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(scored(["val", "night"]), data, tmp_path_factory.mktemp("both") / "run")


def test_all_are_scored_as_eval_scores_them(both: Path, data: Path) -> None:
    metrics = json.loads((both / "metrics.json").read_text())
    assert list(metrics["other_splits"]) == ["night"]
    segmenter = load(both, "cpu")
    for split, found in (("val", metrics), ("night", metrics["other_splits"]["night"])):
        expected = evaluate(segmenter, load_dataset("shapes", data, split))
        assert found["miou"] == expected.to_json()["miou"] and found["miou"] > 0
        assert found["classes"] == expected.to_json()["classes"]
        assert found["protocol"]["split"] == split
    assert segmenter.info["training"]["miou"] == metrics["miou"]
    assert [(e["step"], e.get("split")) for e in evaluations(both)] == [
        (2, "val"),
        (2, "night"),
        (4, "val"),
        (4, "night"),
    ]
    last = evaluations(both)[-2:]
    assert [e["miou"] for e in last] == [
        metrics["miou"],
        metrics["other_splits"]["night"]["miou"],
    ]


def test_the_first_alone_is_what_it_was(both: Path, data: Path, tmp_path: Path) -> None:
    """Scoring more changes no weight, and a run of one split has the files that it always had."""
    one = run(scored("val"), data, tmp_path / "one")
    assert (one / "model/model.safetensors").read_bytes() == (
        both / "model/model.safetensors"
    ).read_bytes()
    metrics = json.loads((both / "metrics.json").read_text())
    assert "other_splits" not in json.loads((one / "metrics.json").read_text())
    assert [e["miou"] for e in evaluations(one)] == [
        e["miou"] for e in evaluations(both) if e["split"] == "val"
    ]
    assert json.loads((one / "metrics.json").read_text())["miou"] == metrics["miou"]
    assert "split" not in curves.table(read_log(one / "log.jsonl"), ["a"]).partition("\n")[0]


def test_a_list_of_one_is_its_name(both: Path) -> None:
    assert scored(["val"]) == scored("val")
    assert scored(["val", "night"]).data.val_splits == ("val", "night")
    for wrong in ([], ["val", "val"], ["val", ""], "", 3, [1]):
        with pytest.raises(ConfigError, match=r"data\.val_split"):
            load_config("shapes", [f"data.val_split={json.dumps(wrong)}"])


def test_the_first_decides(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best network and patience follow the first split where the second says otherwise."""
    score_now = loop.score_now
    wanted = {"val": {1: 0.9, 2: 0.2, 3: 0.1}, "night": {1: 0.1, 2: 0.5, 3: 0.95}}

    def score(plan: Any, state: Any, *more: Any) -> Any:
        found = score_now(plan, state, *more)
        for val_set, evaluation in zip(plan.val_sets, found, strict=True):
            miou = wanted[val_set.split][state.step]
            evaluation.__dict__["scores"] = replace(evaluation.scores, miou=miou)
        return found

    monkeypatch.setattr(loop, "score_now", score)
    keys = {"steps": 9, "eval_every": 1, "keep_best": True, "patience": 2}
    folder = run(scored(["val", "night"], **keys), data, tmp_path / "run")
    training = load(folder, "cpu").info["training"]
    assert training["steps"] == 3
    assert training["chosen"] == {"step": 1, "by": "mIoU on val", "evaluations": 3}


def test_stopped_and_resumed_is_never_stopped(both: Path, data: Path, tmp_path: Path) -> None:
    config, folder = scored(["val", "night"]), tmp_path / "run"
    with pytest.raises(Exception, match="saved at step 3"):
        run(config, data, folder, reporter=ReporterThat(3, send(15)))
    run(config, data, folder, resume=True)
    for name in ("model/model.safetensors", "metrics.json"):
        assert (folder / name).read_bytes() == (both / name).read_bytes()
    assert evaluations(folder) == evaluations(both)
    with pytest.raises(ConfigError, match=r"data\.val_split"):
        run(scored("val"), data, folder, resume=True)


def test_a_run_killed_before_its_end_lists_no_score_twice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, both: Path
) -> None:
    """The last scores are in the log already when the result is still to be written."""

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_result", killed)
        with pytest.raises(KeyboardInterrupt):
            run(scored(["val", "night"]), data, tmp_path / "run")
    assert len(evaluations(tmp_path / "run")) == 4
    run(scored(["val", "night"]), data, tmp_path / "run", resume=True)
    assert evaluations(tmp_path / "run") == evaluations(both)


def test_pictures_shown_are_of_the_first(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the others may have the same names."""
    seen, keep = [], Pictures.keep

    def noted(self: Pictures, sample: Any, labels: Any) -> None:
        seen.append((sample.image.parents[1].name, labels.shape))
        keep(self, sample, labels)

    monkeypatch.setattr(Pictures, "keep", noted)
    run(scored(["val", "night"], steps=1, eval_every=0), data, tmp_path / "run")
    assert seen == [("val", (64, 64))] * 2


def _train(data: Path, folder: Path) -> None:
    train(scored(["val", "night"]), data, folder, **OPTIONS | {"reporter": ReporterThat()})


def test_two_processes_count_the_same(both: Path, data: Path, tmp_path: Path) -> None:
    run_ranks(2, _train, data, tmp_path / "run")
    ours, theirs = evaluations(tmp_path / "run"), evaluations(both)
    assert [(e["step"], e.get("split")) for e in ours] == [
        (e["step"], e.get("split")) for e in theirs
    ]
    metrics = [json.loads((f / "metrics.json").read_text()) for f in (tmp_path / "run", both)]
    for a, b in (metrics, [m["other_splits"]["night"] for m in metrics]):
        assert a["protocol"]["pictures"] == b["protocol"]["pictures"]
        assert a["miou"] == pytest.approx(b["miou"], abs=0.05)


def test_a_missing_one_is_named_before_the_first_step(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "shapes", "--data", str(data), "--output", str(tmp_path / "run")]
    assert main([*arguments, "--set", "data.val_split=[val, fog]"]) == 4
    assert "fog" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_curves_show_them_all(both: Path) -> None:
    entries, classes = read_log(both / "log.jsonl"), ["ground", "disc"]
    header, *rows = csv.reader(curves.table(entries, classes).splitlines())
    assert header[:3] == ["step", "kind", "split"]
    assert [row[2] for row in rows if row[1] == "val"] == ["val", "night"] * 2
    alone = [entry for entry in entries if entry.get("split") != "night"]
    assert picture(entries, classes) != picture(alone, classes)


def test_a_dry_run_tells_of_all(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "shapes", "--data", str(data), "--output", str(tmp_path / "run")]
    keys = ["model.weights=none", "data.crop=[48,64]", "train.batch_size=2", "train.steps=40"]
    keys += ["train.warmup_steps=2", "data.val_split=[val, night]"]
    sets = [part for key in keys for part in ("--set", key)]
    assert main([*arguments, *sets, "--dry-run"]) == 0
    told = capsys.readouterr()
    assert "night" in told.out + told.err
