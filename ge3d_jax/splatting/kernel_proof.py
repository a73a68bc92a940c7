"""Verification of the compositing kernel on the GPU in use, once, before it replaces XLA.

The kernel and the XLA technique both render a small scene, forward and backward. The verdict is stored next
to the compilation cache, for this GPU and these software versions. If the kernel is wrong, slower, or does
not compile, XLA is used instead.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.caching import cache_folder
from ge3d_jax.core.files import atomic_path
from ge3d_jax.splatting.cameras import Camera, orbit_camera
from ge3d_jax.splatting.gaussians import Gaussians, make_gaussians
from ge3d_jax.splatting.lists import Technique

# Largest allowed relative difference of an image or of a field's gradient, ‖a − b‖ / ‖b‖.
_TOLERANCE = 1e-4
# Two views of this scene are enough work that launch overhead does not dominate the timing.
_SPLATS, _SIZE = 20_000, 256
_REPETITIONS = 5

Program = Callable[[], Any]
_Value = TypeVar("_Value")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of a verification.

    Attributes:
        is_trusted: whether the kernel may be used.
        finding: the finding, as the rest of a sentence that begins with "The kernel".
    """

    is_trusted: bool
    finding: str


def _scene(count: int, size: int) -> tuple[Gaussians, Camera]:
    """Create splats of various shapes in a ball, some hidden by others, and two cameras."""
    random = np.random.default_rng(0)
    splats = make_gaussians(
        jnp.asarray(0.2 * random.normal(size=(count, 3)), jnp.float32),
        jnp.asarray(random.uniform(size=(count, 3)), jnp.float32),
        jnp.asarray(count ** (-1 / 3) * random.uniform(0.05, 0.5, size=(count, 3)), jnp.float32),
        jnp.asarray(random.uniform(0.05, 0.99, size=count), jnp.float32),
        capacity=count,
    )
    turned = jnp.asarray(random.normal(size=(count, 4)), jnp.float32)
    cameras = [
        orbit_camera(azimuth=azimuth, polar=1.2, radius=2.0, fov=0.6, size=(size, size - 8))
        for azimuth in (0.3, 2.0)
    ]
    return dataclasses.replace(splats, quaternions=turned), jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *cameras
    )


def _program(technique: Technique, count: int, size: int) -> Program:
    """Compile the scene's forward and backward rendering: images and gradients of the splats' fields."""
    # Imported here to avoid a cycle: the renderer's choice of technique depends on this module.
    from ge3d_jax.splatting.rasterize import render

    splats, cameras = _scene(count, size)

    def loss(splats: Gaussians) -> tuple[jax.Array, Any]:
        def one(camera: Camera) -> tuple[jax.Array, ...]:
            image = render(
                splats,
                camera,
                background=jnp.array([0.2, 0.5, 0.9]),
                buffer_capacity=16 * count,
                rasterizer=technique,
            )
            return image.rgb, image.alpha, image.depth

        images = jax.vmap(one)(cameras)
        return sum((jnp.sum(values**2) for values in images), start=jnp.zeros(())), images

    def step(splats: Gaussians) -> Any:
        gradients, images = jax.grad(loss, has_aux=True, allow_int=True)(splats)
        return images, dataclasses.replace(gradients, mask=None)

    compiled = jax.jit(step).lower(splats).compile()
    return lambda: jax.block_until_ready(compiled(splats))


def _seconds(run: Program) -> float:
    """Return the time of the fastest of several runs, seconds."""
    times = []
    for _ in range(_REPETITIONS):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return min(times)


def _difference(values: Any, expected: Any) -> float:
    """Return the largest relative difference between two trees' leaves; not finite if a value is not."""
    differences = [
        float(np.linalg.norm(value - other)) / max(float(np.linalg.norm(other)), _TOLERANCE)
        for value, other in zip(jax.tree.leaves(values), jax.tree.leaves(expected), strict=True)
    ]
    return float(np.max(differences))


def judge(
    build: Callable[[], Program], trusted: Program, *, seconds: Callable[[Program], float] = _seconds
) -> Verdict:
    """Compare a program with a trusted one.

    Args:
        build: compiles the program; may raise.
        trusted: returns the same tree of arrays with the correct values.
        seconds: measures a program's run time.
    """
    expected = trusted()
    try:
        run = build()
        values = run()
    except Exception as error:  # Whatever a compiler or a driver raises, XLA works without the kernel.
        (reason, *_) = str(error).strip().splitlines() or [type(error).__name__]
        return Verdict(False, f"does not run ({reason})")
    difference = _difference(values, expected)
    if not difference <= _TOLERANCE:
        return Verdict(False, f"gives results that differ by {difference:.0e}")
    ours, theirs = seconds(run), seconds(trusted)
    if ours >= theirs:
        return Verdict(False, f"is slower, {1e3 * ours:.2f} instead of {1e3 * theirs:.2f} ms")
    return Verdict(
        True, f"equals XLA's results to {difference:.0e} and takes {1e3 * ours:.2f} for {1e3 * theirs:.2f} ms"
    )


def prove(candidate: Technique, trusted: Technique, *, count: int = _SPLATS, size: int = _SIZE) -> Verdict:
    """Compare a technique with a trusted one, on the device in use.

    Args:
        candidate: the technique to verify.
        trusted: the technique to compare with.
        count: number of splats in the scene.
        size: width of its images, pixels.
    """
    return judge(lambda: _program(candidate, count, size), _program(trusted, count, size))


def remembered(file: Path, of: dict[str, str], find: Callable[[], Verdict]) -> tuple[Verdict, bool]:
    """Load a verdict from a file, or else obtain a new one and store it there.

    Args:
        file: path of the stored verdict; an unreadable file is replaced.
        of: the circumstances for which the verdict holds: GPU and versions.
        find: obtains a new verdict.

    Returns:
        The verdict, and whether it is new.
    """
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["of"] == of:
            return Verdict(is_trusted=bool(kept["is_trusted"]), finding=str(kept["finding"])), False
    except (OSError, ValueError, KeyError, TypeError):
        pass
    verdict = find()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps({"of": of, **dataclasses.asdict(verdict)}), encoding="utf-8")
    except OSError as error:
        warnings.warn(f"The kernel's verdict could not be stored: {error}.", stacklevel=2)
    return verdict, True


def _circumstances() -> dict[str, str]:
    """Return what a verdict depends on: the GPU, its software, and the kernel's code."""
    device = jax.local_devices()[0]
    code = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return {
        "card": device.device_kind,
        "platform": device.client.platform_version,
        "jax": jax.__version__,
        "code": hashlib.sha256(code).hexdigest(),
    }


def _verdict_file() -> Path:
    """Return the path of the verdict, next to the compilation cache."""
    configured = jax.config.values["jax_compilation_cache_dir"]
    return (Path(configured) if configured else cache_folder() / "xla") / "rasterizer_kernel.json"


def announce(verdict: Verdict, *, is_new: bool) -> None:
    """Report in one line that the kernel is not used or, the first time, that it is."""
    if not verdict.is_trusted:
        warnings.warn(
            f"The kernel that renders splats {verdict.finding}, so XLA renders them; set the rasterizer to "
            '"kernel" to use it anyway.',
            stacklevel=2,
        )
    elif is_new:
        print(f"The kernel that renders splats {verdict.finding}; it is used.", file=sys.stderr)


def outside_of_tracing(compute: Callable[[], _Value]) -> _Value:
    """Run `compute` with concrete values even while JAX is tracing: traces are local to a thread."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(compute).result()


@functools.cache
def is_proven(candidate: Technique, trusted: Technique) -> bool:
    """Return whether the candidate is verified on the device in use; the first call verifies it."""
    verdict, is_new = outside_of_tracing(
        lambda: remembered(_verdict_file(), _circumstances(), lambda: prove(candidate, trusted))
    )
    announce(verdict, is_new=is_new)
    return verdict.is_trusted
