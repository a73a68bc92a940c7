"""Selection of the compositing technique, by device or by setting."""

from __future__ import annotations

from collections.abc import Callable

from ge3d_jax.core.devices import is_target_here, runs_triton, target_platform
from ge3d_jax.core.errors import UserError, shown
from ge3d_jax.splatting.groups import GROUPS
from ge3d_jax.splatting.kernel_proof import is_proven
from ge3d_jax.splatting.lists import Technique
from ge3d_jax.splatting.segments import segments

AUTO = "auto"
XLA = "xla"
KERNEL = "kernel"


def _kernel() -> Technique:
    # Imported lazily, because not every build of JAX includes Triton.
    from ge3d_jax.splatting.kernel import kernel

    return kernel()


# For any device, so that a program can be compiled for another one and the techniques can be compared.
TECHNIQUES: dict[str, Callable[[], Technique]] = {
    KERNEL: _kernel,
    "groups": lambda: GROUPS,
    "segments": segments,
}
RASTERIZERS = (AUTO, XLA, *TECHNIQUES)


def check_rasterizer(name: str) -> None:
    """Check that a rasterizer with this name exists.

    Raises:
        UserError: it does not.
    """
    if name not in RASTERIZERS:
        raise UserError(f"The rasterizer {shown(name)} does not exist; use one of {', '.join(RASTERIZERS)}.")


def check_device(rasterizer: str) -> None:
    """Check that the devices in use support a rasterizer.

    Raises:
        UserError: they do not.
    """
    if rasterizer == KERNEL and not runs_triton():
        raise UserError(
            'The rasterizer "kernel" needs an NVIDIA GPU, Ampere or newer, but JAX finds none here; use '
            '"auto", which picks a rasterizer that the device supports.'
        )


def technique_of(rasterizer: str) -> Technique:
    """Return the compositing technique for the devices in use.

    Args:
        rasterizer: one of RASTERIZERS: "xla" is "groups" on CPUs and "segments" elsewhere; "auto" is "kernel"
            if it runs and has been verified on this device, else "xla".

    Raises:
        UserError: no rasterizer has this name.
    """
    check_rasterizer(rasterizer)
    if rasterizer == AUTO:
        # A kernel that is compiled for a remote GPU cannot be verified here.
        runs_kernel = is_target_here() and runs_triton()
        rasterizer = KERNEL if runs_kernel and is_proven(_kernel(), segments()) else XLA
    if rasterizer == XLA:
        rasterizer = "groups" if target_platform() == "cpu" else "segments"
    return TECHNIQUES[rasterizer]()
