"""Figure 2: one picture edited again and again, each time to where a loss wants it.

Symbols: z, latent of the picture; g(z), a loss's residual; n, how many residuals lead to what it wants, so that
an edit is z ← z − n·g(z). For SDS that is z ← x̂_0 of one noised state (w(t) = r_t, n = 1), for GE3D the mean
over its nodes of what each wants.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.random import Draws
from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from ge3d_jax.diffusion.pipeline import StableDiffusion, decode_latents, encode_images, encode_text
from ge3d_jax.diffusion.sampling import sample
from ge3d_jax.guidance.base import DrawKeys, Loss, Progress, SeenViews
from ge3d_jax.guidance.ge3d import GE3D
from ge3d_jax.guidance.prompts import embed_prompt, view_texts
from ge3d_jax.guidance.sds import SDS
from ge3d_jax.guidance.times import UniformTimes
from ge3d_jax.guidance.trajectories import Nodes

POLAR_DEGREES = 70.0


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to edit.

    Attributes:
        name: for people.
        loss: says how the latent is to change.
        steps: n.
    """

    name: str
    loss: Loss
    steps: float


@jax.jit
def _encode(model: StableDiffusion, pictures: jax.Array) -> jax.Array:
    return encode_images(model, pictures, None)


_decode = jax.jit(decode_latents)


def edited_latents(
    model: StableDiffusion, latents: jax.Array, text: ViewTexts, way: Way, *, key: jax.Array, edits: int
) -> jax.Array:
    """Edit latents again and again."""
    denoiser = Denoiser(model, model.schedule, latents.shape[0])
    return _edit(denoiser, latents, text, key, loss=way.loss, steps=way.steps, edits=edits)


@partial(jax.jit, static_argnames=("loss", "steps", "edits"))
def _edit(denoiser, latents, text, key, *, loss, steps, edits):
    def one(z, k):
        times, noise = jax.random.split(jax.random.fold_in(key, k))
        progress = Progress(k, edits)
        drawn = loss.draw(DrawKeys(times=times, noise=noise, run=key), progress, z.shape)

        def ask(z):
            scalar, _ = loss((), SeenViews(z, None, 1), text, drawn, denoiser, progress)
            return scalar

        moved = z - steps * jax.grad(ask)(z)
        return moved, moved

    return jax.lax.scan(one, latents, jnp.arange(edits))[1]
