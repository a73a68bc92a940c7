"""Registers, shared memory and spills of our own kernels, as NVIDIA's assembler reports them."""

import dataclasses
import importlib.util
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from gpu_plan.costs import OUR_KERNELS
from gpu_plan.program import Program

_ENTRY = re.compile(r"\.entry ([\w$.]+)\(")
_TARGET = re.compile(r"^\.target (sm_\w+)", re.MULTILINE)
_FUNCTION = re.compile(r"Compiling entry function '([^']+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What a kernel takes of a core.

    Attributes:
        name: as the program calls it.
        registers: of each thread.
        shared: bytes of shared memory known to the assembler; what a launch asks for comes on top.
        spilled: bytes of registers that are kept in memory instead, stores and loads.
    """

    name: str
    registers: int
    shared: int
    spilled: int


def our_kernels(program: Program) -> set[str]:
    """Names of the kernels in a program that are ours."""
    return {
        instruction.attribute(r'\bname = "([^"]+)"') or instruction.name
        for instructions in program.computations.values()
        for instruction in instructions
        if instruction.target in OUR_KERNELS
    }


def parse_assembler(text: str) -> list[Kernel]:
    """Read what `ptxas -v` writes."""
    kernels = []
    for part in re.split(r"(?=Compiling entry function)", text):
        name, used = _FUNCTION.search(part), _USED.search(part)
        if name is None or used is None:
            continue
        spills, shared = _SPILLS.search(part), _SHARED.search(part)
        kernels.append(
            Kernel(
                name=name[1],
                registers=int(used[1]),
                shared=int(shared[1]) if shared else 0,
                spilled=sum(map(int, spills.groups())) if spills else 0,
            )
        )
    return kernels


def _assembler() -> Path:
    """Where the CUDA packages keep `ptxas`."""
    found = importlib.util.find_spec("nvidia")
    places = [Path(place) for place in (found.submodule_search_locations or [])] if found else []
    return next(path for place in places for path in sorted(place.glob("*/bin/ptxas")))


def assembled(folder: Path, names: Iterable[str]) -> list[Kernel]:
    """What the kernels of these names take, out of the assembler code that XLA left in a folder."""
    wanted, kernels = set(names), []
    for path in sorted(folder.glob("*.ptx")):
        code = path.read_text(encoding="utf-8")
        target = _TARGET.search(code)
        if target is None or wanted.isdisjoint(_ENTRY.findall(code)):
            continue
        command = [str(_assembler()), "-v", f"--gpu-name={target[1]}", "--output-file=/dev/null", str(path)]
        told = subprocess.run(command, capture_output=True, text=True, check=True)
        kernels += [kernel for kernel in parse_assembler(told.stderr) if kernel.name in wanted]
    return kernels
