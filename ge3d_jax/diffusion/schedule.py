"""The noise schedule, and a deterministic DDIM step between any two times.

Symbols: x_t = √ᾱ_t·x_0 + √(1−ᾱ_t)·ε, with ᾱ_t = `alphas_cumprod[t]` for the integer times t = 0 … T−1;
v = √ᾱ_t·ε − √(1−ᾱ_t)·x_0. Times are scalars or one per sample, (B,), and broadcast over the trailing axes.
Times outside 0 … T−1 are a caller error: under jit they are clamped to the range, as in JAX gathers.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.weights.config_files import SCHEDULER, read_settings

# `steps_offset` of the published schedulers: the last evaluation is at time 1 instead of 0.
STEPS_OFFSET = 1
# ᾱ at the end of a zero-terminal-SNR schedule: 0, except that we divide by its root; same as in diffusers.
_ALMOST_NOTHING = 2.0**-24
# The smallest ᾱ allowed in any other schedule; published ones end at 2e-9 and above.
_LEAST_ALPHA = 1e-12
# Sampler settings that we do not apply although they would change an image, and the values that would not.
_NOT_APPLIED = {"thresholding": False}
# Samplers of distilled models.
_FEW_STEPS = ("LCM", "TCD")

# The cosine schedule would let ᾱ reach 0 at its end; diffusers caps each beta at this value to prevent that.
_MAXIMUM_COSINE_BETA = 0.999
_COSINE_OFFSET = 0.008


@struct.dataclass
class NoiseSchedule:
    """How much of the signal remains at each time, and what the network predicts.

    Attributes:
        alphas_cumprod: (T,) float32, ᾱ_t, decreasing in t, within (0, 1).
        prediction_type: "epsilon" or "v_prediction".
        timestep_spacing: how a sampler spaces its times: "leading", "trailing", or "linspace".
    """

    alphas_cumprod: jax.Array
    prediction_type: str = struct.field(pytree_node=False, default="epsilon")
    timestep_spacing: str = struct.field(pytree_node=False, default="leading")

    @property
    def steps(self) -> int:
        """The number of times, T."""
        return self.alphas_cumprod.shape[0]


def _betas(name: str, first: float, last: float, steps: int) -> np.ndarray:
    if name == "linear":
        return np.linspace(first, last, steps, dtype=np.float64)
    if name == "scaled_linear":
        return np.linspace(math.sqrt(first), math.sqrt(last), steps, dtype=np.float64) ** 2
    fractions = np.arange(steps + 1, dtype=np.float64) / steps
    remaining = np.cos((fractions + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2
    return np.minimum(1 - remaining[1:] / remaining[:-1], _MAXIMUM_COSINE_BETA)


def _without_signal_at_the_end(alphas: np.ndarray) -> np.ndarray:
    """Shift √ᾱ to end at 0 and rescale it to start as before (algorithm 1 of arXiv 2305.08891); return ᾱ."""
    signal = np.sqrt(alphas)
    shifted = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    return np.maximum(shifted**2, _ALMOST_NOTHING)


def noise_schedule_from_config(config: Mapping[str, Any]) -> NoiseSchedule:
    """Build the noise schedule described by diffusers' `scheduler_config.json`.

    Missing keys take diffusers' DDIM defaults: 1000 steps, linear betas from 0.0001 to 0.02, ε-prediction.

    Args:
        config: the file's contents.

    Returns:
        The schedule.

    Raises:
        UserError: a setting is unknown, of the wrong type, or out of bounds, or settings are contradictory.

    Warns:
        UserWarning: a setting that would change the images is not applied.
    """
    kind = config.get("_class_name")
    if isinstance(kind, str) and "FlowMatch" in kind:
        raise UserError(
            f"The scheduler is {kind}, which belongs to models like Stable Diffusion 3 and FLUX; use a "
            "Stable Diffusion 1.x or 2.x model."
        )
    settings = read_settings("scheduler", config, used=SCHEDULER, ignored=None)
    prediction_type = settings.get("prediction_type", "epsilon")
    betas = np.array(settings.get("trained_betas", ()), np.float64)
    if not len(betas):
        betas = _betas(
            settings.get("beta_schedule", "linear"),
            settings.get("beta_start", 1e-4),
            settings.get("beta_end", 0.02),
            settings.get("num_train_timesteps", 1000),
        )
    # The product is computed in float64: a thousand float32 factors would lose two digits.
    alphas = np.cumprod(1.0 - betas)
    if settings.get("rescale_betas_zero_snr", False):
        if prediction_type != "v_prediction":
            raise UserError(
                f"scheduler config: rescale_betas_zero_snr = True is not supported with the prediction_type "
                f"{prediction_type}: at zero SNR, the noise says nothing about the image; it must be v."
            )
        alphas = _without_signal_at_the_end(alphas)
    elif alphas[-1] < _LEAST_ALPHA:
        raise UserError(
            f"scheduler config: betas up to {betas.max():g} leave {alphas[-1]:.1e} of an image after "
            f"{len(betas)} steps, which is too little to compute with; use the settings of a published model."
        )
    # A single call site for all callers: Python shows a warning once per location.
    for name, off in _NOT_APPLIED.items():
        if config.get(name, off) != off:
            warnings.warn(f"The scheduler's setting {name} is not applied.", stacklevel=1)
    if isinstance(kind, str) and kind.startswith(_FEW_STEPS):
        warnings.warn(
            f"The model is made for {kind}, with few steps and little guidance, but we sample it with DDIM.",
            stacklevel=1,
        )
    return NoiseSchedule(
        alphas_cumprod=jnp.asarray(alphas, jnp.float32),
        prediction_type=prediction_type,
        timestep_spacing=settings.get("timestep_spacing", "leading"),
    )


def _signal_and_noise(
    schedule: NoiseSchedule, t: jax.Array | int, like: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """√ᾱ_t and √(1−ᾱ_t), shaped to broadcast against `like` (with a leading batch axis if `t` has one)."""
    # Plain indexing would read negative times, which some methods have, from the end of the table.
    alphas = jnp.take(schedule.alphas_cumprod, jnp.asarray(t), mode="clip")
    alphas = alphas.reshape(alphas.shape + (1,) * (like.ndim - alphas.ndim)) if alphas.ndim else alphas
    return jnp.sqrt(alphas), jnp.sqrt(1.0 - alphas)


def add_noise(schedule: NoiseSchedule, x0: jax.Array, noise: jax.Array, t: jax.Array | int) -> jax.Array:
    """x_t = √ᾱ_t·x_0 + √(1−ᾱ_t)·ε, with the shape of `x0`."""
    signal, sigma = _signal_and_noise(schedule, t, x0)
    return signal * x0 + sigma * noise


def velocity(schedule: NoiseSchedule, x0: jax.Array, noise: jax.Array, t: jax.Array | int) -> jax.Array:
    """v = √ᾱ_t·ε − √(1−ᾱ_t)·x_0, the target of a v-prediction network, with the shape of `x0`."""
    signal, sigma = _signal_and_noise(schedule, t, x0)
    return signal * noise - sigma * x0


def epsilon_from_output(
    schedule: NoiseSchedule, output: jax.Array, x_t: jax.Array, t: jax.Array | int
) -> jax.Array:
    """Convert the network's `output` to ε: unchanged if it is ε, else ε = √ᾱ_t·v + √(1−ᾱ_t)·x_t."""
    if schedule.prediction_type == "epsilon":
        return output
    signal, sigma = _signal_and_noise(schedule, t, x_t)
    return signal * output + sigma * x_t


def predict_x0(schedule: NoiseSchedule, x_t: jax.Array, epsilon: jax.Array, t: jax.Array | int) -> jax.Array:
    """Return the clean sample implied by `x_t` and `epsilon`: (x_t − √(1−ᾱ_t)·ε)/√ᾱ_t."""
    signal, sigma = _signal_and_noise(schedule, t, x_t)
    return (x_t - sigma * epsilon) / signal


def ddim_step(
    schedule: NoiseSchedule, x_s: jax.Array, epsilon: jax.Array, s: jax.Array | int, t: jax.Array | int
) -> jax.Array:
    """Move `x_s` from time s to time t, up or down (η = 0; equations 2 and 14 of arXiv 2412.05929).

    x_t = √ᾱ_t·(x_s − √(1−ᾱ_s)·ε)/√ᾱ_s + √(1−ᾱ_t)·ε, with `epsilon` the prediction at (x_s, s).
    """
    return add_noise(schedule, predict_x0(schedule, x_s, epsilon, s), epsilon, t)
