"""Models with known ε, and tasks for them, in the current default precision.

A prediction depends smoothly on x, t and the text, or only on the text. Attention is not controlled, but the
attention maps of words have the expected place.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.diffusion.denoiser import Denoiser
from ge3d_jax.diffusion.networks.unet import UNetConfig
from ge3d_jax.editing.base import EditTask
from ge3d_jax.editing.control import no_blend, open_control
from tests.guidance import fakes

EDGE = 4
# Two levels, with attention at the second level.
UNET = UNetConfig(
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(32, 32),
)


def _of_text(model: dict[str, jax.Array], x: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
    words = jnp.einsum("bld,ldc->bc", text, model["text"])[:, None, None, :]
    return jnp.broadcast_to(words, x.shape)


def denoiser(pictures: int, *, knows_only_text: bool = False) -> Denoiser:
    """A model for P pictures; with `knows_only_text` its ODE is a straight line, exact for any step size."""
    return _denoiser(pictures, knows_only_text, jnp.result_type(float))


@functools.cache
def _denoiser(pictures: int, knows_only_text: bool, precision: Any) -> Denoiser:
    """Cached so that its callers are compiled only once; `precision` is the current default."""
    smooth = fakes.smooth_denoiser(pictures)
    predict = _of_text if knows_only_text else smooth.predict

    def controlled(model: Any, x: jax.Array, t: jax.Array, text: jax.Array, control: Any) -> Any:
        rows, edge = 2 * len(control.gate), EDGE >> control.map_level
        words = jnp.abs(text[-rows:, :, 0]) * jnp.abs(jnp.mean(x[-rows:], axis=(1, 2, 3)))[:, None]
        maps = jnp.broadcast_to(words[:, None, None, :], (rows, edge, edge, words.shape[-1]))
        return predict(model, x, t, text), maps

    return dataclasses.replace(smooth, predict=predict, predict_controlled=controlled)


def task(pictures: int, steps: int, *, seed: int = 0, same: bool = False) -> EditTask:
    """Random latents and texts of P pictures; `same`: the target is the source."""
    rng = np.random.default_rng(seed)

    def random(*shape: int, scale: float) -> jax.Array:
        return jnp.asarray(scale * rng.normal(size=shape), jnp.result_type(float))

    text = (pictures, fakes.TOKENS, fakes.WIDTH)
    source = random(*text, scale=0.3)
    target = source if same else random(*text, scale=0.3)
    return EditTask(
        random(pictures, EDGE, EDGE, fakes.CHANNELS, scale=1.0),
        source,
        target,
        random(*text[1:], scale=0.3),
        open_control(pictures, fakes.TOKENS, steps, UNET),
        no_blend(pictures, fakes.TOKENS, steps),
    )
