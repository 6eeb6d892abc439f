"""Several processes that train or score one model, as `torchrun` starts them; usually there is one.

They compute what one process would compute: sums over the whole batch, gradients of that one loss,
pictures shared out and counted together. Rank 0 alone has a run folder, decides where a run goes
on, and writes; the others are told. No wait has a limit that honest work could exceed, see
`machine.meeting`.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from segdeform.errors import SegdeformError
from segdeform.machine.meeting import JOINING, Meeting, join, lost

# For an exchange of tensors, which all begin within one step's time; the heartbeat is the guard
# against lost processes.
EXCHANGE = timedelta(hours=1)

_SIOCGIFADDR = 0x8915  # linux/sockios.h: the address of an interface

_LOST = ("Connection closed", "Connection reset", "Timed out", "timed out", "NCCL error")


@dataclass(frozen=True)
class Processes:
    """This process among those that work together."""

    rank: int = 0
    size: int = 1
    place: int = 0  # among those of this machine
    meeting: Meeting | None = None  # None: alone

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    @property
    def first_here(self) -> bool:
        """Whether this process looks after its machine's own files, such as the data set."""
        return self.place == 0

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Returns the module whose backward pass sums the gradients over all processes."""
        if self.size == 1:
            return model
        # About the layout of depthwise weights, whose copies cost nothing next to a step.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        # Looking for unused parameters keeps gradients in the buckets of the first step. In others
        # the sum over three processes or more has other bits, and a resumed run would differ.
        wrapped = DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            find_unused_parameters=True,
        )
        wrapped.register_comm_hook(None, _sum)
        return wrapped

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Leaves the block when all processes are through theirs; a failure in one ends them all.

        Raises:
            PeerLostError: another process failed in its block, or is lost.
        """
        if self.meeting is None:
            yield
            return
        self.meeting.alone = True
        try:
            yield
        except BaseException as error:
            self.meeting.fail(_line(error))
            raise
        finally:
            self.meeting.alone = False
        self.meeting.votes(False)

    def anyone(self, flag: bool) -> bool:
        """Tells whether the flag is set in any process; all must ask.

        Raises:
            PeerLostError: a process failed or is lost.
        """
        return flag if self.meeting is None else self.meeting.votes(flag) > 0

    def share(self, value: Any) -> Any:
        """Returns rank 0's JSON value to every process; what the others give is not looked at.

        Raises:
            PeerLostError: a process failed or is lost.
        """
        return value if self.meeting is None else json.loads(self.meeting.share(json.dumps(value)))

    @torch.no_grad()
    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites tensors, as many and of the same shapes everywhere, with rank 0's bits."""
        if self.size == 1:
            return
        for tensor in tensors:
            flat = tensor.contiguous()  # in rows, whatever the layout of the network
            dist.broadcast(flat, src=0)
            tensor.copy_(flat)

    @torch.no_grad()
    def total(self, value: Tensor) -> Tensor:
        """Returns the sum of a tensor over all processes; no gradient passes."""
        if self.size == 1:
            return value.detach()
        value = value.detach().clone()
        dist.all_reduce(value)
        return value

    @torch.no_grad()
    def side_by_side(self, value: Tensor) -> Tensor:
        """Returns [..., P] tensors of all processes, of one shape, as [..., P * size] by rank."""
        if self.size == 1:
            return value.detach()
        value = value.detach().contiguous()
        parts = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(parts, value)
        return torch.cat(parts, -1)

    def gather(
        self,
        rows: NDArray[np.int64],  # [R, C]; R may differ between processes, C not
    ) -> NDArray[np.int64]:  # [sum of R, C], in the order of the ranks
        """Returns the rows of all processes, to every process; all must ask.

        Raises:
            PeerLostError: a process failed or is lost.
        """
        if self.meeting is None:
            return rows
        self.meeting.votes(False)  # has no limit, unlike what follows
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(rows)]))
        longest = max(int(length) for length in lengths)
        padded = torch.zeros(longest, rows.shape[1], dtype=torch.int64)
        padded[: len(rows)] = torch.from_numpy(rows)
        parts = [torch.zeros_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        kept = [part[: int(length)] for part, length in zip(parts, lengths, strict=True)]
        return torch.cat(kept).numpy()


ALONE = Processes()


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Joins the processes that torchrun's environment describes; alone without one.

    An error that leaves the block ends the others too, with its text in theirs.

    Raises:
        PeerLostError: another process does not come, failed, or is lost.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Processes()
        return
    rank = own_rank()
    if size > neighbours() and (interface := _interface_to_rank_0()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    with _lost_peers():
        limit = timedelta(seconds=JOINING)
        store, _, _ = next(iter(rendezvous("env://", rank, size, timeout=limit)))
        store = join(store, rank, size)
        meeting = Meeting(store, rank, size)
    try:
        with _lost_peers():
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            group = PrefixStore("group", store)
            dist.init_process_group(
                backend, store=group, rank=rank, world_size=size, timeout=EXCHANGE
            )
            place = int(os.environ.get("LOCAL_RANK", rank))
            yield Processes(rank, size, place, meeting)
            meeting.votes(False)  # none closes its connections while another needs them
    except BaseException as error:
        meeting.fail(_line(error))
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        meeting.leave()


def _sum(state, bucket):  # type: ignore[no-untyped-def]  # torch refuses annotations in quotes
    """Adds up gradients, where DistributedDataParallel by itself would average them."""
    exchange = dist.all_reduce(bucket.buffer(), async_op=True)
    assert exchange is not None  # every process is a member
    return exchange.get_future().then(lambda done: done.value()[0])


@contextmanager
def _lost_peers() -> Iterator[None]:
    """Tells a lost peer, met in the averaging of gradients, from other errors."""
    try:
        yield
    except dist.DistError as error:
        raise lost(error) from error
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _LOST):
            raise
        raise lost(error) from error


def own_rank() -> int:
    """Returns this process's number among all, from 0."""
    return int(os.environ.get("RANK", "0"))


def own_share() -> tuple[int, int]:
    """Returns this process's number among all, from 0, and how many there are."""
    return own_rank(), int(os.environ.get("WORLD_SIZE", "1"))


def neighbours() -> int:
    """Returns how many of the processes run on this machine, this one included."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def own_device(device: torch.device) -> torch.device:
    """Returns the GPU of this process: number LOCAL_RANK, unless another was asked for."""
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    return device


def _interface_to_rank_0() -> str | None:
    """Returns the network interface that leads to the other machines; None: not found.

    Left to itself, Gloo listens at the address of the machine's name, in Debian 127.0.1.1.
    """
    address = (os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0")))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            asked.connect(address)  # sends nothing
            own = socket.inet_aton(asked.getsockname()[0])
            for _, name in socket.if_nameindex():
                with suppress(OSError):  # an interface without an address
                    request = struct.pack("256s", name.encode()[:15])
                    if fcntl.ioctl(asked.fileno(), _SIOCGIFADDR, request)[20:24] == own:
                        return name
    except OSError:
        pass  # no IPv4: Gloo's own choice has to do
    return None


def _line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0][:1000]
    return text if isinstance(error, SegdeformError) else f"{type(error).__name__} {text}".strip()
