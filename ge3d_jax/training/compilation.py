"""What the compiler says of an iteration before the first one: how long it took, how much memory it takes."""

import dataclasses

import jax

from ge3d_jax.core.devices import memory_in_use, memory_limit
from ge3d_jax.core.errors import UserError

_GIGABYTE = 1e9


class DoesNotFit(UserError):
    """An iteration takes more memory than the device has.

    Attributes:
        needed, limit: bytes.
    """

    def __init__(self, message: str, *, needed: int, limit: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.limit = limit


@dataclasses.dataclass(frozen=True)
class Compilation:
    """A compiled iteration. Memory in bytes on each device, as the compiler planned it.

    Attributes:
        seconds: from tracing to machine code, or from the cache of compiled code.
        arguments: the splats, their moments, and what is used of the model.
        outputs: what comes out and does not take an argument's place.
        temporaries: everything between.
        devices: how many share the work.
    """

    seconds: float
    arguments: int
    outputs: int
    temporaries: int
    devices: int

    @property
    def total(self) -> int:
        """All that one iteration needs on each device."""
        return self.arguments + self.outputs + self.temporaries

    def __str__(self) -> str:
        """One line for the person who waits."""
        if not self.total:
            return f"compiled in {self.seconds:.1f} s"
        each = f" on each of {self.devices} devices" if self.devices > 1 else ""
        return (
            f"compiled in {self.seconds:.1f} s; an iteration takes {self.total / _GIGABYTE:.2f} GB{each}: "
            f"{self.arguments / _GIGABYTE:.2f} for the model and the splats, "
            f"{self.outputs / _GIGABYTE:.2f} for results, {self.temporaries / _GIGABYTE:.2f} between"
        )


def compilation_of(program: jax.stages.Compiled, seconds: float, devices: int) -> Compilation:
    """Read the plan of a compiled program; memory is 0 where the compiler does not tell it."""
    plan = program.memory_analysis()
    if plan is None:
        return Compilation(seconds=seconds, arguments=0, outputs=0, temporaries=0, devices=devices)
    return Compilation(
        seconds=seconds,
        arguments=plan.argument_size_in_bytes,
        outputs=plan.output_size_in_bytes - plan.alias_size_in_bytes,
        temporaries=plan.temp_size_in_bytes,
        devices=devices,
    )


def check_memory(compilation: Compilation, device: jax.Device, remedies: list[str]) -> None:
    """Refuse an iteration that cannot run, before it is begun.

    Args:
        compilation: of the iteration.
        device: one of those it is to run on.
        remedies: settings that lower its memory, the strongest first.

    Raises:
        DoesNotFit: it needs more memory than the device has; names the settings that lower it.
    """
    held = max(compilation.arguments, memory_in_use(device))
    needed = held + compilation.outputs + compilation.temporaries
    if device.platform == "cpu":
        # All of them are parts of one processor, with one memory.
        needed *= compilation.devices
    limit = memory_limit(device)
    if limit is None or needed <= limit:
        return
    remedy = f"set {' and '.join(remedies)}" if remedies else "lower views or the size of the pictures"
    raise DoesNotFit(
        f"An iteration takes {needed / _GIGABYTE:.1f} GB of memory, but the device has "
        f"{limit / _GIGABYTE:.1f} GB to give; {remedy}.",
        needed=needed,
        limit=limit,
    )
