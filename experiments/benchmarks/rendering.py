"""Timing the rasterizer: one scene with various numbers of splats, image sizes and numbers of views.

The scene is a ball of radius 0.5 that fills most of the image. Its splats are uniformly distributed and
isotropic, with random colors and opacities and a scale ∝ N^(−1/3): as many along a ray as in a solid object.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from benchmarks.measure import Measurement, peak_bytes, time_calls, timed_compile
from ge3d_jax.core.devices import batch_mesh
from ge3d_jax.splatting.cameras import Camera, orbit_camera
from ge3d_jax.splatting.gaussians import Gaussians, make_gaussians
from ge3d_jax.splatting.rasterize import Rendered, grow_to_fit, render

FORWARD, BACKWARD = "forward", "forward + backward"
PASSES = (FORWARD, BACKWARD)
BALL_RADIUS = 0.5
# Neighbors then overlap as in a fitted object: their mean distance is two scales.
SCALE_FACTOR = 0.8
OPACITIES = (0.1, 0.9)
POLAR, DISTANCE, FIELD_OF_VIEW = 1.2, 2.5, 0.45
BACKGROUND = (1.0, 1.0, 1.0)
# Most (tile, splat) pairs of all views in a run: with gradients about eight gigabytes.
LARGEST_ENTRIES = 2**26
# The buffer is longer than needed by this factor, as one that grew by doubling is on average.
SPARE = 1.25


@dataclasses.dataclass(frozen=True)
class Case:
    """What one row times.

    Attributes:
        splats: number of splats.
        size: edge of the square images, pixels.
        views: number of views.
        work: one of PASSES.
    """

    splats: int
    size: int
    views: int
    work: str


def ball(count: int, seed: int = 0) -> Gaussians:
    """The scene: `count` isotropic splats in a ball around the origin."""
    random = np.random.default_rng(seed)
    directions = random.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    distances = BALL_RADIUS * random.uniform(size=(count, 1)) ** (1 / 3)
    return make_gaussians(
        jnp.asarray(directions * distances, jnp.float32),
        jnp.asarray(random.uniform(size=(count, 3)), jnp.float32),
        jnp.full(count, BALL_RADIUS * SCALE_FACTOR * count ** (-1 / 3), jnp.float32),
        jnp.asarray(random.uniform(*OPACITIES, size=count), jnp.float32),
        capacity=count,
    )


def cameras_around(views: int, size: int) -> Camera:
    """`views` cameras around the ball, with a leading axis."""

    def one(azimuth: jax.Array) -> Camera:
        return orbit_camera(azimuth=azimuth, polar=POLAR, radius=DISTANCE, fov=FIELD_OF_VIEW, size=size)

    return jax.vmap(one)(jnp.arange(views) * (2 * jnp.pi / views))


def _views(gaussians: Gaussians, cameras: Camera, capacity: int) -> Rendered:
    def one(camera: Camera) -> Rendered:
        return render(gaussians, camera, background=jnp.asarray(BACKGROUND), buffer_capacity=capacity)

    return jax.vmap(one)(cameras)


def _images(gaussians: Gaussians, cameras: Camera, capacity: int, mesh: Mesh) -> jax.Array:
    """Images (V, H, W, 3); each device of the mesh renders its part of the views."""
    if mesh.size == 1:
        return _views(gaussians, cameras, capacity).rgb
    views = PartitionSpec(*mesh.axis_names)
    return jax.shard_map(
        lambda gaussians, cameras: _views(gaussians, cameras, capacity).rgb,
        mesh=mesh,
        in_specs=(PartitionSpec(), views),
        out_specs=views,
        # The check does not support the rasterizer's custom gradient and loops.
        check_vma=False,
    )(gaussians, cameras)


def mean_square(images: jax.Array) -> jax.Array:
    """The loss whose gradient is timed."""
    return jnp.mean(images**2)


def needed_capacity(gaussians: Gaussians, cameras: Camera) -> int:
    """Length of the intersection buffer that the fullest of the views needs."""

    def draw(capacity: int) -> tuple[int, jax.Array]:
        rendered = jax.jit(_views, static_argnums=2)(gaussians, cameras, capacity)
        needed = jnp.max(rendered.intersections)
        return int(needed), needed

    return grow_to_fit(draw, gaussians.capacity, width=cameras.width, height=cameras.height)[0]


def program(work: str, capacity: int, mesh: Mesh) -> Callable[[Gaussians, Camera], Any]:
    """The function that is timed: images, or the loss and its gradient for every field of the splats."""
    if work == FORWARD:
        return lambda gaussians, cameras: _images(gaussians, cameras, capacity, mesh)
    return jax.value_and_grad(
        lambda gaussians, cameras: mean_square(_images(gaussians, cameras, capacity, mesh)), allow_int=True
    )


def row_name(case: Case) -> str:
    """A case in words, the same for us and for a peer."""
    views = f"{case.views} view{'s' if case.views > 1 else ''}"
    return f"{case.splats:,} splats, {case.size} px, {views}, {case.work}"


def _run(compiled: Callable[[Gaussians, Camera], Any], gaussians: Gaussians, cameras: Camera) -> None:
    jax.block_until_ready(compiled(gaussians, cameras))


def timed(call: Callable[[], Any], *, repetitions: int, warm_up: int) -> tuple[tuple[float, ...], float]:
    """Seconds of each repetition, and the mean CPU seconds of one.

    CPU seconds are more meaningful on a busy machine: other work hardly affects them.
    """
    time_calls(call, repetitions=0, warm_up=warm_up)
    begun = time.process_time()
    seconds = time_calls(call, repetitions=repetitions, warm_up=0)
    return seconds, (time.process_time() - begun) / repetitions


def measure(
    cases: Sequence[Case], *, repetitions: int, warm_up: int
) -> tuple[list[Measurement], list[int], list[float | None]]:
    """Time every case, with views sharded across the devices.

    Args:
        cases: what to time.
        repetitions: number of timed runs.
        warm_up: number of runs before those.

    Returns:
        One row per case, the buffer length that the fullest view needs, and CPU seconds per repetition.
    """
    rows: list[Measurement] = []
    entries: list[int] = []
    processor_seconds: list[float | None] = []
    for case in cases:
        gaussians, cameras = ball(case.splats), cameras_around(case.views, case.size)
        needed = needed_capacity(gaussians, cameras)
        entries.append(needed)
        if needed * case.views > LARGEST_ENTRIES:
            rows.append(Measurement(row_name(case), "ge3d_jax", note="not run: too much memory"))
            processor_seconds.append(None)
            continue
        mesh = batch_mesh(case.views)
        lowered = jax.jit(program(case.work, int(SPARE * needed), mesh)).lower(gaussians, cameras)
        compiled, compile_seconds = timed_compile(lowered)
        seconds, busy = timed(
            functools.partial(_run, compiled, gaussians, cameras), repetitions=repetitions, warm_up=warm_up
        )
        processor_seconds.append(busy)
        rows.append(
            Measurement(
                work=row_name(case),
                implementation="ge3d_jax",
                seconds=seconds,
                compile_seconds=compile_seconds,
                peak_bytes=peak_bytes(compiled),
            )
        )
    return rows, entries, processor_seconds
