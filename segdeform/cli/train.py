"""`segdeform train`: trains the network that a config file describes."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from segdeform.cli.output import Data, Device, Json, Threads, print_json
from segdeform.errors import UsageError


def train(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="A config file or a shipped config: folder, shapes, camvid, camvid-long, voc, "
            "cityscapes, paper-voc, paper-cityscapes.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Run folder to write.", show_default=False)],
    data: Data = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a config key; repeatable."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="How long a new run may take on this machine, all in all: sets train.steps by ten "
            "measured steps.",
            show_default="as many steps as the config says",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in the folder.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Write no run: tell what it would do, take and choose."),
    ] = False,
    largest_batch: Annotated[
        bool,
        typer.Option(
            "--largest-batch",
            help="With --dry-run: also find the largest train.batch_size that memory holds, by "
            "trying each in a process of its own.",
        ),
    ] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Tell where the time went, by phase, and which key would change it; on a GPU each "
            "phase waits for the one before.",
        ),
    ] = False,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SERVICE",
            help="Send the numbers to wandb or mlflow as well; repeatable. Where to, their own "
            "variables say.",
        ),
    ] = None,
    device: Device = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Loader processes of each training process; 0: none.",
            show_default="by the machine",
        ),
    ] = None,
    threads: Threads = None,
    json_output: Json = False,
) -> None:
    """Train a network; Ctrl-C saves, --resume goes on with the same bits.

    Several processes, one a GPU, are one training, of the same batch and with the same loss:
    torchrun --nproc-per-node 4 --max-restarts 3 -m segdeform train CONFIG ... --resume

    On several machines torchrun gets, on each, --nnodes 2 --rdzv-backend c10d --rdzv-endpoint
    HOST:29500 --rdzv-id NAME too. Rank 0 has the run folder, the others need only the data set;
    torchrun gives rank 0 to the machine whose address sorts first. "python -m
    segdeform.machine.torchrun" is torchrun with our exit codes.
    """
    from segdeform.config.loading import load_draft
    from segdeform.data import data_root
    from segdeform.training.start import refuse_start
    from segdeform.training.tracking import refuse_untrackable

    draft = load_draft(config, overrides or [])  # before torch's seconds of import
    if minutes is not None and 60 * minutes == float("inf"):  # seconds
        raise UsageError(f"--minutes {minutes:g}: give a number, or leave it out")
    for key in ("train.steps", "train.epochs"):
        if minutes is not None and key in draft.overridden:
            raise UsageError(
                f"--minutes {minutes:g} and {draft.overridden[key]} contradict each other: "
                "give one of them"
            )
    if dry_run and track:
        raise UsageError("--track sends the numbers of a training, and --dry-run does none")
    if dry_run and profile:
        raise UsageError("--profile tells of a training, and --dry-run does none: give one of them")
    if largest_batch and not dry_run:
        raise UsageError("--largest-batch is of --dry-run: give both")
    given = draft.filled()
    root = data_root(given.data.name, data)
    refuse_start(given, root, output, resume=resume, overwrite=overwrite)
    refuse_untrackable(track or [])

    import torch

    from segdeform.machine.processes import own_rank
    from segdeform.training.loop import train

    if threads is not None:
        torch.set_num_threads(threads)
    wanted: dict[str, Any] = {
        "device": device,
        "workers": workers,
        "resume": resume,
        "overwrite": overwrite,
        "minutes": minutes,
    }
    if dry_run:
        from segdeform.training.dry_run import dry_run as rehearse
        from segdeform.training.dry_run import refuse_too_little
        from segdeform.training.dry_run_text import lines

        rehearsal = rehearse(draft, root, output, largest_batch=largest_batch, **wanted)
        if own_rank() > 0:  # only rank 0 writes, on its own disk
            return
        if json_output:
            print_json(rehearsal)
        else:
            print("\n".join(lines(rehearsal)))
        refuse_too_little(rehearsal)
        return
    result = train(draft, root, output, profile=profile, track=track or (), **wanted)
    if own_rank() > 0:
        return
    if json_output:
        print_json({**asdict(result), "model": str(result.model)})
        return
    miou = "undefined (no labels)" if result.miou is None else f"{result.miou:.4f}"
    print(f"{result.steps} steps, {timedelta(seconds=round(result.seconds))}, val mIoU {miou}")
    print(f"Model: {result.model}")
    print(f"Next:  segdeform predict {output} PICTURES --output FOLDER")
    print(f"       segdeform eval {output} --data {root} --output FOLDER")
