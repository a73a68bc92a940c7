"""The interface of a distillation loss: settings, random draws, learned parameters, and a latent residual.

A loss is a frozen dataclass of its own settings, derived from `Loss`. It knows nothing about memory, devices,
or Perp-Neg: it queries the denoiser and sums over views with `SeenViews.total`. To add a loss, write one file
and add one line to the dictionary in `guidance/losses.py`.
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
    """Progress of a run.

    Attributes:
        iteration: k, () int32, number of completed iterations.
        iterations: T, total number of iterations (static).
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
        times: for the timesteps.
        noise: for the noise.
        run: the same in every iteration of a run.
    """

    times: jax.Array
    noise: jax.Array
    run: jax.Array


@struct.dataclass
class SeenViews:
    """The views on this device, as the loss sees them.

    Attributes:
        latents: (B, h, w, C), z; `hand_over` makes a residual their gradient.
        cameras: batch of B.
        count: number of views in the iteration, over all devices (static).
        axis: name of the device axis, None for a single device (static).
        source: (B, h, w, C), latents of the unedited object from the same cameras; None unless the loss
            requests them.
    """

    latents: jax.Array
    cameras: Camera
    count: int = struct.field(pytree_node=False)
    axis: str | None = struct.field(pytree_node=False, default=None)
    source: jax.Array | None = None

    def total(self, values: jax.Array) -> jax.Array:
        """Sum the values over all devices."""
        return values if self.axis is None else jax.lax.psum(values, self.axis)


def hand_over(seen: SeenViews, residual: jax.Array, **numbers: jax.Array) -> tuple[jax.Array, Numbers]:
    """Build a loss's return value: a scalar whose gradient with respect to the latents is `residual`.

    Args:
        seen: the views.
        residual: (B, h, w, C).
        numbers: metrics by name: (B,), averaged over all views, or () if the views share the value.

    Returns:
        the scalar, and the metrics plus `gradient_norm`, the norm of the residual over all views.
    """
    surrogate = jnp.sum(jax.lax.stop_gradient(residual) * seen.latents)
    return surrogate, {**numbers, "gradient_norm": jnp.sqrt(seen.total(jnp.sum(residual**2)))}


@dataclasses.dataclass(frozen=True)
class Loss:
    """Base class of the distillation losses; see the module docstring.

    Attributes:
        views_together: size of the groups of views that the loss treats jointly; a group stays on one device.
        may_mirror: whether images may be flipped horizontally before the loss sees them.
        uses_source: whether the loss makes use of what the views show before an edit.
        presets: run settings that go with this loss, by preset and dotted name.
    """

    views_together: ClassVar[int] = 1
    may_mirror: ClassVar[bool] = True
    uses_source: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @property
    def latest_time(self) -> int:
        """The largest timestep at which the network may be queried."""
        raise NotImplementedError

    @property
    def steps_to_target(self) -> float | None:
        """The n for which latents − n·residual is the loss's target; None if it has no explicit target."""
        return None

    @property
    def needs_source_views(self) -> bool:
        """Whether the loss needs views of the unedited object; see `SeenViews.source`."""
        return False

    @property
    def shares_learned(self) -> bool:
        """Whether the objects of a sweep that step in lockstep share one set of learned parameters."""
        return False

    def draw(self, keys: DrawKeys, progress: Progress, shape: tuple[int, int, int, int]) -> Draws:
        """Draw an iteration's random values, for latents of `shape` (B, h, w, C)."""
        raise NotImplementedError

    def begin(self, key: jax.Array, model: StableDiffusion) -> Any:
        """Initialize the loss's own learned parameters, a pytree; by default there are none."""
        return ()

    def optimizer(self) -> optax.GradientTransformation:
        """Return the optimizer of the learned parameters."""
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
        """Compute a scalar and metrics; see `hand_over`.

        The scalar's gradient with respect to the latents is the residual; its gradient with respect to
        `learned` trains the learned parameters.
        """
        raise NotImplementedError
