"""The way down, of sources and targets side by side: what most methods share.

Symbols: P pictures; N steps; ε_∅, ε_c, predictions for the unconditional and the conditional text; δ = ε_c −
ε_∅; s, guidance scale; z*, the picture on its way up. Each step is

    ε̂ = ε_∅ + s·δ,  x ← √ᾱ_b·x̂_0 + √(1−ᾱ_b−η²v)·ε̂ + η√v·n,  v = (1−ᾱ_b)/(1−ᾱ_a)·(1−ᾱ_a/ᾱ_b),

from time a to time b, with n given. It is DDIM at η = 0 and DDPM at η = 1. Everything that tells the methods
apart is traced, so that all of them share one compiled program.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from ge3d_jax.diffusion.denoiser import Denoiser
from ge3d_jax.diffusion.schedule import NoiseSchedule, predict_x0
from ge3d_jax.editing.base import Edited, EditTask, per_step
from ge3d_jax.editing.control import LocalBlend, PromptControl, blend_mask


@struct.dataclass
class Proximal:
    """How small differences between the two predictions are taken for none (proximal NPI).

    Each δ is moved by λ towards 0, λ its `quantile` over both branches of a picture.

    Attributes:
        quantile: () in 0..1.
        factor: () λ is the quantile times this, 0 for no change at all.
        twice: () bool, whether it is done a second time, first to what is above 0, then to what is below.
        pulled_below: () int32, below this time both branches are pulled onto z* where δ is then at most λ.
    """

    quantile: jax.Array
    factor: jax.Array
    twice: jax.Array
    pulled_below: jax.Array


def no_proximal() -> Proximal:
    """One without effect."""
    return Proximal(jnp.float32(0.5), jnp.float32(0.0), jnp.asarray(False), jnp.int32(0))


@struct.dataclass
class Way:
    """What the way down is told; branches are sources, then targets.

    Attributes:
        times: (N + 1,) int32, falling.
        top: (2P, h, w, C), where it starts.
        conditional: (N, 2P, L, D), the text of each step.
        unconditional: (N, 2P, L, D), what guidance leads away from.
        scales: (2,), s of sources and of targets, in the latents' precision, as what they are to undo.
        path: (N, P, h, w, C), z* after each step down.
        holds_source: () bool, whether the sources are put onto z* after each step.
        eta: (), η.
        noise: (N, P, h, w, C), n, the same for both branches; or (N, 1, 1, 1, 1) where η is 0.
        proximal: what becomes of δ.
    """

    times: jax.Array
    top: jax.Array
    conditional: jax.Array
    unconditional: jax.Array
    scales: jax.Array
    path: jax.Array
    holds_source: jax.Array
    eta: jax.Array
    noise: jax.Array
    proximal: Proximal


@struct.dataclass
class Plan:
    """What a method finds before it goes down.

    Attributes:
        up: (N + 1, P, h, w, C), z*.
        way: what the way down is told.
        numbers: named arrays that tell how it was found.
    """

    up: jax.Array
    way: Way
    numbers: dict[str, jax.Array] = dataclasses.field(default_factory=dict)


def way_down(
    task: EditTask,
    times: jax.Array,
    up: jax.Array,
    *,
    scale: float,
    unconditional: tuple[jax.Array, jax.Array] | None = None,
    conditional: tuple[jax.Array, jax.Array] | None = None,
    holds_source: bool = False,
    proximal: Proximal | None = None,
) -> Way:
    """The usual way: from the top of the way up, by DDIM.

    Args:
        task: what is edited.
        times: (N + 1,) int32, falling.
        up: (N + 1, P, h, w, C), z*.
        scale: s.
        unconditional: of sources and targets, (P, L, D) or (N, P, L, D) each; None is the empty prompt.
        conditional: likewise; None is the source's and the target's prompt.
        holds_source: whether the sources are put onto z* after each step.
        proximal: what becomes of δ, None for nothing.
    """
    steps = len(times) - 1

    def both(texts: tuple[jax.Array, jax.Array]) -> jax.Array:
        source, target = (per_step(text, steps) if text.ndim == 3 else text for text in texts)
        return jnp.concatenate([source, target], axis=1)

    return Way(
        times=times,
        top=jnp.concatenate([up[-1], up[-1]]),
        conditional=both((task.source, task.target) if conditional is None else conditional),
        unconditional=both((task.empties, task.empties) if unconditional is None else unconditional),
        scales=jnp.full(2, scale, up.dtype),
        path=up[-2::-1],
        holds_source=jnp.asarray(holds_source),
        eta=jnp.zeros((), up.dtype),
        noise=jnp.zeros((steps, 1, 1, 1, 1), up.dtype),
        proximal=no_proximal() if proximal is None else proximal,
    )


def posterior_variance(schedule: NoiseSchedule, now: jax.Array, then: jax.Array) -> jax.Array:
    """v = (1−ᾱ_b)/(1−ᾱ_a)·(1−ᾱ_a/ᾱ_b), of a step down from time a, `now`, to time b, `then`."""
    a, b = schedule.alphas_cumprod[now], schedule.alphas_cumprod[then]
    return (1.0 - b) / (1.0 - a) * (1.0 - a / b)


def posterior_mean(
    schedule: NoiseSchedule,
    x: jax.Array,
    epsilon: jax.Array,
    now: jax.Array,
    then: jax.Array,
    eta: float | jax.Array = 1.0,
) -> jax.Array:
    """√ᾱ_b·x̂_0 + √(1−ᾱ_b−η²v)·ε: a step from time a to time b without its noise."""
    b = schedule.alphas_cumprod[then]
    # The variance may exceed what is left by a rounding where nothing is left at all.
    left = jnp.maximum(1.0 - b - eta**2 * posterior_variance(schedule, now, then), 0.0)
    return jnp.sqrt(b) * predict_x0(schedule, x, epsilon, now) + jnp.sqrt(left) * epsilon


def _by_picture(array: jax.Array) -> jax.Array:
    """(2P, h, w, C) → (P, 2·h·w·C): the numbers of both branches of each picture."""
    pairs = array.reshape(2, -1, *array.shape[1:])
    return jnp.moveaxis(pairs, 1, 0).reshape(pairs.shape[1], -1)


def _shrunk(proximal: Proximal, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """δ moved towards 0, and λ (2P, 1, 1, 1)."""
    threshold = proximal.factor * jnp.quantile(jnp.abs(_by_picture(delta)), proximal.quantile, axis=1)
    threshold = jnp.tile(threshold, 2)[:, None, None, None].astype(delta.dtype)
    once = delta - jnp.clip(delta, -threshold, threshold)
    lowered = jnp.where(once > 0, once - threshold, once)
    twice = jnp.where(lowered < 0, lowered + threshold, lowered)
    return jnp.where(proximal.twice, twice, once), threshold


def _pulled(
    proximal: Proximal, x: jax.Array, kept: jax.Array, delta: jax.Array, threshold: jax.Array, now: jax.Array
) -> jax.Array:
    """Both branches, put onto z* where the two predictions agree."""
    differs = (jnp.abs(delta) > threshold).astype(x.dtype)
    differs = nn.max_pool(differs, (3, 3), padding="SAME")
    onto = x - (1.0 - differs) * (x - kept)
    return jnp.where(now < proximal.pulled_below, onto, x)


@jax.jit
def descend(
    denoiser: Denoiser, way: Way, control: PromptControl, blend: LocalBlend
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Go down.

    Args:
        denoiser: the model.
        way: what the way is told.
        control: what the targets take from their sources, for N steps.
        blend: where they may differ from them.

    Returns:
        states (N + 1, 2, P, h, w, C), of sources and targets, the first the top; maps (2, P, mh, mw, L), the
        attention to the text summed over all steps; masks (N, P, h, w) bool, of the blend.
    """
    schedule, pictures = denoiser.schedule, way.path.shape[1]
    scales = jnp.repeat(way.scales, pictures)[:, None, None, None].astype(way.top.dtype)
    shape = way.top.shape[1:3]
    steps = len(way.times) - 1

    def step(
        carried: tuple[jax.Array, jax.Array], given: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        x, maps = carried
        index, now, then, wanted, without, kept, noise = given
        (empty, positive), seen = denoiser.controlled_for(x, now, without, wanted, control=control.at(index))
        delta, threshold = _shrunk(way.proximal, positive - empty)
        epsilon = empty + scales * delta
        moved = posterior_mean(schedule, x, epsilon, now, then, way.eta)
        spread = way.eta * jnp.sqrt(posterior_variance(schedule, now, then))
        moved = moved + spread * jnp.concatenate([noise, noise])
        moved = _pulled(way.proximal, moved, jnp.concatenate([kept, kept]), delta, threshold, now)
        source, target = jnp.split(moved.astype(x.dtype), 2)
        source = jnp.where(way.holds_source, kept, source)
        maps = maps + seen.reshape(2, pictures, *seen.shape[1:])
        mask = blend_mask(blend, maps, shape) | (index < blend.first_step)
        target = jnp.where(mask[..., None], target, source)
        x = jnp.concatenate([source, target])
        return (x, maps), (x, mask)

    noise = jnp.broadcast_to(way.noise, (steps, pictures, *way.noise.shape[2:]))
    given = (
        jnp.arange(steps),
        way.times[:-1],
        way.times[1:],
        way.conditional,
        way.unconditional,
        way.path,
        noise,
    )
    maps = jnp.zeros(_map_shape(denoiser, way, control), way.top.dtype)
    (_, maps), (states, masks) = jax.lax.scan(step, (way.top, maps), given)
    states = jnp.concatenate([way.top[None], states])
    return states.reshape(steps + 1, 2, pictures, *states.shape[2:]), maps, masks


def _map_shape(denoiser: Denoiser, way: Way, control: PromptControl) -> tuple[int, ...]:
    """(2, P, mh, mw, L), of the maps that the denoiser gives."""
    seen = jax.eval_shape(
        lambda: denoiser.controlled_for(
            way.top, way.times[0], way.unconditional[0], way.conditional[0], control=control.at(0)
        )[1]
    )
    return (2, seen.shape[0] // 2, *seen.shape[1:])


def edited(task: EditTask, denoiser: Denoiser, plan: Plan) -> Edited:
    """Go down, and say what came of it."""
    states, maps, masks = descend(denoiser, plan.way, task.control, task.blend)
    return Edited(plan.up, states[:, 1], states[:, 0], maps, masks, plan.numbers)
