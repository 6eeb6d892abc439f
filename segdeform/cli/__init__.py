"""The command line. Each command parses, calls one plain function and prints.

Nothing here imports torch: the commands do so when they run, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import inspect
import os
import select
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Annotated
from unicodedata import category

import typer

from segdeform.cli.ablate import ablate
from segdeform.cli.check import check
from segdeform.cli.compare import compare
from segdeform.cli.doctor import doctor
from segdeform.cli.eval import evaluate
from segdeform.cli.explain import explain
from segdeform.cli.export import export
from segdeform.cli.import_ import import_
from segdeform.cli.info import info
from segdeform.cli.predict import predict
from segdeform.cli.prepare import prepare
from segdeform.cli.score import score
from segdeform.cli.train import train
from segdeform.errors import (
    EXHAUSTED,
    InterruptedByUserError,
    ResourceError,
    SegdeformError,
    UsageError,
)
from segdeform.machine import interrupts
from segdeform.machine.memory import memory_that_ended
from segdeform.version import __version__

# What a system says of paths that a user named, wherever it is met.
_REFUSED = frozenset({errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EROFS})
_BREAKING = ("Cc", "Zl", "Zp")  # of Unicode's categories: control characters, ends of lines
_READER_GONE = 141  # what a shell reports for a program that ended by SIGPIPE


def _flowing(text: str) -> str:
    """Joins the lines of each paragraph, which terminals of any width then wrap by themselves."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for function, name in (
    (prepare, "prepare"),
    (check, "check"),
    (train, "train"),
    (evaluate, "eval"),
    (score, "score"),
    (compare, "compare"),
    (predict, "predict"),
    (explain, "explain"),
    (export, "export"),
    (ablate, "ablate"),
    (import_, "import"),
    (info, "info"),
    (doctor, "doctor"),
):
    app.command(name, help=_flowing(function.__doc__ or ""))(function)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"segdeform {__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show tracebacks; allowed after the command too.")
]


@app.callback()
def _segdeform(version: Version = False, debug: Debug = False) -> None:
    """Semantic segmentation with deformable convolutions."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; a failure is one line on stderr.

    The codes are those of segdeform.errors; an exception that no code stands for is a bug and
    leaves with its traceback.
    """
    # Threads that spin while they wait steal the loader's time, and on a busy machine each other's:
    # a training step beside another process took 6 times as long. OpenMP reads this with torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # A lost process is one line of ours, not a page of C++ frames; read with torch too.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Damaged pictures are told of by our own lines; Pillow's warnings name neither file nor remedy.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words or bool(os.environ.get("SEGDEFORM_DEBUG"))
    if isinstance(sys.stdout, TextIOWrapper):  # file names need not be valid UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with interrupts.remembered(), _outlets() as outlets:
            return _run([word for word in words if word != "--debug"], outlets)
    except SegdeformError as error:
        if debug:
            traceback.print_exc()
        _tell(f"segdeform: {_on_one_line(str(error))}")
        return error.exit_code
    except (KeyboardInterrupt, Exception) as error:
        # Broken off inside an import of other people's, it can come out as any error.
        if isinstance(error, KeyboardInterrupt) or interrupts.received():
            if debug:
                traceback.print_exc()
            _tell("segdeform: interrupted")
            return InterruptedByUserError.exit_code
        error.add_note("This is a bug in segdeform: please report it with the lines above.")
        raise


def _on_one_line(text: str) -> str:
    """Shows what would break a line or steer the terminal as Python writes it: names hold it."""
    return "".join(
        letter if category(letter) not in _BREAKING else repr(letter)[1:-1] for letter in text
    )


def _tell(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # the terminal is gone, which must not change the exit code, now or at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _run(words: list[str], outlets: dict[int, int]) -> int:
    """Calls the command; turns what other libraries raise into our errors. Returns the code."""
    try:
        code = app(words or ["--help"], prog_name="segdeform", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        return _usage_error(error)
    except (BrokenPipeError, SystemExit) as error:
        # Typer and Rich end so when nobody reads what we print. So may a library for its own
        # reasons, or a pipe to a process of ours: that is not what was asked for.
        if _close_unread(outlets):
            return _READER_GONE
        if isinstance(error, SystemExit):
            raise RuntimeError(f"a library ended the program, code {error.code}") from error
        raise
    except (MemoryError, OSError, RuntimeError) as error:
        if resource := _resource_that_ended(error):
            raise ResourceError(resource) from error
        if isinstance(error, OSError) and error.filename and error.errno in _REFUSED:
            raise UsageError(f"{error.filename}: {error.strerror}") from error
        raise
    if code == InterruptedByUserError.exit_code:  # Typer returns it for a KeyboardInterrupt
        raise InterruptedByUserError("interrupted")
    return int(code or 0)


@contextmanager
def _outlets() -> Iterator[dict[int, int]]:
    """Lends copies of stdout and stderr, {1: copy, 2: copy}; Rich puts others in their place."""
    copies: dict[int, int] = {}
    for number in (1, 2):
        with suppress(OSError):  # closed by the caller
            copies[number] = os.dup(number)
    try:
        yield copies
    finally:
        for copy in copies.values():
            os.close(copy)


def _close_unread(outlets: dict[int, int]) -> bool:
    """Tells whether stdout or stderr is a pipe without a reader; from now on nothing goes there."""
    unread = []
    for number, copy in outlets.items():
        poll = select.poll()
        poll.register(copy, 0)  # of a pipe without a reader an error is told, unasked
        if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
            unread.append(number)
    for number in unread:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return bool(unread)


def _usage_error(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "segdeform"
    text = " ".join(error.format_message().split()).rstrip(".")
    print(f"segdeform: {text[:1].lower()}{text[1:]}. See '{command} --help'.", file=sys.stderr)
    return error.exit_code


def _resource_that_ended(error: Exception) -> str:
    """Names the resource, or returns "" when the error is about something else."""
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}" if error.errno in EXHAUSTED else ""
    what = memory_that_ended(error)
    return what and f"{what} ended: lower train.batch_size or data.crop, or use --tile"
