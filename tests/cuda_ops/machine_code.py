"""Reads the machine code in the CUDA library with NVIDIA's cuobjdump, which comes with triton."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cuda_ops import build, library

LIBRARY = build.PACKAGE / "_C_cuda.so"


def cuobjdump() -> str | None:
    """Returns the program's path: triton's, or the one on PATH."""
    try:
        import triton
    except ModuleNotFoundError:
        return shutil.which("cuobjdump")
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(bundled) if bundled.exists() else shutil.which("cuobjdump")


@dataclass
class Kernel:
    """One kernel of one architecture, CUB's apart."""

    opcodes: Counter[str] = field(default_factory=Counter)  # without NOP
    registers: int = 0
    stack: int = 0  # bytes of a thread, where registers are spilled to

    def count(self, prefix: str) -> int:
        return sum(n for opcode, n in self.opcodes.items() if opcode.startswith(prefix))

    @property
    def instructions(self) -> int:
        return self.opcodes.total()


def require_library() -> None:
    """Skips, or fails where SEGDEFORM_CUDA=1, unless the library is that of these sources."""
    lacking = None
    if cuobjdump() is None:
        pytest.skip("cuobjdump is not installed (triton and CUDA toolkits have it)")
    if not LIBRARY.exists():
        lacking = "the CUDA half is not built"
    elif library.cuda_library.build.get("sources") != build.source_digest(build.cuda_sources()):
        lacking = f"the CUDA half is built from other sources; {library.BUILD_COMMAND}"
    if lacking and os.environ.get("SEGDEFORM_CUDA") == "1":
        pytest.fail(lacking)
    if lacking:
        pytest.skip(lacking)


def architectures() -> list[str]:
    """Lists those of the machine code, e.g. ["80", "90"]."""
    return list(library.cuda_library.build["architectures"])


def dump(option: str, architecture: str) -> str:
    command = [str(cuobjdump()), option, "-arch", f"sm_{architecture}", str(LIBRARY)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def resources(architecture: str) -> dict[str, Kernel]:
    """Returns registers and stack of each kernel, by mangled name."""
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", dump("-res-usage", architecture))
    return {name: Kernel(registers=int(registers), stack=int(stack))
            for name, registers, stack in found if "3cub" not in name}  # fmt: skip


def kernels(architecture: str) -> dict[str, Kernel]:
    """Returns each kernel with its instructions, by mangled name."""
    found = resources(architecture)
    instruction = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
    current: Kernel | None = None
    for line in dump("-sass", architecture).splitlines():
        if "Function : " in line:
            current = found.get(line.partition("Function : ")[2].strip())
            if current:  # two sources may hold the same kernel
                current.opcodes.clear()
        elif current and (match := instruction.match(line)) and match[1] != "NOP":
            current.opcodes[match[1]] += 1
    return found
