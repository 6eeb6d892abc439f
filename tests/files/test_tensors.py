"""Others' .pth files: what is read of them, and what no file can do."""

from __future__ import annotations

import io
import os
import pickle
import random
import resource
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segdeform.errors import ModelError, ResourceError
from segdeform.files import tensors as tensors_module
from segdeform.files.tensors import plain_tensors, read_pickled, read_tensors, write_tensors


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        plain_tensors(read_pickled(path), path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.parametrize("zipped", [True, False])
def test_state_dicts_of_both_formats_are_read(tmp_path: Path, zipped: bool) -> None:
    state = nn.Conv2d(3, 5, 3).state_dict()
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    found = plain_tensors(read_pickled(tmp_path / "w.pth"), tmp_path / "w.pth")
    assert isinstance(state, OrderedDict) and type(found) is dict
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(3, 4).to_sparse(),
        lambda: torch.empty(2, device="meta"),
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        lambda: [torch.ones(2)],
        lambda: "text",
    ],
    ids=["sparse", "meta", "quantized", "list", "text"],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_what_is_no_tensor_of_this_memory_is_refused(tmp_path: Path, make: Any) -> None:
    torch.save({"w": make()}, tmp_path / "w.pth")
    assert "not a plain state dict" in refused(tmp_path / "w.pth")


def test_tensors_that_claim_more_than_the_file_holds_are_refused(tmp_path: Path) -> None:
    """A stride of 0 makes a terabyte of four bytes."""
    torch.save({"w": torch.zeros(1).expand(2**38)}, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").stat().st_size < 10_000
    assert f"claim {2**40} bytes" in refused(tmp_path / "w.pth")


def test_packed_archives_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(10**6)}, buffer)
    with (
        zipfile.ZipFile(buffer) as plain,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    assert (tmp_path / "w.pth").stat().st_size < 100_000
    assert "would unpack to 40" in refused(tmp_path / "w.pth")


def test_too_large_files_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors_module, "PICKLED_BYTES", 500)
    torch.save({"w": torch.zeros(500)}, tmp_path / "w.pth")
    assert "at most 500 are opened" in refused(tmp_path / "w.pth")


class Runs:
    """Is unpickled by calling `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("allowed", [False, True])
def test_nothing_in_a_file_is_run(tmp_path: Path, zipped: bool, allowed: bool) -> None:
    """Neither directly nor through `getattr`, which stands among the names that are left out."""
    mark = tmp_path / "executed"
    call = Runs(Path.touch, mark) if not allowed else Runs(getattr, Path(mark), "touch")
    value = {"w": torch.ones(2), "x": call, "y": Runs(eval, f"open({str(mark)!r}, 'w')")}
    torch.save(value, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "w.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(value["y"], protocol=2))
    refused(tmp_path / "bare.pth")
    assert not mark.exists()


def damaged(whole: bytes, generator: random.Random) -> Iterator[bytes]:
    """Yields a file with every byte of its end changed, and with some changed, cut or repeated."""
    for place in range(max(0, len(whole) - 130), len(whole)):
        for value in (1, 255):
            yield whole[:place] + bytes([value]) + whole[place + 1 :]
    for _ in range(200):
        content = bytearray(whole)
        for _ in range(generator.choice((1, 1, 4))):
            content[generator.randrange(len(content))] = generator.randrange(256)
        begin = generator.randrange(len(content))
        if generator.random() < 0.2:
            content = content[:begin]
        elif generator.random() < 0.2:
            content[begin:begin] = content[: generator.randrange(40)]
        yield bytes(content)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("zipped", [True, False])
def test_damage_anywhere_is_a_clean_refusal(tmp_path: Path, zipped: bool) -> None:
    """What can still be read is a state dict; anything else is a ModelError of one line."""
    path = tmp_path / "w.pth"
    state = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    refusals = 0
    for content in damaged(path.read_bytes(), random.Random(7)):
        path.write_bytes(content)
        try:
            plain_tensors(read_pickled(path), path)
        except ModelError as error:
            refusals += 1
            assert "\n" not in str(error)
    assert refusals > 100


@pytest.mark.parametrize(
    ("handles", "read", "name"),
    [
        (0, read_tensors, "a.safetensors"),
        (1, read_tensors, "a.safetensors"),  # enough for safetensors, none for torch
        (0, read_pickled, "a.pth"),
    ],
)
def test_file_handles_that_end_are_no_damage(
    tmp_path: Path, handles: int, read: Any, name: str
) -> None:
    path = tmp_path / name
    write_tensors(path, {"a": torch.zeros(3)})
    if name == "a.pth":
        torch.save({"a": torch.zeros(3)}, path)
    read(path)
    os.close(free := os.open(os.devnull, os.O_RDONLY))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + handles, before[1]))
    try:
        with pytest.raises(ResourceError, match=f"{name}: cannot be read: Too many open files"):
            read(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert read(path)["a"].shape == (3,)
