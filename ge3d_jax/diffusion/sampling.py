"""Text-to-image sampling: DDIM with classifier-free guidance, from noise down to time 0."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.denoiser import Denoiser, classifier_free_epsilon
from ge3d_jax.diffusion.pipeline import StableDiffusion
from ge3d_jax.diffusion.schedule import STEPS_OFFSET, ddim_step


def sampling_times(schedule_steps: int, steps: int, spacing: str = "leading") -> np.ndarray:
    """Return the times at which DDIM evaluates the network, followed by 0: (steps + 1,), decreasing.

    Spacing follows diffusers' DDIMScheduler with `timestep_spacing`: "leading", multiples of T // steps, plus
    STEPS_OFFSET; "trailing", T / steps apart, down from T − 1; "linspace", evenly from T − 1 to 0. Sampling
    ends at ᾱ_0 (`set_alpha_to_one` false), which is time 0 here.

    Raises:
        UserError: the schedule does not have room for that many steps.
    """
    most = schedule_steps - STEPS_OFFSET if spacing == "leading" else schedule_steps
    if not 1 <= steps <= most:
        raise UserError(f"{steps} sampling steps do not fit; choose between 1 and {most}.")
    if spacing == "leading":
        times = np.arange(steps)[::-1] * (schedule_steps // steps) + STEPS_OFFSET
    elif spacing == "trailing":
        times = np.round(schedule_steps - np.arange(steps) * (schedule_steps / steps)) - 1
    else:
        times = np.round(np.linspace(schedule_steps - 1, 0, steps))
    return np.append(times, 0).astype(np.int32)


@partial(jax.jit, static_argnames="steps")
def _denoise(
    model: StableDiffusion,
    latents: jax.Array,
    text: jax.Array,
    negative: jax.Array,
    guidance: jax.Array,
    steps: int,
) -> jax.Array:
    times = jnp.asarray(sampling_times(model.schedule.steps, steps, model.schedule.timestep_spacing))
    denoiser = Denoiser(model, model.schedule, text.shape[0])

    def one_step(x: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        now, then = pair
        without, wanted = denoiser.predict_for(x, now, negative, text)
        epsilon = classifier_free_epsilon(without, wanted, guidance)
        return ddim_step(model.schedule, x, epsilon, now, then), None

    return jax.lax.scan(one_step, latents, (times[:-1], times[1:]))[0]


def sample(
    model: StableDiffusion,
    key: jax.Array,
    text: jax.Array,
    negative_text: jax.Array,
    *,
    steps: int,
    guidance_scale: float,
    latents: jax.Array | None = None,
) -> jax.Array:
    """Sample latents for texts by DDIM (η = 0) with classifier-free guidance, like StableDiffusionPipeline.

    Args:
        model: the model.
        key: draws the starting noise; unused when `latents` are given.
        text: (B, L, D) text embeddings.
        negative_text: (B, L, D), or (1, L, D) for all.
        steps: evaluations of the UNet.
        guidance_scale: s in ε_∅ + s·(ε_y − ε_∅); 1 is no guidance.
        latents: (B, h, w, C) starting noise of variance 1.

    Returns:
        (B, h, w, C) latents, for `decode_latents`.

    Raises:
        UserError: there are too many steps, or no latents for a model whose config does not give their size.
    """
    if latents is None:
        config = model.unet.config
        if config.sample_size is None:
            raise UserError("This model's unet/config.json has no sample_size; give the starting latents.")
        shape = (text.shape[0], config.sample_size, config.sample_size, config.in_channels)
        latents = jax.random.normal(key, shape)
    negative_text = jnp.broadcast_to(negative_text, text.shape)
    return _denoise(model, latents, text, negative_text, jnp.float32(guidance_scale), steps)
