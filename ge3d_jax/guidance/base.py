"""What a distillation loss is: settings, what it draws, what it learns, and a residual for the latents.

A loss is a frozen dataclass of its own settings, derived from `Loss`. It knows nothing of memory, devices or
Perp-Neg: it asks the denoiser, and sums over views with `SeenViews.total`. To add one, write one file and
one line of the dictionary in `guidance/losses.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import struct

from ge3d_jax.core.random import Draws
from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from ge3d_jax.diffusion.pipeline import StableDiffusion
from ge3d_jax.splatting.cameras import Camera

Numbers = dict[str, jax.Array]


@struct.dataclass
class Progress:
    """How far a run is.

    Attributes:
        iteration: k, () int32, iterations done.
        iterations: T, in all (static).
    """

    iteration: jax.Array | int
    iterations: int = struct.field(pytree_node=False)

    @property
    def share(self) -> jax.Array:
        """k/T, () float32."""
        return jnp.asarray(self.iteration, jnp.float32) / self.iterations


@struct.dataclass
class DrawKeys:
    """PRNG keys of an iteration.

    Attributes:
        times: for the times.
        noise: for the noise.
        run: the same in every iteration of a run.
    """

    times: jax.Array
    noise: jax.Array
    run: jax.Array


@struct.dataclass
class SeenViews:
    """The views of this device, as the loss sees them.

    Attributes:
        latents: (B, h, w, C), z; a residual is handed to them by `hand_over`.
        cameras: batch of B.
        count: views of the iteration on all devices (static).
        axis: name of the devices' axis, None for a single device (static).
        source: (B, h, w, C), the latents of what is edited as it was before, from the same cameras; None
            where the loss does not ask for them.
    """

    latents: jax.Array
    cameras: Camera
    count: int = struct.field(pytree_node=False)
    axis: str | None = struct.field(pytree_node=False, default=None)
    source: jax.Array | None = None

    def total(self, values: jax.Array) -> jax.Array:
        """The sum of what each device has."""
        return values if self.axis is None else jax.lax.psum(values, self.axis)


def hand_over(seen: SeenViews, residual: jax.Array, **numbers: jax.Array) -> tuple[jax.Array, Numbers]:
    """What a loss returns: a scalar whose gradient in the latents is `residual`, and named numbers.

    Args:
        seen: the views.
        residual: (B, h, w, C).
        numbers: (B,), which are averaged over all views, or () for what they share.

    Returns:
        the scalar, and the numbers with `gradient_norm`, the residual's over all views.
    """
    surrogate = jnp.sum(jax.lax.stop_gradient(residual) * seen.latents)
    return surrogate, {**numbers, "gradient_norm": jnp.sqrt(seen.total(jnp.sum(residual**2)))}


@dataclasses.dataclass(frozen=True)
class Loss:
    """Base of the distillation losses; see the module.

    Attributes:
        views_together: how many views belong together, which lie on one device.
        may_mirror: whether pictures may be mirrored before the loss sees them.
        uses_source: whether it makes use of what the views show before they are edited.
        presets: settings of a run that go with this loss, by preset and dotted name.
    """

    views_together: ClassVar[int] = 1
    may_mirror: ClassVar[bool] = True
    uses_source: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @property
    def latest_time(self) -> int:
        """The latest time that the network may be asked at."""
        raise NotImplementedError

    @property
    def steps_to_target(self) -> float | None:
        """How many residuals lead from the latents to what the loss wants; None where it does not say."""
        return None

    @property
    def needs_source_views(self) -> bool:
        """Whether it asks for the views of what is edited as it was before; see `SeenViews.source`."""
        return False

    @property
    def shares_learned(self) -> bool:
        """Whether the objects of a sweep that step together learn one thing together."""
        return False

    def draw(self, keys: DrawKeys, progress: Progress, shape: tuple[int, int, int, int]) -> Draws:
        """What chance decides in an iteration, for latents of `shape` (B, h, w, C)."""
        raise NotImplementedError

    def begin(self, key: jax.Array, model: StableDiffusion) -> Any:
        """What the loss learns by itself, a pytree: here nothing."""
        return ()

    def optimizer(self) -> optax.GradientTransformation:
        """How it learns that."""
        return optax.identity()

    def __call__(
        self,
        learned: Any,
        seen: SeenViews,
        text: ViewTexts,
        drawn: Draws,
        denoiser: Denoiser,
        progress: Progress,
    ) -> tuple[jax.Array, Numbers]:
        """A scalar and named numbers, see `hand_over`.

        The scalar's gradient in the latents is the residual, its gradient in `learned` trains that.
        """
        raise NotImplementedError
