"""One iteration of GE3D seen on a single picture: up to a noise level and down again under another text.

Noising along the ODE keeps what the picture shows; denoising with the guided prediction edits it towards the text
(DDIM inversion and re-generation; equations 5–7, 14 and 15 of arXiv 2412.05929). No splats take part.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from ge3d_jax.diffusion.pipeline import StableDiffusion, decode_latents, encode_images, predict_epsilon
from ge3d_jax.errors import UserError
from ge3d_jax.guidance.prompts import classifier_free_epsilon
from ge3d_jax.guidance.trajectory import denoising_trajectory, noising_trajectory


@struct.dataclass
class Edit:
    """The nodes of both trajectories, decoded to pictures in [0, 1].

    node_times: (n + 1,) int32, ascending from 0.
    noising: (n + 1, H, W, 3), the given picture on its way up; the first is it, encoded and decoded.
    denoising: (n + 1, H, W, 3), on its way down; the first is the edited picture, the last the top again.
    """

    node_times: jax.Array
    noising: jax.Array
    denoising: jax.Array


@partial(jax.jit, static_argnames="guidance_scale")
def _edit(
    model: StableDiffusion,
    image: jax.Array,
    text: jax.Array,
    negative: jax.Array,
    node_times: jax.Array,
    guidance_scale: float,
) -> Edit:
    latent = encode_images(model, image[None], None)
    active = jnp.asarray(node_times.shape[0] - 1)

    def predict_empty(x: jax.Array, t: jax.Array) -> jax.Array:
        return predict_epsilon(model, x, t, negative[None])

    def predict_guided(x: jax.Array, t: jax.Array) -> jax.Array:
        both = predict_epsilon(model, jnp.concatenate([x, x]), t, jnp.stack([negative, text]))
        return classifier_free_epsilon(both[:1], both[1:], guidance_scale)

    # Without added noise: the whole way up is the ODE's, so the way down would retrace it at guidance 0.
    noised = noising_trajectory(
        predict_empty, model.schedule, latent, jnp.zeros_like(latent), node_times, active
    )
    denoised = denoising_trajectory(predict_guided, model.schedule, noised[-1], node_times, active)
    return Edit(
        node_times=node_times,
        noising=decode_latents(model, noised[:, 0]),
        denoising=decode_latents(model, denoised[:, 0]),
    )


def edit_image(
    model: StableDiffusion,
    image: jax.Array,
    text: jax.Array,
    negative: jax.Array,
    *,
    max_step: int,
    nodes: int,
    guidance_scale: float = 7.5,
) -> Edit:
    """Invert a picture up to the time `max_step` in `nodes` equal jumps, and generate it anew towards a text.

    Args:
        image: (H, W, 3) in [0, 1], of the size the model was trained on.
        text, negative: (L, D), embeddings of the wanted text and of ∅.
        max_step: top time, 1 … T − 1; higher changes more.
        nodes: jumps each way, at least 1 and at most `max_step`.
        guidance_scale: s.

    Raises:
        UserError: `max_step` or `nodes` out of range.
    """
    last = model.schedule.steps - 1
    if not 1 <= max_step <= last:
        raise UserError(f"The highest time max_step is {max_step}; the model's times go from 1 to {last}.")
    if not 1 <= nodes <= max_step:
        raise UserError(f"The number of nodes is {nodes}; give one from 1 to max_step ({max_step}).")
    node_times = jnp.round(jnp.linspace(0, max_step, nodes + 1)).astype(jnp.int32)
    return _edit(model, image, text, negative, node_times, guidance_scale=float(guidance_scale))
