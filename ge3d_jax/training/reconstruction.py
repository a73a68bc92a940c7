"""The reconstruction stage: edit fixed views of the scene once, then fit the scene to the edits.

The edit of a view is the endpoint x̂_0 of GE3D's denoising trajectory from the view's latent, whichever loss
ran before: the many steps of the trajectory are taken once per view instead of in every iteration. The fit
uses the task for posed images, `Photometric`.
"""

import dataclasses
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.random import Draws
from ge3d_jax.diffusion.denoiser import Denoiser
from ge3d_jax.diffusion.pipeline import (
    decode_latents,
    encode_posterior,
    latents_from_posterior,
    with_attention_chunk,
)
from ge3d_jax.guidance.base import DrawKeys, Progress
from ge3d_jax.guidance.prompts import view_texts
from ge3d_jax.scenes.clone_and_split import CloneAndSplit
from ge3d_jax.splatting.cameras import Camera, orbit_camera, polar_angles
from ge3d_jax.training.config import BackgroundConfig, Config
from ge3d_jax.training.distillation import Distillation, Prompted, latent_shape
from ge3d_jax.training.fit_config import FitConfig, FitLossConfig
from ge3d_jax.training.photometric import Views
from ge3d_jax.training.reconstruction_config import Reconstruction
from ge3d_jax.training.state import TrainState, initial_state

# Folded into the run's key for all random values of the stage; no iteration number reaches it.
_STAGE_STREAM = 2**31 - 3

# Polar angles and azimuths (V,), radians.
Angles = tuple[np.ndarray, np.ndarray]


def _around(polar_degrees: float, count: int, *, shift: float = 0.0) -> Angles:
    """Space `count` cameras evenly at one polar angle, the first one `shift` steps from the front."""
    azimuth = (np.arange(count) + shift) * (2 * np.pi / count)
    return np.full(count, np.deg2rad(polar_degrees)), azimuth


def _joined(rings: list[Angles]) -> Angles:
    polar, azimuth = (np.concatenate(parts) for parts in zip(*rings, strict=True))
    return polar, azimuth


def ring_angles(settings: Reconstruction) -> Angles:
    """Return the angles of the fixed cameras, ring by ring."""
    return _joined([_around(polar, count) for polar, count in settings.rings])


def held_out_angles(settings: Reconstruction) -> Angles:
    """Return the angles of the evaluation cameras: midway between rings, or on the ring if there is one."""
    polars = sorted(polar for polar, _ in settings.rings)
    middles = [(low + high) / 2 for low, high in zip(polars[:-1], polars[1:], strict=True)] or polars
    each = -(-settings.held_out // len(middles))
    return _joined([_around(polar, each, shift=0.5) for polar in middles])


def cameras_at(config: Config, angles: Angles) -> Camera:
    """Return a batch of the stage's cameras at the given angles."""
    settings = config.reconstruction
    radius = settings.radius_share * float(np.mean(config.cameras.radius_end))

    def one(polar: jax.Array, azimuth: jax.Array) -> Camera:
        return orbit_camera(
            azimuth=azimuth,
            polar=polar,
            radius=radius,
            fov=settings.fov_radians,
            size=config.image_size,
        )

    return jax.vmap(one)(*(jnp.asarray(angle, jnp.float32) for angle in angles))


def stage_keys(state: TrainState) -> tuple[jax.Array, jax.Array]:
    """Return the PRNG keys of the edits and of the fit, for a distillation that ended with `state`."""
    edit_key, fit_key = jax.random.split(jax.random.fold_in(state.key, _STAGE_STREAM))
    return edit_key, fit_key


@partial(jax.jit, static_argnames="task")
def _edit(
    scene: Any,
    iteration: jax.Array,
    context: Prompted,
    cameras: Camera,
    azimuth: jax.Array,
    drawn: Draws,
    *,
    task: Distillation,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the edited images (B, H, W, 3), the buffer size needed, and its shortfall, () each."""
    config, views = task.config, azimuth.shape[0]
    model = with_attention_chunk(context.model, config.attention_chunk)
    backgrounds = jnp.broadcast_to(jnp.asarray(config.background.color), (views, 3))
    perturbations = config.scene.perturbations(scene, views)
    renders = config.scene.render(scene, iteration, cameras, backgrounds, None, perturbations)
    latents = latents_from_posterior(model, *encode_posterior(model, renders.rgb), None)
    text = view_texts(
        context.embeddings,
        azimuth,
        use_perp_neg=config.prompts.use_perp_neg,
        weight=config.prompts.perp_neg_weight,
        rule=config.prompts.perp_neg_rule,
        polar=polar_angles(cameras),
    )
    denoiser = Denoiser(model, model.schedule, views, task.predict)
    _, denoised = config.reconstruction.editor.trajectories(latents, text, drawn, denoiser)
    return decode_latents(model, denoised[0]), jnp.max(renders.needed), jnp.max(renders.overflow)


def draw_edits(task: Distillation, state: TrainState, context: Prompted, views: int) -> Draws:
    """Draw the nodes, shared by all views so that the edits are alike, and the noise of each view."""
    times_key, noise_key = jax.random.split(stage_keys(state)[0])
    total = task.iterations
    shape = (views, *latent_shape(context.model, task.config.image_size))
    keys = DrawKeys(times=times_key, noise=noise_key, run=state.key)
    return task.config.reconstruction.editor.draw(keys, Progress(total, total), shape)


def edited_views(
    task: Distillation, state: TrainState, context: Prompted, cameras: Camera, azimuth: np.ndarray
) -> np.ndarray:
    """Return the model's edits of the renders, float32 (V, H, W, 3) in [0, 1], batched as in a run.

    Args:
        task: the distillation, with the buffers that its scene has grown to.
        state: at the end of the distillation.
        context: the model and the prompt.
        cameras: batch of V.
        azimuth: of the cameras, (V,) radians.
    """
    views, at_a_time = len(azimuth), task.config.views_per_pass
    # The object as it is shown: the opacities may have been reset a moment ago.
    # Only splats are edited in views; see `stage_config`.
    shown = task.scene.shown(state.scene, int(state.iteration))
    scene = dataclasses.replace(state.scene, gaussians=shown)
    drawn = draw_edits(task, state, context, views)
    batch = (cameras, jnp.asarray(azimuth, jnp.float32), drawn.per_view)
    pictures: list[np.ndarray] = []
    while len(pictures) < views:
        # The last view is repeated to fill the last batch, so that one compiled program serves all.
        chosen = np.minimum(len(pictures) + np.arange(at_a_time), views - 1)
        some_cameras, some_azimuth, noise = jax.tree.map(itemgetter(chosen), batch)
        edited, needed, overflow = _edit(
            scene,
            state.iteration,
            context,
            some_cameras,
            some_azimuth,
            Draws(drawn.shared, noise),
            task=task,
        )
        if int(overflow) > 0:
            task = task.grown(int(needed))
            continue
        pictures.extend(np.asarray(edited, np.float32))
    return np.stack(pictures[:views])


def as_views(pictures: np.ndarray, cameras: Camera) -> Views:
    """Package opaque images (V, H, W, 3) in [0, 1] and their cameras for a fit; lengths in world units."""
    bytes_of = np.round(np.clip(pictures, 0.0, 1.0) * 255.0).astype(np.uint8)
    opaque = np.full((*bytes_of.shape[:3], 1), 255, np.uint8)
    pixels = np.concatenate([bytes_of, opaque], axis=-1)
    return Views(jnp.asarray(pixels), cameras.world_to_camera, cameras.intrinsics[0])


def stage_config(config: Config) -> FitConfig:
    """Return the fit's settings: the run's scene with other learning rates and density control schedule."""
    settings, scene = config.reconstruction, config.scene
    # Any scene of splats has these fields, and no other kind of scene can be fitted.
    changeable: Any = scene
    density = dataclasses.replace(
        changeable.density,
        every=settings.densify_every,
        first=settings.densify_every,
        last=settings.densify_until,
    )
    if isinstance(density, CloneAndSplit):
        density = dataclasses.replace(density, gradient_threshold=settings.densify_threshold, reset_every=0)
    return FitConfig(
        iterations=settings.steps,
        views=settings.views_per_step,
        background=BackgroundConfig(config.background.color, replaced=0.0),
        loss=FitLossConfig(dssim=0.0, squared=True, weight=settings.loss_weight),
        scene=dataclasses.replace(
            changeable,
            scale_noise=0.0,
            scale_penalty=0.0,
            # The stage counts its own iterations; the color's bands must not be delayed again.
            sh_every=0,
            learning_rates=settings.rates,
            density=density,
        ),
    )


def begin_stage(config: FitConfig, state: TrainState, shown: Any) -> TrainState:
    """Create the state before the stage's first step, with a fresh Adam.

    Args:
        config: of the fit.
        state: at the end of the distillation.
        shown: the object at that point.
    """
    _, key = stage_keys(state)
    scene = config.scene.begin(key, shown)
    return initial_state(scene, config.scene.parameters(scene), key)
