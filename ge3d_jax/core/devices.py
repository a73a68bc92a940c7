"""The devices JAX runs on: batch sharding, device memory, and compute precision.

The devices are one or more GPUs, or a CPU split into two halves. In a multi-process run every process has its
own devices. Arrays span the devices of all processes when the processes share the views of one object, and
otherwise those of a single process.

XLA leaves much of a second CPU core idle within one program. Two CPU devices, each with half of the batch,
keep it busy: on two cores a UNet pass over 16 latents takes 0.55 of the time, a training step 0.6.
"""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ge3d_jax.core.errors import UserError, shown

PRECISIONS = ("auto", "float32", "bfloat16")

# Mesh axes: the batch (e.g. the views of one iteration), and the seeds that are optimized in lockstep.
BATCH_AXIS = "batch"
SEEDS_AXIS = "seeds"
# More CPU devices gave no measurable speedup.
_LARGEST_CPU_COUNT = 2
# Largest fraction of the machine's memory to spend on copies of a model.
_LARGEST_SHARE_OF_COPIES = 0.2
# Compute capabilities: the first with bfloat16, cuDNN's flash attention and Triton; and the H100's.
AMPERE, HOPPER = (8, 0), (9, 0)


def use_processor_cores() -> None:
    """Expose a CPU with at least two cores to JAX as two devices; call this before JAX is first used."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jax.config.update("jax_num_cpu_devices", min(_LARGEST_CPU_COUNT, cores))


def memory_limit(device: jax.Device) -> int | None:
    """Bytes that JAX may use on a device; for a CPU, all of the machine's memory. None if unknown."""
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    return math.prod(map(os.sysconf, names)) if hasattr(os, "sysconf") else None


def memory_in_use(device: jax.Device) -> int:
    """Bytes of device memory currently in use by arrays; 0 if the device does not report it, as on CPUs."""
    return (device.memory_stats() or {}).get("bytes_in_use", 0)


def _largest_share(size: int, devices: int) -> int:
    """The largest number up to `devices` that divides `size`."""
    return max(number for number in range(1, devices + 1) if size % number == 0)


def batch_mesh(size: int, *, seeds: int = 1, copied: Any = None) -> Mesh:
    """A mesh over the largest number of devices that divides a batch of `size` evenly, possibly one.

    Args:
        size: number of elements in the batch.
        seeds: number of batches computed at a time. Devices are assigned to seeds first, because seeds do
            not communicate.
        copied: pytree of arrays that will be replicated on every device. CPU devices share one memory, so
            only one is used if the copies would take much of it.

    Returns:
        A mesh with the axis BATCH_AXIS, preceded by SEEDS_AXIS if there are several seeds.
    """
    devices = jax.local_devices()
    limit = memory_limit(devices[0])
    if devices[0].platform == "cpu" and limit is not None:
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(copied))
        devices = devices if len(devices) * held <= _LARGEST_SHARE_OF_COPIES * limit else devices[:1]
    if seeds == 1:
        return Mesh(np.asarray(devices[: _largest_share(size, len(devices))]), (BATCH_AXIS,))
    rows = _largest_share(seeds, len(devices))
    columns = _largest_share(size, len(devices) // rows)
    return Mesh(np.asarray(devices[: rows * columns]).reshape(rows, columns), (SEEDS_AXIS, BATCH_AXIS))


def mesh_of_all_processes(size: int) -> Mesh:
    """A mesh over the same number of devices from every process that divides a batch evenly.

    Args:
        size: number of elements in the batch.

    Returns:
        A mesh with the axis BATCH_AXIS.

    Raises:
        UserError: the batch cannot be divided among the processes.
    """
    processes = jax.process_count()
    if size % processes:
        raise UserError(
            f"The views of one pass through the networks make {size} parts, which cannot be divided among "
            f"{processes} processes; set views to a multiple, or start a different number of processes."
        )
    of_each = [jax.local_devices(process_index=index) for index in range(processes)]
    count = _largest_share(size // processes, min(map(len, of_each)))
    return Mesh(np.asarray([devices[:count] for devices in of_each]).ravel(), (BATCH_AXIS,))


def place(tree: Any, mesh: Mesh) -> Any:
    """Replicate arrays on every device of the mesh that belongs to this process.

    On a mesh that spans several processes, every process must pass the same arrays: nothing is sent.
    """
    if not mesh.is_multi_process:
        return jax.device_put(tree, replicated(mesh))

    def placed(leaf: Any) -> jax.Array:
        copies = [jax.device_put(leaf, device) for device in mesh.local_devices]
        return jax.make_array_from_single_device_arrays(copies[0].shape, replicated(mesh), copies)

    return jax.tree.map(placed, tree)


def sharded(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: the leading axis is split evenly across the devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays that every device needs in full: one copy per device."""
    return NamedSharding(mesh, PartitionSpec())


def first_copy(tree: Any) -> Any:
    """Replace replicated arrays by their copy on the first device; leave everything else unchanged."""
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)


@dataclasses.dataclass(frozen=True)
class Target:
    """A type of device that programs can be compiled for without the device being present.

    Attributes:
        platform: JAX's name for it, e.g. "gpu".
        capability: compute capability of an NVIDIA GPU, e.g. (9, 0); None for other devices.
    """

    platform: str
    capability: tuple[int, int] | None


_TARGET: ContextVar[Target | None] = ContextVar("target", default=None)


@contextlib.contextmanager
def compiling_for(target: Target) -> Iterator[None]:
    """Trace functions within the block for a different device than the one JAX runs on.

    JAX is unaware of the target: a function already traced outside the block is not traced again.
    """
    token = _TARGET.set(target)
    try:
        yield
    finally:
        _TARGET.reset(token)


def target_platform() -> str:
    """The platform to trace for: JAX's default, or the one set by `compiling_for`."""
    target = _TARGET.get()
    return jax.default_backend() if target is None else target.platform


def is_target_here() -> bool:
    """Whether traced functions will run on this machine's own devices."""
    return _TARGET.get() is None


def _compute_capability() -> tuple[int, int] | None:
    """The compute capability if the first device is an NVIDIA GPU, e.g. (8, 0) for Ampere; None otherwise."""
    target = _TARGET.get()
    if target is not None:
        return target.capability
    found = re.fullmatch(r"(\d+)\.(\d+)", getattr(jax.local_devices()[0], "compute_capability", ""))
    return (int(found[1]), int(found[2])) if found else None


def is_nvidia_since(generation: tuple[int, int]) -> bool:
    """Whether JAX runs on an NVIDIA GPU of this compute capability or a newer one."""
    return (_compute_capability() or (0, 0)) >= generation


def has_flash_attention() -> bool:
    """Whether JAX runs on a GPU that cuDNN's flash attention supports: NVIDIA Ampere or newer."""
    return is_nvidia_since(AMPERE)


def runs_triton() -> bool:
    """Whether JAX runs on a GPU that Triton compiles for: NVIDIA Ampere or newer."""
    return is_nvidia_since(AMPERE)


def computes_bfloat16() -> bool:
    """Whether bfloat16 pays off on this device: true for all accelerators except GPUs older than Ampere."""
    if target_platform() == "cpu":
        return False
    capability = _compute_capability()
    return capability is None or capability >= AMPERE


def compute_dtype(precision: str) -> jnp.dtype:
    """The dtype for one of PRECISIONS; "auto" depends on the device.

    float16 is not offered because attention in Stable Diffusion 2.1 overflows in it.

    Raises:
        UserError: `precision` is not one of PRECISIONS.
    """
    if precision not in PRECISIONS:
        raise UserError(
            f"The precision {shown(precision)} does not exist; choose one of {', '.join(PRECISIONS)}."
        )
    if precision == "auto":
        precision = "bfloat16" if computes_bfloat16() else "float32"
    return jnp.dtype(precision)
