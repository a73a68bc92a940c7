"""The denoising pass over sources and targets side by side, which most methods share.

Symbols: P images; N steps; ε_∅, ε_c, predictions for the unconditional and the conditional text; δ = ε_c −
ε_∅; s, guidance scale; z*, an image's latents along its inversion trajectory. Each step computes

    ε̂ = ε_∅ + s·δ,  x ← √ᾱ_b·x̂_0 + √(1−ᾱ_b−η²v)·ε̂ + η√v·n,  v = (1−ᾱ_b)/(1−ᾱ_a)·(1−ᾱ_a/ᾱ_b),

from time a to time b, with given n. It is DDIM at η = 0 and DDPM at η = 1. Everything that differs between
methods is traced, so they all share one compiled program.
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
    """Proximal guidance (proximal NPI): small differences between the two predictions count as zero.

    Each δ moves toward 0 by λ, the `quantile` of |δ| over both branches of an image.

    Attributes:
        quantile: () in 0..1.
        factor: () scales the quantile to give λ; 0 for no change at all.
        twice: () bool, whether to shrink a second time, first positive values, then negative ones.
        pulled_below: () int32, the time below which both branches are pulled onto z* where the shrunk |δ| is
            at most λ.
    """

    quantile: jax.Array
    factor: jax.Array
    twice: jax.Array
    pulled_below: jax.Array


def no_proximal() -> Proximal:
    """Return proximal settings that have no effect."""
    return Proximal(jnp.float32(0.5), jnp.float32(0.0), jnp.asarray(False), jnp.int32(0))


@struct.dataclass
class Way:
    """The inputs of the denoising pass; branches are sources, then targets.

    Attributes:
        times: (N + 1,) int32, decreasing.
        top: (2P, h, w, C), the starting state.
        conditional: (N, 2P, L, D), the text of each step.
        unconditional: (N, 2P, L, D), the text that guidance leads away from.
        scales: (2,), s of sources and of targets, in the latents' precision, to match the inversion.
        path: (N, P, h, w, C), z* after each denoising step.
        holds_source: () bool, whether to reset the sources to z* after each step.
        eta: (), η.
        noise: (N, P, h, w, C), n, the same for both branches; or (N, 1, 1, 1, 1) if η is 0.
        proximal: how to shrink δ.
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
    """What a method computes before denoising.

    Attributes:
        up: (N + 1, P, h, w, C), z*.
        way: the inputs of the denoising pass.
        numbers: named arrays that record how they were found.
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
    """Return the usual inputs: DDIM, starting from the top of the inversion trajectory.

    Args:
        task: the editing task.
        times: (N + 1,) int32, decreasing.
        up: (N + 1, P, h, w, C), z*.
        scale: s.
        unconditional: for sources and targets, (P, L, D) or (N, P, L, D) each; None for the empty prompt.
        conditional: same shapes; None for the source and target prompts.
        holds_source: whether to reset the sources to z* after each step.
        proximal: how to shrink δ; None to leave it as is.
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
    """v = (1−ᾱ_b)/(1−ᾱ_a)·(1−ᾱ_a/ᾱ_b) for a step down from time a, `now`, to time b, `then`."""
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
    """√ᾱ_b·x̂_0 + √(1−ᾱ_b−η²v)·ε: a step from time a to time b, before its noise is added."""
    b = schedule.alphas_cumprod[then]
    # Rounding can make this slightly negative where it should be exactly 0.
    left = jnp.maximum(1.0 - b - eta**2 * posterior_variance(schedule, now, then), 0.0)
    return jnp.sqrt(b) * predict_x0(schedule, x, epsilon, now) + jnp.sqrt(left) * epsilon


def _by_picture(array: jax.Array) -> jax.Array:
    """(2P, h, w, C) → (P, 2·h·w·C): the values of both branches of each image."""
    pairs = array.reshape(2, -1, *array.shape[1:])
    return jnp.moveaxis(pairs, 1, 0).reshape(pairs.shape[1], -1)


def _shrunk(proximal: Proximal, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return δ moved toward 0, and λ (2P, 1, 1, 1)."""
    threshold = proximal.factor * jnp.quantile(jnp.abs(_by_picture(delta)), proximal.quantile, axis=1)
    threshold = jnp.tile(threshold, 2)[:, None, None, None].astype(delta.dtype)
    once = delta - jnp.clip(delta, -threshold, threshold)
    lowered = jnp.where(once > 0, once - threshold, once)
    twice = jnp.where(lowered < 0, lowered + threshold, lowered)
    return jnp.where(proximal.twice, twice, once), threshold


def _pulled(
    proximal: Proximal, x: jax.Array, kept: jax.Array, delta: jax.Array, threshold: jax.Array, now: jax.Array
) -> jax.Array:
    """Pull both branches onto z* where the two predictions agree."""
    differs = (jnp.abs(delta) > threshold).astype(x.dtype)
    differs = nn.max_pool(differs, (3, 3), padding="SAME")
    onto = x - (1.0 - differs) * (x - kept)
    return jnp.where(now < proximal.pulled_below, onto, x)


@jax.jit
def descend(
    denoiser: Denoiser, way: Way, control: PromptControl, blend: LocalBlend
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Run the denoising pass.

    Args:
        denoiser: the model.
        way: the inputs.
        control: what the targets take from their sources, for N steps.
        blend: where the targets may differ from their sources.

    Returns:
        states (N + 1, 2, P, h, w, C) of sources and targets, starting at the top; maps (2, P, mh, mw, L),
        attention to the text summed over all steps; masks (N, P, h, w) bool, from the blend.
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
    """(2, P, mh, mw, L), the shape of the denoiser's attention maps."""
    seen = jax.eval_shape(
        lambda: denoiser.controlled_for(
            way.top, way.times[0], way.unconditional[0], way.conditional[0], control=control.at(0)
        )[1]
    )
    return (2, seen.shape[0] // 2, *seen.shape[1:])


def edited(task: EditTask, denoiser: Denoiser, plan: Plan) -> Edited:
    """Run the denoising pass of a plan and collect the result."""
    states, maps, masks = descend(denoiser, plan.way, task.control, task.blend)
    return Edited(plan.up, states[:, 1], states[:, 0], maps, masks, plan.numbers)
