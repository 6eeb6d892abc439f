"""What a dry run found out, in words for a person to read."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from segdeform.training.pace import duration

_GIB = 2**30
_WIDTH = 100  # columns
_MARGIN = 10  # columns that the names of the parts take
_CLASSES = 12  # of which all shares are told; of more, the ends
_ENDS = 4  # classes at either end that are named
_LONGEST = 60  # letters of a value; --json has all


def lines(plan: dict[str, Any]) -> Iterator[str]:
    """Writes what `dry_run` returned, in lines of at most 100 columns."""
    if plan["finished"]:
        yield f"{plan['run']} is finished: nothing is left to do"
        return
    machine = plan["machine"]
    yield from _part(
        "machine",
        f"{machine['device']}, {_several(machine['threads'], 'thread')}, "
        f"{_several(machine['workers'], 'loader worker')}, "
        f"{_several(machine['processes'], 'process')}",
    )
    for split, told in plan["data"].items():
        yield from _of_data(split, told)
    yield from _of_choices(plan["choices"])
    network = plan["network"]
    yield from _part(
        "network",
        f"{network['parameters']:,} parameters, {network['trainable']:,} trainable, "
        f"{_several(len(network['deformable_layers']), 'deformable layer')}",
    )
    for name in network["deformable_layers"]:
        yield from _part("", name)
    yield from _of_time(plan)
    yield from _of_memory(plan["memory"])
    if "largest_batch" in plan:
        yield from _of_largest_batch(plan["largest_batch"], plan["config"]["data"]["crop"])
    starts = plan["disk"]["needed_bytes"] <= plan["disk"]["free_bytes"]
    yield f"Nothing was written{'; without --dry-run it starts' if starts else ''}."


def _of_data(role: str, told: dict[str, Any]) -> Iterator[str]:
    yield from _part(
        role,
        f"{_several(told['pictures'], 'picture')} of {told['dataset']}/{told['split']}, "
        f"{_several(len(told['classes']), 'class')}, names {told['names_sha256'][:12]}",
    )
    if "sizes" not in told:
        return
    sizes = {
        name: "x".join(map(str, told["sizes"][name]))
        for name in told["sizes"]
        if name != "different"
    }
    if told["sizes"]["different"] == 1:
        yield from _part("", f"all of {sizes['commonest']} pixels (height x width)")
    else:
        yield from _part(
            "",
            f"from {sizes['smallest']} to {sizes['largest']} pixels (height x width), most often "
            f"{sizes['commonest']}",
        )
    yield from _part("", _shares(told["classes"], told["shares"]))
    if told["ignored_share"] > 0:
        yield from _part("", f"{told['ignored_share']:.1%} of the pixels have no label")


def _shares(classes: list[str], shares: list[float]) -> str:
    """Words the classes' shares of the labelled pixels, from the commonest to the rarest."""
    order = sorted(range(len(classes)), key=lambda index: -shares[index])
    found = [f"{classes[index]} {_percent(shares[index])}" for index in order if shares[index]]
    absent = [classes[index] for index in order if not shares[index]]
    if len(found) > _CLASSES:
        text = f"most: {', '.join(found[:_ENDS])}; rarest: {', '.join(found[-_ENDS:])}"
    else:
        text = ", ".join(found)
        if len(found) > 1:
            text += f"; the rarest is {classes[order[len(found) - 1]]}"
    if absent:
        more = f" and {len(absent) - _CLASSES} more" if len(absent) > _CLASSES else ""
        text += f"; in no mask: {', '.join(absent[:_CLASSES])}{more}"
    return text


def _percent(share: float) -> str:
    return f"{share:.2%}" if share >= 5e-5 else f"{share:.1g}"


def _of_choices(choices: list[dict[str, Any]]) -> Iterator[str]:
    for number, choice in enumerate(choices):
        value = json.dumps(choice["value"])
        if len(value) > _LONGEST:
            value = f"{value[: _LONGEST - 3]}..."
        yield from _part(
            "chosen" if number == 0 else "", f"{choice['key']}={value}: {choice['reason']}"
        )


def _of_time(plan: dict[str, Any]) -> Iterator[str]:
    spent, disk = plan["time"], plan["disk"]
    yield from _part(
        "pace",
        f"{duration(spent['step_seconds'])} a step, {spent['images_per_second']:.1f} images/s",
    )
    yield from _of_compiling(plan)
    end = datetime.now().astimezone() + timedelta(seconds=spent["seconds"])
    yield from _part(
        "time",
        f"about {duration(spent['seconds'])} for steps {plan['first_step'] + 1} to "
        f"{plan['steps']}, until {end:%Y-%m-%d %H:%M}",
    )
    yield from _part(
        "",
        f"with {_several(spent['evaluations'], 'evaluation')} of "
        f"{duration(spent['evaluation_seconds'])}, {_several(spent['saves'], 'checkpoint')} of "
        f"{duration(spent['saving_seconds'])}",
    )
    yield from _part(
        "disk",
        f"{disk['needed_bytes'] / _GIB:.2f} GiB needed, {disk['free_bytes'] / _GIB:.1f} GiB free",
    )


def _of_compiling(plan: dict[str, Any]) -> Iterator[str]:
    told, step = plan["compile"], plan["time"]["step_seconds"]
    if told is None:
        yield from _part(
            "", "not compiled; a dry run with --set train.compile=true measures it, in minutes"
        )
        return
    if told["seconds"] is None:
        yield from _part(
            "", "the network cannot be compiled here: train.compile=false spares trying"
        )
        return
    plain = told["plain_step_seconds"]
    yield from _part(
        "",
        f"compiled, which took {duration(told['seconds'])}; {duration(plain)} a step without",
    )
    if told["pays"]:
        yield from _part("", f"so that it pays: train.compile=true, from step {_even(plan)} on")
    elif step < plain:
        yield from _part(
            "",
            f"too few steps for it: train.compile=false; it would pay from step {_even(plan)} on",
        )
    else:
        yield from _part("", "it does not pay: train.compile=false is faster")


def _even(plan: dict[str, Any]) -> int:
    """Returns the step up to which compiling has cost as much as it has won."""
    told = plan["compile"]
    won = told["plain_step_seconds"] - plan["time"]["step_seconds"]
    return int(plan["first_step"] + math.ceil(told["seconds"] / won))


def _of_memory(memory: dict[str, Any]) -> Iterator[str]:
    limit = memory["limit_bytes"]
    of = "" if limit is None else f", of {limit / _GIB:.1f} GiB that it may take"
    yield from _part("memory", f"{memory['peak_bytes'] / _GIB:.2f} GiB at most in these steps{of}")
    if memory["near_limit"]:
        yield from _part(
            "",
            "warning: that is nearly all, and a step more may end it: lower train.batch_size or "
            "data.crop, or set train.accumulate=2 or train.checkpointing=true",
        )


def _of_largest_batch(found: dict[str, Any], crop: list[int]) -> Iterator[str]:
    failed = [attempt for attempt in found["tried"] if not attempt["fits"]]
    least = min(failed, key=lambda attempt: attempt["batch_size"], default=None)
    limit = f"{found['limit_bytes'] / _GIB:.1f} GiB that may be used"
    if found["batch_size"] is None:
        assert least is not None
        yield from _part(
            "largest", f"no batch fits into the {limit}: of {least['batch_size']}, {least['cause']}"
        )
        return
    current = found["current"]
    pace = f"{found['images_per_second']:.1f} images/s"
    if current["batch_size"] == found["batch_size"]:
        more = "the one that is set"
    elif current["fits"]:
        more = f"{current['batch_size']} as it is set: {current['images_per_second']:.1f}"
    else:
        more = f"{current['batch_size']} as it is set does not fit"
    yield from _part(
        "largest",
        f"train.batch_size={found['batch_size']} of {crop[0]}x{crop[1]} fits, with "
        f"{found['peak_bytes'] / _GIB:.2f} of the {limit}: {pace} without the loader ({more})",
    )
    if least is None:
        yield from _part("", "larger ones fit, too, but take more than a minute a step")
    else:
        yield from _part("", f"{least['batch_size']} does not: {least['cause']}")
    yield from _part(
        "",
        "tried by a few uncompiled steps on noise, in processes of their own; "
        "train.lr goes with the batch",
    )


def _part(name: str, text: str) -> Iterator[str]:
    """Wraps a text behind its name."""
    begin = f"{name + ':' if name else '':{_MARGIN}}"
    yield from textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=begin,
        subsequent_indent=" " * (_MARGIN + 2),
        break_on_hyphens=False,
    )


def _several(number: int, thing: str) -> str:
    plural = thing if number == 1 else f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return f"{number} {plural}"
