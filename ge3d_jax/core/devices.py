"""What JAX runs on: a batch divided among devices, the memory there is, the type to compute in.

Devices are several GPUs, or two halves of a laptop's processor.

XLA leaves much of a second processor core idle inside one program. Two CPU devices, each with half of the
batch, fill it: on two cores the UNet's pass over 16 latents takes 0.55 of the time, a training step 0.6.
"""

import math
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ge3d_jax.core.errors import UserError

PRECISIONS = ("auto", "float32", "bfloat16")

_AXIS = "batch"
# More were not measured to help.
_LARGEST_CPU_COUNT = 2
# Of a machine's memory, for copies of a model.
_LARGEST_SHARE_OF_COPIES = 0.2
# The first generation of NVIDIA GPUs with bfloat16 and with cuDNN's flash attention.
_AMPERE = (8, 0)


def use_processor_cores() -> None:
    """Let JAX see the processor as two devices where it has two cores; call before JAX is first used."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jax.config.update("jax_num_cpu_devices", min(_LARGEST_CPU_COUNT, cores))


def memory_limit(device: jax.Device) -> int | None:
    """Bytes that JAX may use on a device; for a processor all of the machine's memory. None if not known."""
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    return math.prod(map(os.sysconf, names)) if hasattr(os, "sysconf") else None


def memory_in_use(device: jax.Device) -> int:
    """Bytes of a device that arrays hold now; 0 where it does not say, as processors do not."""
    return (device.memory_stats() or {}).get("bytes_in_use", 0)


def batch_mesh(size: int, *, copied: Any = None) -> Mesh:
    """A mesh over as many devices as divide a batch of `size` evenly, be it one.

    Args:
        copied: arrays that every device is to have a copy of. The parts of a processor share one memory: they
            are not used where the copies would take much of it.
    """
    devices = jax.devices()
    limit = memory_limit(devices[0])
    if devices[0].platform == "cpu" and limit is not None:
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(copied))
        devices = devices if len(devices) * held <= _LARGEST_SHARE_OF_COPIES * limit else devices[:1]
    count = max(number for number in range(1, len(devices) + 1) if size % number == 0)
    return Mesh(np.asarray(devices[:count]), (_AXIS,))


def divided(mesh: Mesh) -> NamedSharding:
    """Placement of a batch: an equal part of the leading axis on each device."""
    return NamedSharding(mesh, PartitionSpec(_AXIS))


def everywhere(mesh: Mesh) -> NamedSharding:
    """Placement of what every device needs: a copy on each."""
    return NamedSharding(mesh, PartitionSpec())


def first_copy(tree: Any) -> Any:
    """Arrays that lie on several devices as copies, from the first of them; others as they are."""
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)


def _compute_capability() -> tuple[int, int] | None:
    """Generation of the first device where it is an NVIDIA GPU, (8, 0) being Ampere's first; else None."""
    found = re.fullmatch(r"(\d+)\.(\d+)", getattr(jax.devices()[0], "compute_capability", ""))
    return (int(found[1]), int(found[2])) if found else None


def has_flash_attention() -> bool:
    """Whether JAX runs on a GPU that cuDNN's flash attention supports: NVIDIA's Ampere and newer."""
    return (_compute_capability() or (0, 0)) >= _AMPERE


def computes_bfloat16() -> bool:
    """Whether half precision pays on what JAX runs on: on all accelerators but GPUs older than Ampere."""
    if jax.default_backend() == "cpu":
        return False
    capability = _compute_capability()
    return capability is None or capability >= _AMPERE


def compute_dtype(precision: str) -> jnp.dtype:
    """The type for one of PRECISIONS; "auto" asks what JAX runs on.

    float16 is not offered: attention of Stable Diffusion 2.1 overflows in it.

    Raises:
        UserError: another name.
    """
    if precision not in PRECISIONS:
        raise UserError(f"The type {precision!r} does not exist; choose one of {', '.join(PRECISIONS)}.")
    if precision == "auto":
        precision = "bfloat16" if computes_bfloat16() else "float32"
    return jnp.dtype(precision)
