"""Measuring: a warm-up, many repetitions, the median; and the device's best rate."""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Edge of the square matrices whose product measures the device's rate: large enough to fill it, yet quick.
_MATRIX_SIZE = {"cpu": 2048}
_MATRIX_SIZE_ELSEWHERE = 8192
# Products per call: enough that the overhead of calling does not matter.
_PRODUCTS = {"cpu": 1}
_PRODUCTS_ELSEWHERE = 10
_RATE_REPETITIONS = 5


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One row of a table.

    Attributes:
        work: what was done, e.g. "UNet forward, batch 4".
        implementation: "ge3d_jax", "PyTorch eager" or "PyTorch compiled".
        seconds: of each repetition.
        flop: useful operations of one repetition, from `count_flop`.
        compile_seconds: time to compile; None if nothing is compiled.
        peak_bytes: memory of the compiled program, or PyTorch's peak allocation; None if unknown.
        xla_flop: XLA's own count of one repetition, loops counted once; None for other implementations.
        note: what the row excludes, or why there is no time.
    """

    work: str
    implementation: str
    seconds: tuple[float, ...] = ()
    flop: int | None = None
    compile_seconds: float | None = None
    peak_bytes: int | None = None
    xla_flop: float | None = None
    note: str = ""

    @property
    def median(self) -> float | None:
        """Median seconds of a repetition, None if nothing ran."""
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def flop_per_second(self) -> float | None:
        """Useful operations per second at the median."""
        return self.flop / self.median if self.flop and self.median else None


def time_calls(call: Callable[[], Any], *, repetitions: int, warm_up: int) -> tuple[float, ...]:
    """Seconds of each of `repetitions` calls, after `warm_up` uncounted ones; `call` must block."""
    for _ in range(warm_up):
        call()
    seconds = []
    for _ in range(repetitions):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return tuple(seconds)


def timed_compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, float]:
    """Compile, and return the seconds that it took; scripts disable the compilation cache beforehand."""
    begun = time.perf_counter()
    compiled = lowered.compile()
    return compiled, time.perf_counter() - begun


def peak_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Memory of a compiled program on one device: arguments, results and temporaries; aliases count once."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def xla_flop(compiled: jax.stages.Compiled) -> float | None:
    """XLA's count of a program's operations, None if the backend gives none."""
    analysis = compiled.cost_analysis()
    return float(analysis["flops"]) if analysis and "flops" in analysis else None


def measure_jax(
    work: str,
    function: Callable[..., Any],
    *arguments: Any,
    flop: int,
    repetitions: int,
    warm_up: int,
) -> Measurement:
    """Compile `function` and time it on `arguments`, which keep their shardings."""
    compiled, seconds = timed_compile(jax.jit(function).lower(*arguments))
    times = time_calls(
        lambda: jax.block_until_ready(compiled(*arguments)), repetitions=repetitions, warm_up=warm_up
    )
    return Measurement(
        work=work,
        implementation="ge3d_jax",
        seconds=times,
        flop=flop,
        compile_seconds=seconds,
        peak_bytes=peak_bytes(compiled),
        xla_flop=xla_flop(compiled),
    )


def matmul_rate(dtype: jnp.dtype) -> float:
    """Operations per second of large square products in `dtype`, with which the networks are compared.

    float32 means float32, as in the networks, not TensorFloat-32. All devices work at the same time, as on a
    batch.
    """
    platform = jax.default_backend()
    size = _MATRIX_SIZE.get(platform, _MATRIX_SIZE_ELSEWHERE)
    products = _PRODUCTS.get(platform, _PRODUCTS_ELSEWHERE)

    precision = "highest" if dtype == jnp.float32 else "default"

    @jax.jit
    def multiply(left: jax.Array, right: jax.Array) -> jax.Array:
        for _ in range(products):
            left = jnp.matmul(left, right, precision=precision)
        return left

    devices = jax.devices()
    pairs = [
        tuple(
            jax.device_put(jax.random.normal(jax.random.key(seed), (size, size), dtype) / size**0.5, device)
            for seed in (0, 1)
        )
        for device in devices
    ]
    seconds = time_calls(
        lambda: jax.block_until_ready([multiply(*pair) for pair in pairs]),
        repetitions=_RATE_REPETITIONS,
        warm_up=2,
    )
    # The best of the runs is what the device can do.
    return len(devices) * products * 2 * size**3 / min(seconds)


def device_name() -> str:
    """The device in words: a GPU's name, or the number of CPU cores."""
    device = jax.devices()[0]
    return f"{os.cpu_count()}-core CPU" if device.platform == "cpu" else device.device_kind
