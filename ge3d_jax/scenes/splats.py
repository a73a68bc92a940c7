"""A scene of Gaussian splats: initialization, rendering, optimization, and density control."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import Draws, normal
from ge3d_jax.core.settings import check_at_least, choice
from ge3d_jax.scenes.base import Moments, Parameters, Renders
from ge3d_jax.scenes.clone_and_split import CloneAndSplit
from ge3d_jax.scenes.density import STRATEGIES
from ge3d_jax.scenes.splat_state import SplatState, first_capacity, grown_capacity, with_capacity
from ge3d_jax.scenes.start.ball import Ball
from ge3d_jax.scenes.start.base import Start
from ge3d_jax.scenes.start.starts import STARTS
from ge3d_jax.scenes.strategy import SplatsInViews, Strategy
from ge3d_jax.splatting.cameras import Camera
from ge3d_jax.splatting.gaussians import MAX_SH_DEGREE, Gaussians, mean_scale, padded
from ge3d_jax.splatting.projection import DILATION
from ge3d_jax.splatting.rasterize import Rendered, render
from ge3d_jax.splatting.techniques import AUTO, check_device, check_rasterizer

# The trained fields, and the name of each field's learning rate in the settings.
LEARNING_RATE_OF = {
    "positions": "position",
    "log_scales": "scale",
    "quaternions": "rotation",
    "opacity_logits": "opacity",
    "sh": "color",
}
# Degree of each coefficient of the spherical harmonics.
_BAND_DEGREES = np.repeat(np.arange(MAX_SH_DEGREE + 1), 2 * np.arange(MAX_SH_DEGREE + 1) + 1)

Range = tuple[float, float]


@struct.dataclass
class Perturbations:
    """Zeros whose gradients tell density control what B views ask of N splats.

    Attributes:
        screen: (B, N, 2), added to the splats' screen positions, pixels.
        color: (B, N, 3), added to the splats' colors as the view sees them.
    """

    screen: jax.Array
    color: jax.Array


@dataclasses.dataclass(frozen=True)
class SplatRates:
    """Learning rates (first iteration, last), log-linear in between; positions in world units.

    The color bands above degree 0 have `higher_bands` times the learning rate of the first.
    """

    position: Range = (2e-4 * 3.5, 1.6e-6 * 3.5)
    color: Range = (0.01, 0.003)
    opacity: Range = (0.05, 0.05)
    scale: Range = (0.005, 0.001)
    rotation: Range = (0.001, 0.0002)
    higher_bands: float = 0.05

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if min(value if isinstance(value, tuple) else (value,)) <= 0:
                raise UserError(f"The setting learning_rates.{field.name} is {value}; give numbers above 0.")

    def at(self, name: str, progress: jax.Array | float) -> jax.Array:
        """Return the learning rate with this name at `progress` = k/T, ()."""
        first, last = getattr(self, name)
        return first * jnp.power(last / first, jnp.asarray(progress, jnp.float32))


def with_degree(gaussians: Gaussians, degree: jax.Array | int) -> Gaussians:
    """Return the splats with the color bands above `degree` set to zero."""
    is_used = jnp.asarray(_BAND_DEGREES[: gaussians.sh.shape[1]]) <= degree
    return dataclasses.replace(gaussians, sh=jnp.where(is_used[:, None], gaussians.sh, 0.0))


@dataclasses.dataclass(frozen=True)
class Splats:
    """Gaussian splats.

    Attributes:
        capacity: maximum number of splats; their buffer grows toward it automatically.
        buffer_capacity: initial length of the intersection buffer of one view, which also grows.
        scale_noise: noise on the scales in each view: × (1 + N(0, 1)·scale_noise).
        scale_penalty: weight of the mean scale in the loss.
        sh_every: the degree of the color's spherical harmonics starts at 0 and increases by one every
            `sh_every` iterations, up to `start.sh_degree`; 0 uses all bands from the beginning, as splats
            from a file always do.
        start: the initial splats.
        learning_rates: of the splats' fields.
        density: the density control strategy, which changes the number of splats.
        dilation: how much a view widens splats, a variance in px². With the usual 0.3, splats leave gaps when
            they are shown with more pixels than they were made with; with less, they have to fill them.
        rasterizer: the renderer, see `splatting.techniques`; it affects speed, and results only by rounding.
    """

    capacity: int = 400_000
    buffer_capacity: int = 2**21
    scale_noise: float = math.sqrt(0.2) / 4
    scale_penalty: float = 1.0
    sh_every: int = 500
    start: Start = choice(lambda: STARTS, Ball())
    learning_rates: SplatRates = SplatRates()
    density: Strategy = choice(lambda: STRATEGIES, CloneAndSplit())
    dilation: float = DILATION
    rasterizer: str = AUTO

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_rasterizer(self.rasterizer)
        check_at_least(
            **{
                "buffer_capacity": (self.buffer_capacity, 1),
                "sh_every": (self.sh_every, 0),
                "scene.capacity": (self.capacity, self.start.count),
            }
        )
        if not 0 < self.dilation < math.inf:
            raise UserError(f"The setting scene.dilation is {self.dilation}; give a number above 0.")

    def check_devices(self) -> None:
        """Reject a rasterizer that needs another device. Raises UserError."""
        check_device(self.rasterizer)

    def check_start(self, prompt: str, check_words: Callable[[str, Path], None]) -> None:
        """Reject a start whose files are missing. Raises UserError."""
        self.start.check()
        words = self.start.words_of(prompt)
        if words is not None:
            check_words(*words)

    def from_file(self) -> Gaussians | None:
        """Return the splats if the start is read from a file, else None. Raises UserError."""
        return self.start.gaussians(jax.random.key(0)) if self.start.reads_file else None

    def asked_for(self, prompt: str) -> "Splats":
        """Return the same scene with a start that suits the prompt."""
        return dataclasses.replace(self, start=self.start.asked_for(prompt))

    def begin(self, key: jax.Array, start: Gaussians | None = None) -> SplatState:
        """Create the splats before the first iteration, from `start` or else from the settings.

        Raises:
            UserError: the start has more splats than `capacity`, or cannot be created.
        """
        gaussians = self.start.gaussians(key) if start is None else start
        if gaussians.capacity > self.capacity:
            raise UserError(
                f"The start has {gaussians.capacity} splats, but the setting scene.capacity is "
                f"{self.capacity}; raise it."
            )
        gaussians = padded(gaussians, first_capacity(gaussians.capacity, self.capacity))
        return SplatState(gaussians, self.density.statistics(gaussians.capacity))

    def parameters(self, state: SplatState) -> Parameters:
        """Return the trained fields of the splats, all with a leading axis of N."""
        return {field: getattr(state.gaussians, field) for field in LEARNING_RATE_OF}

    def with_parameters(self, state: SplatState, parameters: Parameters) -> SplatState:
        """Return the same splats with other values of the trained fields."""
        return dataclasses.replace(state, gaussians=dataclasses.replace(state.gaussians, **parameters))

    def updates(self, directions: Parameters, progress: jax.Array) -> Parameters:
        """Scale each field's direction by minus its learning rate; higher color bands learn more slowly."""
        updates = {
            field: -self.learning_rates.at(LEARNING_RATE_OF[field], progress) * direction
            for field, direction in directions.items()
        }
        updates["sh"] = updates["sh"].at[:, 1:].multiply(self.learning_rates.higher_bands)
        return updates

    def draw(self, key: jax.Array, state: SplatState, views: int) -> Draws:
        """Draw noise on the scales of each splat in each view."""
        noise = self.scale_noise * normal(key, (views, state.gaussians.capacity, 3))
        return Draws(shared=(), per_view={"scale_noise": noise})

    def fitted_draws(self, drawn: Draws, state: SplatState) -> Draws:
        """Truncate the noise on the scales to the state's number of splats."""
        noise = drawn.per_view["scale_noise"][:, : state.gaussians.capacity]
        return Draws(shared=drawn.shared, per_view={"scale_noise": noise})

    def perturbations(self, state: SplatState, views: int) -> Perturbations:
        """Return zero offsets for B views."""
        shape = (views, state.gaussians.capacity)
        return Perturbations(screen=jnp.zeros((*shape, 2)), color=jnp.zeros((*shape, 3)))

    def render(
        self,
        state: SplatState,
        iteration: jax.Array | int,
        cameras: Camera,
        backgrounds: jax.Array,
        drawn: Draws | None,
        perturbations: Perturbations,
    ) -> Renders:
        """Render a batch of views; `observed` holds the splats' radii (B, N) in pixels."""
        gaussians = state.gaussians
        # Learned bands are not new ones, which come one after another.
        if self.sh_every and gaussians.sh_degree and not self.start.is_learned:
            degree = jnp.minimum(iteration // self.sh_every, gaussians.sh_degree)
            gaussians = with_degree(gaussians, degree)

        def one(
            camera: Camera, background: jax.Array, offsets: Perturbations, factors: jax.Array | None
        ) -> Rendered:
            return render(
                gaussians,
                camera,
                background=background,
                buffer_capacity=self.buffer_capacity,
                screen_offsets=offsets.screen,
                color_offsets=offsets.color,
                scale_multiplier=factors,
                dilation=self.dilation,
                rasterizer=self.rasterizer,
            )

        factors = None if drawn is None else jnp.maximum(1.0 + drawn.per_view["scale_noise"], 0.0)
        views = jax.vmap(one)(cameras, backgrounds, perturbations, factors)
        return Renders(views.rgb, views.radii, views.intersections, views.overflow)

    def penalty(self, state: SplatState) -> jax.Array | float:
        """Return the weighted mean scale plus the penalty of density control."""
        penalty = self.density.penalty(state.gaussians)
        if self.scale_penalty:
            penalty += self.scale_penalty * mean_scale(state.gaussians)
        return penalty

    def after_update(
        self,
        key: jax.Array,
        state: SplatState,
        perturbation_gradients: Perturbations,
        observed: jax.Array,
        *,
        progress: jax.Array,
        image_size: tuple[int, int],
    ) -> SplatState:
        """Apply density control's operations after each step; see `Scene`."""
        seen = SplatsInViews(
            perturbation_gradients.screen, perturbation_gradients.color, observed, image_size=image_size
        )
        return self.density.after_update(key, state, seen, self.learning_rates.at("position", progress))

    def on_schedule(
        self, key: jax.Array, state: SplatState, moments: Moments, done: int, iterations: int
    ) -> tuple[SplatState, Moments, dict[str, int]]:
        """Apply density control's scheduled operations; see `Scene`."""
        return self.density.on_schedule(key, state, moments, done, iterations, limit=self.capacity)

    def numbers(self, state: SplatState) -> dict[str, jax.Array]:
        """Return the number of splats in use, int32."""
        return {"splats": jnp.sum(state.gaussians.mask)}

    def advice(self, history: Sequence[Mapping[str, int | float]]) -> list[str]:
        """Suggest a higher capacity if density control found no room for more splats."""
        count = int(sum(line.get("not_served", 0) for line in history))
        if not count:
            return []
        splats = "1 splat" if count == 1 else f"{count} splats"
        return [
            f"{splats} requested by density control found no room; raise scene.capacity (now "
            f"{self.capacity}) for finer detail."
        ]

    def grown(self, needed: int) -> "Splats":
        """Return the same scene with a longer intersection buffer."""
        return dataclasses.replace(self, buffer_capacity=grown_capacity(needed))

    def resized(
        self, state: SplatState, moments: Moments, shapes: dict[str, tuple[int, ...]]
    ) -> tuple[SplatState, Moments]:
        """Lengthen the buffer of splats, which may have grown since the run began."""
        (length,) = shapes.get("gaussians.mask", (0,))
        if length <= state.gaussians.capacity:
            return state, moments
        return with_capacity(state, moments, length)

    def holding(self, start: Gaussians) -> "Splats":
        """Return the same scene with room for these splats."""
        return dataclasses.replace(self, capacity=max(self.capacity, start.capacity))

    def shown(self, state: SplatState, done: int) -> Gaussians:
        """Return the splats as density control shows them."""
        return self.density.shown(state)
