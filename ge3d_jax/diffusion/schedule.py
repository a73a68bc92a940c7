"""The noise schedule, and one deterministic DDIM step between any two times.

Symbols: x_t = √ᾱ_t·x_0 + √(1−ᾱ_t)·ε, with ᾱ_t = `alphas_cumprod[t]` for the integer times t = 0 … T−1;
v = √ᾱ_t·ε − √(1−ᾱ_t)·x_0. Times are scalars or one per sample, (B,), and broadcast over the trailing axes.
Times outside 0 … T−1 are an error of the caller: under jit they are clamped to the range, as in JAX gathers.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ge3d_jax.core.errors import UserError

PREDICTION_TYPES = ("epsilon", "v_prediction")
# `steps_offset` of the published schedulers: the last evaluation is at time 1, not 0.
STEPS_OFFSET = 1
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")

# The cosine schedule would let ᾱ reach 0 at its end; diffusers caps each beta at this value to prevent it.
_MAXIMUM_COSINE_BETA = 0.999
_COSINE_OFFSET = 0.008


@struct.dataclass
class NoiseSchedule:
    """How much of the signal remains at each time, and what the network predicts.

    Attributes:
        alphas_cumprod: (T,) float32, ᾱ_t, decreasing in t, within (0, 1).
        prediction_type: "epsilon" or "v_prediction".
    """

    alphas_cumprod: jax.Array
    prediction_type: str = struct.field(pytree_node=False, default="epsilon")

    @property
    def steps(self) -> int:
        """T, the number of times."""
        return self.alphas_cumprod.shape[0]


def _betas(name: str, first: float, last: float, steps: int) -> np.ndarray:
    if name == "linear":
        return np.linspace(first, last, steps, dtype=np.float64)
    if name == "scaled_linear":
        return np.linspace(math.sqrt(first), math.sqrt(last), steps, dtype=np.float64) ** 2
    if name == "squaredcos_cap_v2":
        fractions = np.arange(steps + 1, dtype=np.float64) / steps
        remaining = np.cos((fractions + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2
        return np.minimum(1 - remaining[1:] / remaining[:-1], _MAXIMUM_COSINE_BETA)
    raise UserError(
        f"The scheduler's beta_schedule {name!r} is not supported; use one of {', '.join(BETA_SCHEDULES)}."
    )


def noise_schedule_from_config(config: Mapping[str, Any]) -> NoiseSchedule:
    """The noise schedule described by diffusers' `scheduler_config.json`.

    Missing keys take diffusers' DDIM defaults: 1000 steps, linear betas from 0.0001 to 0.02, ε-prediction.

    Args:
        config: contents of the file.

    Returns:
        The schedule.

    Raises:
        UserError: the beta schedule or the prediction type is unknown, or a key would change the schedule in
            an unsupported way.
    """
    for key in ("trained_betas", "rescale_betas_zero_snr"):
        value = config.get(key)
        if value is not None and value is not False:
            raise UserError(
                f"The scheduler's {key} = {value!r} is not supported; "
                "use a model whose scheduler leaves it unset."
            )
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise UserError(
            f"The scheduler's prediction_type {prediction_type!r} is not supported; "
            f"use a model with one of {', '.join(PREDICTION_TYPES)}."
        )
    betas = _betas(
        config.get("beta_schedule", "linear"),
        float(config.get("beta_start", 1e-4)),
        float(config.get("beta_end", 0.02)),
        int(config.get("num_train_timesteps", 1000)),
    )
    # The product is computed in float64: a thousand float32 factors would lose two digits.
    return NoiseSchedule(
        alphas_cumprod=jnp.asarray(np.cumprod(1.0 - betas), jnp.float32), prediction_type=prediction_type
    )


def _signal_and_noise(
    schedule: NoiseSchedule, t: jax.Array | int, like: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """√ᾱ_t and √(1−ᾱ_t), shaped to broadcast against `like` (with a leading batch axis if `t` has one)."""
    # A plain index would take negative times, which some methods have, from the table's end.
    alphas = jnp.take(schedule.alphas_cumprod, jnp.asarray(t), mode="clip")
    alphas = alphas.reshape(alphas.shape + (1,) * (like.ndim - alphas.ndim)) if alphas.ndim else alphas
    return jnp.sqrt(alphas), jnp.sqrt(1.0 - alphas)


def add_noise(schedule: NoiseSchedule, x0: jax.Array, noise: jax.Array, t: jax.Array | int) -> jax.Array:
    """x_t = √ᾱ_t·x_0 + √(1−ᾱ_t)·ε, shaped as `x0`."""
    signal, sigma = _signal_and_noise(schedule, t, x0)
    return signal * x0 + sigma * noise


def velocity(schedule: NoiseSchedule, x0: jax.Array, noise: jax.Array, t: jax.Array | int) -> jax.Array:
    """v = √ᾱ_t·ε − √(1−ᾱ_t)·x_0, the target of a v-prediction network, shaped as `x0`."""
    signal, sigma = _signal_and_noise(schedule, t, x0)
    return signal * noise - sigma * x0


def epsilon_from_output(
    schedule: NoiseSchedule, output: jax.Array, x_t: jax.Array, t: jax.Array | int
) -> jax.Array:
    """The noise ε, whether the network's `output` is ε or v: ε = √ᾱ_t·v + √(1−ᾱ_t)·x_t."""
    if schedule.prediction_type == "epsilon":
        return output
    signal, sigma = _signal_and_noise(schedule, t, x_t)
    return signal * output + sigma * x_t


def predict_x0(schedule: NoiseSchedule, x_t: jax.Array, epsilon: jax.Array, t: jax.Array | int) -> jax.Array:
    """The clean sample implied by `x_t` and `epsilon`: (x_t − √(1−ᾱ_t)·ε)/√ᾱ_t."""
    signal, sigma = _signal_and_noise(schedule, t, x_t)
    return (x_t - sigma * epsilon) / signal


def ddim_step(
    schedule: NoiseSchedule, x_s: jax.Array, epsilon: jax.Array, s: jax.Array | int, t: jax.Array | int
) -> jax.Array:
    """Move `x_s` from time s to time t, up or down (η = 0; equations 2 and 14 of arXiv 2412.05929).

    x_t = √ᾱ_t·(x_s − √(1−ᾱ_s)·ε)/√ᾱ_s + √(1−ᾱ_t)·ε, with `epsilon` the prediction at (x_s, s).
    """
    return add_noise(schedule, predict_x0(schedule, x_s, epsilon, s), epsilon, t)
