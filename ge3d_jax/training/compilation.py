"""The compiler's report on an iteration before it first runs: compile time and memory use."""

import dataclasses

import jax

from ge3d_jax.core.devices import memory_in_use, memory_limit
from ge3d_jax.core.errors import UserError

_GIGABYTE = 1e9


class DoesNotFit(UserError):
    """An iteration needs more memory than the device has.

    Attributes:
        needed, limit: bytes.
    """

    def __init__(self, message: str, *, needed: int, limit: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.limit = limit


@dataclasses.dataclass(frozen=True)
class Compilation:
    """A compiled iteration. Memory is in bytes per device, as planned by the compiler.

    Attributes:
        seconds: time from tracing to machine code, or to load it from the compilation cache.
        arguments: the splats, their moments, and the parts of the model in use.
        outputs: results that do not reuse an argument's memory.
        temporaries: all intermediate values.
        devices: number of devices that share the work.
    """

    seconds: float
    arguments: int
    outputs: int
    temporaries: int
    devices: int

    @property
    def total(self) -> int:
        """Total memory of one iteration on each device."""
        return self.arguments + self.outputs + self.temporaries

    def __str__(self) -> str:
        """Return a one-line summary for the user."""
        if not self.total:
            return f"compiled in {self.seconds:.1f} s"
        each = f" on each of {self.devices} devices" if self.devices > 1 else ""
        return (
            f"compiled in {self.seconds:.1f} s; an iteration takes {self.total / _GIGABYTE:.2f} GB{each}: "
            f"{self.arguments / _GIGABYTE:.2f} for the model and the splats, "
            f"{self.outputs / _GIGABYTE:.2f} for results, {self.temporaries / _GIGABYTE:.2f} between"
        )


def compilation_of(program: jax.stages.Compiled, seconds: float, devices: int) -> Compilation:
    """Read the memory plan of a compiled program; values are 0 if the compiler does not report them."""
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
    """Reject an iteration that would run out of memory, before it starts.

    Args:
        compilation: of the iteration.
        device: one of the devices that will run it.
        remedies: settings that lower its memory use, most effective first.

    Raises:
        DoesNotFit: it needs more memory than the device has; names the settings that lower it.
    """
    held = max(compilation.arguments, memory_in_use(device))
    needed = held + compilation.outputs + compilation.temporaries
    if device.platform == "cpu":
        # CPU devices are parts of one processor and share its memory.
        needed *= compilation.devices
    limit = memory_limit(device)
    if limit is None or needed <= limit:
        return
    remedy = f"set {' and '.join(remedies)}" if remedies else "lower views or the size of the pictures"
    raise DoesNotFit(
        f"An iteration takes {needed / _GIGABYTE:.1f} GB of memory, but the device has only "
        f"{limit / _GIGABYTE:.1f} GB available; {remedy}.",
        needed=needed,
        limit=limit,
    )
