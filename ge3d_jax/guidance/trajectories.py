"""The noising and denoising trajectories of an iteration, scanned over its time nodes.

Symbols: `node_times` t_0 = 0 < t_1 < … < t_n; `active`, the number of jumps made before the upper bound
stopped them, so that t_active is the top node. Beyond it the times repeat t_active and the scans do nothing,
which keeps shapes static for any number of nodes. Method: equations 5–8 of arXiv 2412.05929.
"""

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import normal
from ge3d_jax.core.settings import check_at_least
from ge3d_jax.diffusion.denoiser import ViewTexts
from ge3d_jax.diffusion.schedule import NoiseSchedule, add_noise, ddim_step
from ge3d_jax.guidance.base import Progress

# (x (B, h, w, C), t scalar int32) → ε (B, h, w, C)
Predict = Callable[[jax.Array, jax.Array], jax.Array]
Bounds = tuple[int, int]
NOISING_PROMPTS = ("negative", "empty")
# How the denoising trajectory compensates for inversion error; see `guidance.ge3d.GE3D`.
INVERSIONS = ("plain", "npi", "direct", "direct_if_several", "delta")


@dataclasses.dataclass(frozen=True)
class Nodes:
    """Time nodes of the trajectories; pairs are (start, end) values, interpolated linearly over the run.

    Each jump is uniform on jump_min … jump_max − 1; every node lies below max_step.
    """

    count: int = 6
    jump_max: Bounds = (80, 50)
    jump_min: Bounds = (60, 30)
    max_step: Bounds = (480, 300)

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_at_least(**{"nodes.count": (self.count, 1), "nodes.jump_min": (min(self.jump_min), 1)})
        if any(low >= high for low, high in zip(self.jump_min, self.jump_max, strict=True)):
            raise UserError(
                f"The setting nodes.jump_max is {self.jump_max}, which is not above nodes.jump_min, "
                f"{self.jump_min}; raise it."
            )
        if any(jump > bound for jump, bound in zip(self.jump_max, self.max_step, strict=True)):
            raise UserError(
                f"The setting nodes.max_step is {self.max_step}, which leaves no room for one jump of "
                f"{self.jump_max}; raise it."
            )


def offset_noise(key: jax.Array, shape: tuple[int, ...], strength: float) -> jax.Array:
    """Draw N(0, I) plus `strength`·N(0, 1) per channel, constant over the image and shared by the views.

    Args:
        key: PRNG key.
        shape: (B, h, w, C).
        strength: of the per-channel noise.
    """
    own_key, channel_key = jax.random.split(key)
    channels = normal(channel_key, (1, 1, 1, shape[-1]))
    return normal(own_key, shape) + strength * channels


def noising_text(text: ViewTexts, prompt: str) -> jax.Array:
    """Return the embedding (L, D) of one of NOISING_PROMPTS."""
    return text.negative if prompt == "negative" else text.empty


def annealed(bounds: Bounds, progress: Progress) -> jax.Array:
    """Interpolate from bounds[0] to bounds[1], linear in k/T, rounded up as in the public code; () int32."""
    begin, end = bounds
    # In integers, begin − ⌊(begin − end)·k/T⌋ is exact; float32 would occasionally be off by one.
    done = jnp.asarray(progress.iteration, jnp.int32)
    return begin - (begin - end) * done // progress.iterations


def sample_time_nodes(key: jax.Array, progress: Progress, nodes: Nodes) -> tuple[jax.Array, jax.Array]:
    """Draw the nodes of one iteration: jumps uniform on jump_min … jump_max − 1, all nodes below max_step.

    Args:
        key: PRNG key.
        progress: of the run; the bounds are `annealed`.
        nodes: the bounds.

    Returns:
        node_times (n + 1,) int32, ascending, t_0 = 0, repeating the last node after an early stop;
        active, scalar int32, the number of jumps made.
    """
    # Bounds that are at least 1 apart at both ends of the run stay so in between, even rounded up.
    least, above = annealed(nodes.jump_min, progress), annealed(nodes.jump_max, progress)
    jumps = least + jnp.floor(jax.random.uniform(key, (nodes.count,)) * (above - least)).astype(jnp.int32)
    times = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(jumps)])
    active = jnp.sum(times < annealed(nodes.max_step, progress)) - 1
    return times[jnp.minimum(jnp.arange(nodes.count + 1), active)], active.astype(jnp.int32)


def _move(
    predict: Predict,
    schedule: NoiseSchedule,
    x: jax.Array,
    start: jax.Array,
    end: jax.Array,
    is_active: jax.Array,
) -> jax.Array:
    # The predicate is a scalar, so inactive nodes cost no network evaluation.
    return jax.lax.cond(
        is_active, lambda: ddim_step(schedule, x, predict(x, start), start, end).astype(x.dtype), lambda: x
    )


def noising_trajectory(
    predict: Predict,
    schedule: NoiseSchedule,
    z: jax.Array,
    noise: jax.Array,
    node_times: jax.Array,
    active: jax.Array,
) -> jax.Array:
    """Carry a latent up to the top node along the ODE, which preserves the image content.

    x_0 = add_noise(z, noise, t_0); x_{t_{i+1}} = DDIM(x_{t_i}, predict(x_{t_i}, t_i), t_i → t_{i+1}). The
    network is evaluated only at t_0 … t_{active−1}.

    Args:
        z, noise: (B, h, w, C).
        node_times, active: from `sample_time_nodes`.

    Returns:
        (n + 1, B, h, w, C), state i at t_i; beyond the active nodes the top state repeats.
    """
    chex.assert_equal_shape([z, noise])
    first = add_noise(schedule, z, noise, node_times[0]).astype(z.dtype)

    def body(x: jax.Array, step: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        index, start, end = step
        moved = _move(predict, schedule, x, start, end, index < active)
        return moved, moved

    indices = jnp.arange(node_times.shape[0] - 1)
    _, states = jax.lax.scan(body, first, (indices, node_times[:-1], node_times[1:]))
    return jnp.concatenate([first[None], states])


def denoising_trajectory(
    predict: Predict,
    schedule: NoiseSchedule,
    top: jax.Array,
    node_times: jax.Array,
    active: jax.Array,
) -> jax.Array:
    """Denoise from the top node down to t_0 with the guided prediction.

    x̂_{t_i} = DDIM(x̂_{t_{i+1}}, predict(x̂_{t_{i+1}}, t_{i+1}), t_{i+1} → t_i), from x̂_{t_active} = `top`.

    Args:
        top: (B, h, w, C), the last state of the noising trajectory.
        node_times, active: from `sample_time_nodes`.

    Returns:
        (n + 1, B, h, w, C), state i at t_i; `top` from the top node on.
    """

    def body(x: jax.Array, step: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        index, start, end = step
        moved = _move(predict, schedule, x, start, end, index < active)
        return moved, moved

    indices = jnp.arange(node_times.shape[0] - 1)
    _, states = jax.lax.scan(body, top, (indices, node_times[1:], node_times[:-1]), reverse=True)
    return jnp.concatenate([states, top[None]])


def exact_denoising_trajectory(
    predict: Predict,
    predict_source: Predict,
    schedule: NoiseSchedule,
    noised: jax.Array,
    node_times: jax.Array,
    active: jax.Array,
    *,
    corrects: jax.Array | bool = True,
) -> jax.Array:
    """Denoise from the top node down, correcting at every node for the inversion error of the source.

    x̂_{t_i} = DDIM(x̂_{t_{i+1}}, predict) + x_{t_i} − DDIM(x_{t_{i+1}}, predict_source), each t_{i+1} → t_i:
    where both predictions agree, x̂ = x exactly. The source branch is that of direct inversion, arXiv
    2310.01506; there attention ties the target to the source, here the difference does.

    Args:
        predict: prediction for the target.
        predict_source: prediction for the source.
        noised: (n + 1, B, h, w, C), from `noising_trajectory`.
        node_times, active: from `sample_time_nodes`.
        corrects: () bool, whether to correct; if not, the result is that of `denoising_trajectory`, and
            `predict_source` is not evaluated.

    Returns:
        (n + 1, B, h, w, C), state i at t_i; the top noised state from the top node on.
    """

    def body(x: jax.Array, step: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        index, start, end, above, kept = step

        def moved() -> jax.Array:
            target = ddim_step(schedule, x, predict(x, start), start, end)

            def corrected() -> jax.Array:
                source = ddim_step(schedule, above, predict_source(above, start), start, end)
                return kept + (target - source)

            return jax.lax.cond(corrects, corrected, lambda: target).astype(x.dtype)

        # The predicate is a scalar, so inactive nodes cost no network evaluation.
        state = jax.lax.cond(index < active, moved, lambda: x)
        return state, state

    steps = (jnp.arange(node_times.shape[0] - 1), node_times[1:], node_times[:-1], noised[1:], noised[:-1])
    _, states = jax.lax.scan(body, noised[-1], steps, reverse=True)
    return jnp.concatenate([states, noised[-1][None]])
