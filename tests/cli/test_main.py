"""What holds for every command: quick help, one-line errors, exit codes, quiet stdout."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from segdeform import errors
from segdeform.config.loading import shipped_configs
from tests.cli.conftest import Command

COMMANDS = ("prepare", "train", "eval", "compare", "predict", "info", "doctor")


def child(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["train", "--help"], ["eval", "-h"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    heavy = ("torch", "torchvision", "albumentations", "cv2", "numpy", "yaml", "segdeform.config")
    code = (
        f"import sys; from segdeform.cli import main; assert main({arguments!r}) == 0;"
        f"print(sorted(set({heavy!r}) & sys.modules.keys()), file=sys.stderr)"
    )
    ended = child("-c", code)
    assert ended.stderr == "[]\n"
    assert "Usage: " in ended.stdout


@pytest.mark.parametrize(("given", "expected"), [("", "passive"), ("active", "active")])
def test_waiting_threads_do_not_spin_unless_told(given: str, expected: str) -> None:
    """OpenMP reads it once, with torch; two predictions side by side took 7 times as long."""
    code = (
        "import os, sys; given = os.environ.pop('OMP_WAIT_POLICY', '')\n"
        f"if {given!r}: os.environ['OMP_WAIT_POLICY'] = {given!r}\n"
        "from segdeform.cli import main; main(['--version'])\n"
        "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    assert child("-c", code).stdout.splitlines()[-1] == f"{expected} False"


def test_help_answers_within_a_third_of_a_second() -> None:
    def processor_seconds() -> float:  # of a child; wall time would count the machine's other work
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        child("-m", "segdeform", "--help")
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        return now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime

    assert min(processor_seconds() for _ in range(3)) < 0.3


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_speaks_json_and_is_documented(command: Command, name: str) -> None:
    ended = command(name, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert "--json" in ended.out


def test_help_names_the_shipped_configs(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = " ".join(command("train", "--help").out.split())
    named = text.partition("a shipped config: ")[2].partition(".")[0]
    assert set(named.split(", ")) == set(shipped_configs())


def test_version(command: Command) -> None:
    from segdeform import __version__

    assert command("--version").out == f"segdeform {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], "no such command 'fly'. See 'segdeform --help'."),
        (["--fast"], "no such option: --fast. See 'segdeform --help'."),
        (["info"], "missing argument 'MODEL'. See 'segdeform info --help'."),
        (["train", "camvid"], "missing option '--output'. See 'segdeform train --help'."),
        (["train", "camvid", "--output", "x"], "where is the camvid data set? Give --data FOLDER"),
        (
            ["prepare", "imagenet"],
            "no data set 'imagenet'. Known: camvid, cityscapes, folder, shapes, voc.",
        ),
        (["prepare", "voc"], "where is the voc data set? Give --output FOLDER"),
        (["doctor", "--workers", "2"], "no such option: --workers. See 'segdeform doctor --help'."),
    ],
)
def test_a_wrong_command_line_is_one_line_and_code_2(
    command: Command, arguments: list[str], said: str
) -> None:
    ended = command(*arguments)
    assert (ended.code, ended.out, ended.err) == (2, "", f"segdeform: {said}\n")


KINDS = errors.SegdeformError.__subclasses__()


def fail_with(error: BaseException) -> Callable[..., None]:
    def examine(*arguments: object) -> None:
        raise error

    return examine


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_one_line_with_its_exit_code(
    command: Command, monkeypatch: pytest.MonkeyPatch, kind: type[errors.SegdeformError]
) -> None:
    monkeypatch.setattr("segdeform.machine.doctor.examine", fail_with(kind("a.png: too odd")))
    ended = command("doctor")
    assert (ended.code, ended.out) == (kind.exit_code, "")
    assert ended.err == "segdeform: a.png: too odd\n"


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left", "a.png"), 7, "a.png: No space left"),
        (OSError(errno.EMFILE, "Too many open files"), 7, "Too many open files"),
        (MemoryError(), 7, "memory ended: lower train.batch_size or data.crop, or use --tile"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory"), 7, "memory ended"),
        (OutOfMemoryError("CUDA out of memory"), 7, "GPU memory ended"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_other_libraries_raise_gets_its_exit_code(
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr("segdeform.machine.doctor.examine", fail_with(error))
    ended = command("doctor")
    assert ended.code == code
    assert ended.err.startswith(f"segdeform: {said}")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("?"), OSError(errno.ENOENT, "?"), RuntimeError("?")])
def test_anything_else_is_a_bug_and_keeps_its_traceback(
    command: Command, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("segdeform.machine.doctor.examine", fail_with(error))
    with pytest.raises(type(error)) as caught:
        command("doctor")
    assert "bug in segdeform" in caught.value.__notes__[0]


def test_a_bug_ends_with_code_1_and_says_so_last() -> None:
    code = (
        "import sys, segdeform.machine.doctor, segdeform.cli as cli\n"
        "segdeform.machine.doctor.examine = lambda *a: 1 // 0\n"
        "sys.exit(cli.main(['doctor']))"
    )
    ended = child("-c", code)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback")
    assert "bug in segdeform" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("place", ["before", "after", "environment"])
def test_debug_shows_the_traceback_of_an_expected_error(
    command: Command, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "environment":
        monkeypatch.setenv("SEGDEFORM_DEBUG", "1")
    words = {"before": ["--debug", "info", "m"], "after": ["info", "m", "--debug"]}
    ended = command(*words.get(place, ["info", "m"]))
    assert ended.code == 5
    assert ended.err.startswith("Traceback")
    assert ended.err.splitlines()[-1].startswith("segdeform: m ")


@pytest.mark.parametrize("when", ["cli", "command", "swallowed", "turned"])
def test_ctrl_c_while_modules_are_imported_is_one_line(when: str, tmp_path: Path) -> None:
    """The signal comes in the midst of an import: of ours, of a command's, of other people's."""
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    bodies = {
        "cli": f"try:\n    {kill}\nexcept BaseException:\n    raise ImportError",  # cli's first
        "command": kill,
        "swallowed": f"try:\n    {kill}\nexcept BaseException:\n    pass\nraise ImportError('x')",
        "turned": f"try:\n    {kill}\nexcept BaseException as e:\n    raise SystemError from e",
    }
    name = "typer" if when == "cli" else "yaml"  # which train reads its config with
    (tmp_path / f"{name}.py").write_text(bodies[when])
    program = "from segdeform.__main__ import run; import sys; sys.exit(run())"
    words = ["train", "folder", "--data", "x", "--output", "y"]
    ended = child("-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {program}", *words)
    # Python itself may end by the signal after it was raised inside code that a module executes.
    assert ended.returncode in (130, -2)
    assert ended.stderr == "segdeform: interrupted\n"


def test_ctrl_c_before_a_command_runs_is_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the command line is put together, before anything of it is called."""

    def interrupt(*arguments: object, **names: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("segdeform.cli.app", interrupt)
    assert command("doctor") == (130, "", "segdeform: interrupted\n")


def ended_by(statement: str) -> str:
    """A program whose command runs a statement, as some library might."""
    return (
        "import os, sys, segdeform.cli as cli\n"
        "@cli.app.command('odd')\n"
        "def odd():\n"
        f"    {statement}\n"
        "sys.exit(cli.main(['odd']))"
    )


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("sys.exit(3)", "a library ended the program, code 3"),
        ("raise SystemExit", "a library ended the program, code None"),
        ("r, w = os.pipe(); os.close(r); os.write(w, b'x')", "a library ended the program, code 1"),
    ],
)
def test_a_library_that_ends_the_program_is_no_reader_that_has_gone(
    statement: str, said: str
) -> None:
    ended = child("-c", ended_by(statement))
    assert ended.returncode == 1
    assert "RuntimeError: " + said in ended.stderr
    assert "bug in segdeform" in ended.stderr.splitlines()[-1]


def test_an_error_keeps_its_code_when_nobody_reads() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "segdeform", "info", "nowhere"]
    ended = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writer)
    assert ended.returncode == 5 and b"nowhere is not a folder" in ended.stderr


def test_a_reader_that_has_gone_is_met_in_silence() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "segdeform", "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "\x1b[31mred", "a\u2028b"])
def test_names_that_break_lines_leave_a_failure_on_one(command: Command, name: str) -> None:
    for ended in (command("info", name), command("predict", "model", name, "--output", "out")):
        assert 2 <= ended.code <= 12
        assert len(ended.err.splitlines()) == 1 and "\x1b" not in ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("prepare", "folder", "--images", "LONG", "--masks", "LONG", "--output", "out"),
        ("prepare", "folder", "--images", ".", "--masks", ".", "--output", "LONG"),
        ("prepare", "shapes", "--output", "LONG"),
        ("check", "LONG"),
        ("check", ".", "--fix", "LONG"),
        ("train", "folder", "--data", "LONG", "--output", "out"),
        ("score", "LONG", "LONG"),
        ("compare", "LONG", "LONG"),
        ("info", "LONG"),
    ],
)
def test_paths_longer_than_a_system_takes(command: Command, arguments: tuple[str, ...]) -> None:
    ended = command(*(word.replace("LONG", 300 * "x") for word in arguments))
    assert 2 <= ended.code <= 12
    assert len(ended.err.splitlines()) == 1, ended.err
