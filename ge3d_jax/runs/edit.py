"""One GE3D iteration on a single image: noising up to a given time, then denoising with a different prompt.

Noising along the ODE preserves the content of the image; denoising with the guided prediction edits it toward
the prompt (DDIM inversion and regeneration; equations 5–7, 14 and 15 of arXiv 2412.05929). No splats are
involved.
"""

import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ge3d_jax.core.caching import keep_compiled_code
from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.denoiser import Denoiser, classifier_free_epsilon
from ge3d_jax.diffusion.pipeline import (
    StableDiffusion,
    decode_latents,
    encode_images,
    encode_text,
)
from ge3d_jax.formats.pictures import load_image
from ge3d_jax.guidance.prompts import embed_prompt, view_texts
from ge3d_jax.guidance.trajectories import denoising_trajectory, noising_trajectory
from ge3d_jax.runs.edit_by_method import SOURCE_POLAR_DEGREES, draw_source
from ge3d_jax.runs.edit_folder import edit_folder
from ge3d_jax.runs.folder import prepare_folder, slug, versions, write_json
from ge3d_jax.runs.model_choice import FilePath, ModelChoice
from ge3d_jax.runs.request import (
    check_finite,
    check_negative_prompt,
    check_prompt,
    knows_overhead,
    picture_size,
)
from ge3d_jax.toybox.world.captions import parse
from ge3d_jax.viewer.sheet import SMALLEST_PICTURE, enlarge, image_grid, save_png, to_uint8


@struct.dataclass
class Edit:
    """The nodes of both trajectories, decoded to images in [0, 1].

    Attributes:
        node_times: (n + 1,) int32, ascending from 0.
        noising: (n + 1, H, W, 3), the noising trajectory; the first image is the input, encoded and decoded.
        denoising: (n + 1, H, W, 3), the denoising trajectory, in the same order: the first image is the
            edited one, and the last is its starting point, the top of the noising trajectory.
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

    denoiser = Denoiser(model, model.schedule, 1)

    def predict_empty(x: jax.Array, t: jax.Array) -> jax.Array:
        (epsilon,) = denoiser.predict_for(x, t, negative)
        return epsilon

    def predict_guided(x: jax.Array, t: jax.Array) -> jax.Array:
        empty, wanted = denoiser.predict_for(x, t, negative, text)
        return classifier_free_epsilon(empty, wanted, guidance_scale)

    # Without added noise, noising follows the ODE, so that denoising at guidance 0 would retrace it.
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
    """Invert an image up to the time `max_step` in `nodes` equal steps, and regenerate it toward a prompt.

    Args:
        model: the model.
        image: (H, W, 3) in [0, 1], of the size that the model was trained on.
        text: (L, D) embedding of the prompt.
        negative: (L, D) embedding of ∅.
        max_step: highest time, 1 to T − 1; higher values change more.
        nodes: number of steps in each direction, 1 to `max_step`.
        guidance_scale: s in ε_∅ + s·(ε_y − ε_∅).

    Returns:
        Both trajectories.

    Raises:
        UserError: `max_step` or `nodes` is out of range.
    """
    last = model.schedule.steps - 1
    if not 1 <= max_step <= last:
        raise UserError(f"max_step is {max_step}, but the model's times are 1 to {last}; choose one of them.")
    if not 1 <= nodes <= max_step:
        raise UserError(f"The number of nodes is {nodes}; give one from 1 to max_step ({max_step}).")
    node_times = jnp.round(jnp.linspace(0, max_step, nodes + 1)).astype(jnp.int32)
    return _edit(model, image, text, negative, node_times, guidance_scale=float(guidance_scale))


def edit_2d(
    prompt: str,
    *,
    image: str | os.PathLike[str] | None = None,
    source_prompt: str | None = None,
    azimuth_degrees: float = 30.0,
    model: ModelChoice | FilePath | None = None,
    negative_prompt: str = "",
    max_step: int = 600,
    nodes: int = 6,
    guidance_scale: float = 7.5,
    out: str | os.PathLike[str] | None = None,
) -> Path:
    """Edit an image with one GE3D iteration, and write both trajectories as an image.

    Args:
        prompt: what the edited image should show.
        image: file of the image to edit; give either this or `source_prompt`.
        source_prompt: a sentence of the Toybox world whose ground truth is rendered from `azimuth_degrees`
            and edited; `prompt` then gets the phrase for that view appended, as for the views of an object.
        azimuth_degrees: azimuth of the camera for `source_prompt`, 0 = front.
        model: a `ModelChoice`, or the location of the model; None means the bundled model.
        negative_prompt: what the image should not show.
        max_step: see `edit_image`.
        nodes: see `edit_image`.
        guidance_scale: see `edit_image`.
        out: output folder; None means outputs/edit-<prompt>.

    Returns:
        The folder, with nodes.png, edited.png, source.png, and config.json.

    Raises:
        UserError: an input is invalid.
    """
    keep_compiled_code()
    if (image is None) == (source_prompt is None):
        raise UserError(
            "Both or neither of image and source_prompt are given; give one of them as the picture to edit."
        )
    choice = ModelChoice.of(model)
    place = choice.check()
    check_prompt(prompt, place)
    check_negative_prompt(negative_prompt, place)
    if source_prompt is not None:
        parse(source_prompt)
    folder = prepare_folder(out if out is not None else Path("outputs") / f"edit-{slug(prompt)}")
    diffusion = choice.load(place)
    size = picture_size(diffusion, None)

    if source_prompt is not None:
        source = draw_source(source_prompt, azimuth_degrees, size)
        views = embed_prompt(
            partial(encode_text, diffusion),
            prompt,
            negative_prompt=negative_prompt,
            use_overhead=knows_overhead(place),
        )
        azimuth, polar = jnp.deg2rad(jnp.array([[azimuth_degrees], [SOURCE_POLAR_DEGREES]]))
        text = view_texts(views, azimuth, use_perp_neg=False, polar=polar).positive[0]
        negative = views.negative
    else:
        assert image is not None
        source = jnp.asarray(load_image(image, size=size))
        text, negative = encode_text(diffusion, [prompt, negative_prompt])

    edit = edit_image(
        diffusion, source, text, negative, max_step=max_step, nodes=nodes, guidance_scale=guidance_scale
    )
    drawn = np.concatenate([edit.noising, edit.denoising])
    check_finite(drawn, place)
    with edit_folder(folder):
        write_json(
            folder / "config.json",
            {
                "prompt": prompt,
                "image": str(image) if image is not None else None,
                "source_prompt": source_prompt,
                "azimuth_degrees": azimuth_degrees if source_prompt is not None else None,
                **choice.describe(),
                "negative_prompt": negative_prompt,
                "max_step": max_step,
                "nodes": nodes,
                "guidance_scale": guidance_scale,
                "versions": versions(),
            },
        )
        times = [int(t) for t in edit.node_times]
        pictures = [enlarge(picture, minimum=SMALLEST_PICTURE) for picture in to_uint8(drawn)]
        labels = [f"up, t = {t}" for t in times] + [f"down, t = {t}" for t in times]
        save_png(folder / "nodes.png", image_grid(pictures, labels, columns=len(times)))
        save_png(folder / "edited.png", pictures[len(times)])
        save_png(folder / "source.png", enlarge(to_uint8(np.asarray(source)), minimum=SMALLEST_PICTURE))
    return folder
