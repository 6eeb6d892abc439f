"""Lists the GPU code inside a library: which GPUs run it as it is, which by its PTX.

    python scripts/cuda_code.py cuda_ops/_C_cuda.so [--require 80 90 --ptx 120]

It reads the containers that nvcc embeds (cuobjdump, which shows the same, does not come with pip's
compiler). With --require, exit code 8 says that machine code or PTX is missing.
"""

from __future__ import annotations

import argparse
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC = struct.pack("<I", 0xBA55ED50)
CONTAINER = struct.Struct("<4xHHQ")  # version, size of this header, size of all entries
ENTRY = struct.Struct("<H2xIQ12xI")  # kind, size of this header, size of the code, architecture
PTX, MACHINE_CODE = 1, 2


@dataclass(frozen=True)
class Code:
    """One piece of GPU code."""

    kind: int
    architecture: int  # compute capability without the dot
    size: int  # bytes, as stored (PTX is compressed)


def containers(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields where the entries of each container begin and end."""
    at = data.find(MAGIC)
    while at >= 0:
        if at + CONTAINER.size <= len(data):
            version, header, size = CONTAINER.unpack_from(data, at)
            begin, end = at + header, at + header + size
            if version == 1 and header == CONTAINER.size and end <= len(data):
                yield begin, end
        at = data.find(MAGIC, at + len(MAGIC))


def read_code(library: Path) -> list[Code]:
    """Returns all GPU code of a library, in the order of the file.

    Raises:
        ValueError: if a container is damaged or of an unknown kind.
    """
    data = library.read_bytes()
    found = []
    for at, end in containers(data):
        while at < end:
            kind, header, size, architecture = ENTRY.unpack_from(data, at)
            if kind not in (PTX, MACHINE_CODE) or header < ENTRY.size or at + header + size > end:
                raise ValueError(f"{library}: GPU code of an unknown kind at byte {at}")
            found.append(Code(kind, architecture, size))
            at += header + size
    return found


def missing(found: list[Code], machine_code: list[int], ptx: list[int]) -> list[str]:
    """Names what is wanted and not there."""
    there = {(code.kind, code.architecture) for code in found}
    lacking = [f"sm_{a}" for a in machine_code if (MACHINE_CODE, a) not in there]
    return lacking + [f"PTX of compute_{a}" for a in ptx if (PTX, a) not in there]


def table(found: list[Code]) -> str:
    """Formats a line for each kind and architecture."""
    lines = []
    for kind, name in ((MACHINE_CODE, "machine code sm"), (PTX, "PTX compute")):
        for architecture in sorted({code.architecture for code in found if code.kind == kind}):
            sizes = [c.size for c in found if (c.kind, c.architecture) == (kind, architecture)]
            pieces = f"{len(sizes)} pieces" if len(sizes) > 1 else "1 piece"
            lines.append(f"{name}_{architecture}: {sum(sizes) / 1024:.0f} KiB in {pieces}")
    return "\n".join(lines)


def main() -> int:
    """Prints the table; returns 8 if something required is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", type=Path)
    parser.add_argument("--require", type=int, nargs="+", default=[], metavar="SM")
    parser.add_argument("--ptx", type=int, nargs="+", default=[], metavar="SM")
    options = parser.parse_args()
    found = read_code(options.library)
    print(table(found))
    if lacking := missing(found, options.require, options.ptx):
        print(f"{options.library} lacks {', '.join(lacking)}", file=sys.stderr)
        return 8
    return 0


if __name__ == "__main__":
    sys.exit(main())
