"""Which technique composites: by the device, or as a setting says."""

from __future__ import annotations

from collections.abc import Callable

import jax

from ge3d_jax.core.errors import UserError
from ge3d_jax.splatting.groups import GROUPS
from ge3d_jax.splatting.lists import Technique
from ge3d_jax.splatting.segments import segments

AUTO = "auto"
XLA = "xla"
# Whatever the device; so that a program for another one can be compiled, and each compared with the others.
TECHNIQUES: dict[str, Callable[[], Technique]] = {"groups": lambda: GROUPS, "segments": segments}
RASTERIZERS = (AUTO, XLA, *TECHNIQUES)


def check_rasterizer(name: str) -> None:
    """Check that there is a rasterizer of that name.

    Raises:
        UserError: there is none.
    """
    if name not in RASTERIZERS:
        raise UserError(f"The rasterizer {name!r} does not exist; use one of {', '.join(RASTERIZERS)}.")


def technique_of(rasterizer: str) -> Technique:
    """How to composite on the devices in use.

    Args:
        rasterizer: one of RASTERIZERS: "xla" is "groups" on a processor and "segments" elsewhere.

    Raises:
        UserError: there is none of that name.
    """
    check_rasterizer(rasterizer)
    if rasterizer in (AUTO, XLA):
        rasterizer = "groups" if jax.local_devices()[0].platform == "cpu" else "segments"
    return TECHNIQUES[rasterizer]()
