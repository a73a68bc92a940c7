"""Which technique composites: by the device, or as a setting says."""

from __future__ import annotations

from collections.abc import Callable

from ge3d_jax.core.devices import is_target_here, runs_triton, target_platform
from ge3d_jax.core.errors import UserError
from ge3d_jax.splatting.groups import GROUPS
from ge3d_jax.splatting.kernel_proof import is_proven
from ge3d_jax.splatting.lists import Technique
from ge3d_jax.splatting.segments import segments

AUTO = "auto"
XLA = "xla"
KERNEL = "kernel"


def _kernel() -> Technique:
    # Imported where it is asked for: not every build of JAX has Triton.
    from ge3d_jax.splatting.kernel import kernel

    return kernel()


# Whatever the device; so that a program for another one can be compiled, and each compared with the others.
TECHNIQUES: dict[str, Callable[[], Technique]] = {
    KERNEL: _kernel,
    "groups": lambda: GROUPS,
    "segments": segments,
}
RASTERIZERS = (AUTO, XLA, *TECHNIQUES)


def check_rasterizer(name: str) -> None:
    """Check that there is a rasterizer of that name.

    Raises:
        UserError: there is none.
    """
    if name not in RASTERIZERS:
        raise UserError(f"The rasterizer {name!r} does not exist; use one of {', '.join(RASTERIZERS)}.")


def check_device(rasterizer: str) -> None:
    """Check that the devices in use run a rasterizer.

    Raises:
        UserError: they do not.
    """
    if rasterizer == KERNEL and not runs_triton():
        raise UserError(
            'The rasterizer "kernel" needs an NVIDIA GPU, Ampere or newer, and JAX finds none here; use '
            '"auto", which takes what there is.'
        )


def technique_of(rasterizer: str) -> Technique:
    """How to composite on the devices in use.

    Args:
        rasterizer: one of RASTERIZERS: "xla" is "groups" on a processor and "segments" elsewhere; "auto" is
            "kernel" where it runs and has proved itself, else "xla".

    Raises:
        UserError: there is none of that name.
    """
    check_rasterizer(rasterizer)
    if rasterizer == AUTO:
        # What is compiled for a card that is elsewhere cannot prove itself here.
        runs_kernel = is_target_here() and runs_triton()
        rasterizer = KERNEL if runs_kernel and is_proven(_kernel(), segments()) else XLA
    if rasterizer == XLA:
        rasterizer = "groups" if target_platform() == "cpu" else "segments"
    return TECHNIQUES[rasterizer]()
