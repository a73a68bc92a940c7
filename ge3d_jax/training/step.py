"""One iteration of GE3D: cameras → render → latent → both trajectories → residual → gradient → Adam.

The one place where the splats and the diffusion model meet. `ge3d_step` is pure and takes everything random
as `StepInputs`; `make_step` draws those and compiles the whole into one function.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from ge3d_jax.core.devices import replicated, sharded
from ge3d_jax.diffusion.pipeline import (
    StableDiffusion,
    encode_posterior,
    latents_from_posterior,
    predict_epsilon,
    with_attention_chunk,
)
from ge3d_jax.guidance.ge3d import Residual, dbc_weights, ge3d_residual
from ge3d_jax.guidance.prompts import (
    ViewEmbeddings,
    classifier_free_epsilon,
    perp_neg_embeddings,
    perp_neg_epsilon,
)
from ge3d_jax.guidance.trajectories import denoising_trajectory, noising_trajectory
from ge3d_jax.scenes.density_control import density_penalty
from ge3d_jax.splatting.cameras import Camera
from ge3d_jax.splatting.gaussians import Gaussians, mean_scale
from ge3d_jax.splatting.rasterize import Rendered, render
from ge3d_jax.training.cameras import StepInputs, sample_inputs
from ge3d_jax.training.compilation import Compilation, compilation_of
from ge3d_jax.training.config import Config
from ge3d_jax.training.optimizer import Parameters, parameters_of
from ge3d_jax.training.state import TrainState
from ge3d_jax.training.update import update


@struct.dataclass
class Metrics:
    """Scalars of one iteration.

    Attributes:
        loss: Σ_i ω_i·‖x_{t_i} − x̂_{t_i}‖², averaged over the views.
        gradient_norm: of the residual handed to the latents.
        active_nodes: jumps made, int32.
        splats: splats in use, int32.
        intersections: greatest number that a view's buffer had to hold, int32.
        overflow: by how many it was too small, int32; above 0 the iteration was not accepted.
    """

    loss: jax.Array
    gradient_norm: jax.Array
    active_nodes: jax.Array
    splats: jax.Array
    intersections: jax.Array
    overflow: jax.Array


Step = Callable[[TrainState, StableDiffusion, ViewEmbeddings], tuple[TrainState, Metrics]]


def latent_shape(model: StableDiffusion, image_size: int) -> tuple[int, int, int]:
    """(h, w, C) of the latent of a square image."""
    vae = model.vae.config
    edge = image_size // vae.downscale
    return edge, edge, vae.latent_channels


def render_views(
    gaussians: Gaussians, inputs: StepInputs, screen_offsets: jax.Array, *, buffer_capacity: int
) -> Rendered:
    """All views of an iteration, before the flip: every field of Rendered with a leading axis of B.

    Args:
        screen_offsets: (B, N, 2) zeros, whose gradient is the screen-space gradient in pixels.
    """

    def one(camera: Camera, background: jax.Array, offsets: jax.Array, factors: jax.Array) -> Rendered:
        return render(
            gaussians,
            camera,
            background=background,
            buffer_capacity=buffer_capacity,
            screen_offsets=offsets,
            scale_multiplier=factors,
        )

    factors = jnp.maximum(1.0 + inputs.scale_noise, 0.0)
    return jax.vmap(one)(inputs.cameras, inputs.backgrounds, screen_offsets, factors)


def total_variation(images: jax.Array) -> jax.Array:
    """2·(mean squared horizontal + vertical difference) of images (B, H, W, 3)."""
    horizontal = jnp.mean(jnp.diff(images, axis=2) ** 2)
    vertical = jnp.mean(jnp.diff(images, axis=1) ** 2)
    return 2.0 * (horizontal + vertical)


def _in_turn(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """`function` of arrays with a leading axis of views, computed for `count` views at a time."""

    def all_views(*arrays: jax.Array) -> Any:
        if arrays[0].shape[0] == count:
            return function(*arrays)
        groups = [array.reshape(-1, count, *array.shape[1:]) for array in arrays]
        results = jax.lax.map(lambda group: function(*group), groups)
        return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), results)

    return all_views


def _at_a_time(config: Config, share: int) -> int:
    """How many of a device's share of the views go through the networks at a time."""
    return config.views_per_pass * share // config.views


def trajectory_residual(
    model: StableDiffusion,
    embeddings: ViewEmbeddings,
    inputs: StepInputs,
    z: jax.Array,
    iteration: jax.Array | int,
    *,
    config: Config,
) -> Residual:
    """Carry the latents up and down the time nodes and compare (B, h, w, C).

    The branches of the guided prediction (∅, the view's text, and with Perp-Neg two views to avoid) go
    through the UNet in one batch: 2 or 4 samples for each of the views that go through at a time.
    """
    guidance = config.guidance

    def trajectories(
        z: jax.Array, noise: jax.Array, positive: jax.Array, negatives: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def for_all(embedding: jax.Array) -> jax.Array:
            return jnp.broadcast_to(embedding, (z.shape[0], *embedding.shape))

        branches = [for_all(embeddings.negative), positive]
        if guidance.use_perp_neg:
            branches += [negatives[:, 0], negatives[:, 1]]
        text = jnp.concatenate(branches)
        noising_text = for_all(embeddings.noising)

        def predict_plain(x: jax.Array, t: jax.Array) -> jax.Array:
            return predict_epsilon(model, x, t, noising_text)

        def predict_guided(x: jax.Array, t: jax.Array) -> jax.Array:
            batch = jnp.concatenate([x] * len(branches))
            empty, wanted, *avoided = jnp.split(predict_epsilon(model, batch, t, text), len(branches))
            if not avoided:
                return classifier_free_epsilon(empty, wanted, guidance.scale)
            return perp_neg_epsilon(empty, wanted, jnp.stack(avoided, axis=1), weights, guidance.scale)

        nodes = (inputs.node_times, inputs.active)
        noised = noising_trajectory(predict_plain, model.schedule, z, noise, *nodes)
        denoised = denoising_trajectory(predict_guided, model.schedule, noised[-1], *nodes)
        # The views lead, as `_in_turn` needs it.
        return noised.swapaxes(0, 1), denoised.swapaxes(0, 1)

    texts = perp_neg_embeddings(embeddings, inputs.azimuth, weight=guidance.perp_neg_weight)
    states = _in_turn(trajectories, _at_a_time(config, z.shape[0]))(z, inputs.noise, *texts)
    noised, denoised = (of_views.swapaxes(0, 1) for of_views in states)
    balance = dbc_weights(
        iteration, config.iterations, config.nodes.count, inputs.active, width=guidance.dbc_width
    )
    return ge3d_residual(z, noised, denoised, balance, strength=config.loss.residual)


def views_encoder(
    model: StableDiffusion, *, config: Config
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """The VAE's `encode_posterior` for views (B, H, W, 3), as many at a time as the settings say."""
    encode = partial(encode_posterior, model)

    def encode_views(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        at_a_time = 1 if config.vae_rematerialise else _at_a_time(config, images.shape[0])
        if at_a_time == images.shape[0]:
            return encode(images)
        # Else a loop over the views would keep for the gradient what all of them computed.
        return _in_turn(jax.checkpoint(encode, prevent_cse=False), at_a_time)(images)

    return encode_views


def _gradients(
    gaussians: Gaussians,
    iteration: jax.Array,
    model: StableDiffusion,
    embeddings: ViewEmbeddings,
    inputs: StepInputs,
    *,
    config: Config,
    buffer_capacity: int,
    axis: str | None,
) -> tuple[Parameters, jax.Array, jax.Array, Metrics]:
    """What an iteration finds out about the views of this device.

    axis: of the mesh whose devices share the views, None for one that has all.
    Returns the gradients, summed over the devices; of its own views the screen gradients (B, N, 2) and the
    radii (B, N); the metrics of all views.
    """
    encode = views_encoder(model, config=config)
    views = inputs.azimuth.shape[0]
    share = views / config.views

    def objective(
        parameters: Parameters, screen_offsets: jax.Array
    ) -> tuple[jax.Array, tuple[Residual, Rendered]]:
        changed = dataclasses.replace(gaussians, **parameters)
        rendered = render_views(changed, inputs, screen_offsets, buffer_capacity=buffer_capacity)
        images = jnp.where(inputs.flip, rendered.rgb[:, :, ::-1], rendered.rgb)
        z = latents_from_posterior(model, *encode(images), inputs.posterior_noise)
        residual = trajectory_residual(
            model, embeddings, inputs, jax.lax.stop_gradient(z), iteration, config=config
        )
        # A surrogate whose gradient with respect to z is the residual, summed over pixels.
        loss = jnp.sum(jax.lax.stop_gradient(residual.gradient) * z)
        # These do not grow with the views: every device adds its share.
        loss += share * config.loss.total_variation * total_variation(images)
        loss += share * config.loss.scale * mean_scale(changed)
        loss += share * density_penalty(changed, config=config.density)
        return loss, (residual, rendered)

    screen_offsets = jnp.zeros((views, gaussians.capacity, 2))
    (gradients, screen_gradients), (residual, rendered) = jax.grad(objective, argnums=(0, 1), has_aux=True)(
        parameters_of(gaussians), screen_offsets
    )
    loss, square_norm = share * residual.loss, jnp.sum(residual.gradient**2)
    intersections, overflow = jnp.max(rendered.intersections), jnp.max(rendered.overflow)
    if axis is not None:
        gradients, loss, square_norm = jax.lax.psum((gradients, loss, square_norm), axis)
        intersections, overflow = jax.lax.pmax((intersections, overflow), axis)
    metrics = Metrics(
        loss=loss,
        gradient_norm=jnp.sqrt(square_norm),
        active_nodes=inputs.active,
        splats=jnp.sum(gaussians.mask),
        intersections=intersections,
        overflow=overflow,
    )
    return gradients, screen_gradients, rendered.radii, metrics


def ge3d_step(
    state: TrainState,
    model: StableDiffusion,
    embeddings: ViewEmbeddings,
    inputs: StepInputs,
    *,
    config: Config,
    buffer_capacity: int,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Metrics]:
    """One iteration with everything random given; pure, and may be vmapped over `state` and `inputs`.

    Where a view's intersections overflow the buffer the state comes back as it was: the caller repeats the
    iteration with a larger buffer. The devices of a `mesh` each take their share of the views, which must
    divide among them, all the way there and back.
    """
    model = with_attention_chunk(model, config.attention_chunk)
    axis = None if mesh is None else mesh.axis_names[0]
    look: Callable[..., Any] = partial(_gradients, config=config, buffer_capacity=buffer_capacity, axis=axis)
    if mesh is not None:
        own, shared = sharded(mesh).spec, replicated(mesh).spec
        # Not left to the compiler: it cannot divide the rasterizer's loops, and has every device render all.
        look = jax.shard_map(
            look,
            mesh=mesh,
            in_specs=(shared, shared, shared, shared, StepInputs.each(own=own, shared=shared)),
            out_specs=(shared, own, own, shared),
            # Gradients of shared values stay each device's own until they are summed.
            check_vma=False,
        )
    gradients, screen_gradients, radii, metrics = look(
        state.gaussians, state.iteration, model, embeddings, inputs
    )
    stepped = update(
        state,
        gradients,
        screen_gradients,
        radii,
        inputs.exploration_key,
        is_accepted=metrics.overflow == 0,
        progress=state.iteration.astype(jnp.float32) / config.iterations,
        image_size=config.image_size,
        optimizer=config.optimizer,
        density=config.density,
    )
    return stepped, metrics


def inputs_of(state: TrainState, model: StableDiffusion, config: Config) -> StepInputs:
    """What chance decides in the iteration `state` stands before: a function of its key and iteration."""
    return sample_inputs(
        jax.random.fold_in(state.key, state.iteration),
        config,
        state.iteration,
        latent_shape=latent_shape(model, config.image_size),
        capacity=state.gaussians.capacity,
    )


@partial(jax.jit, static_argnames=("config", "buffer_capacity", "mesh"), donate_argnums=0)
def _step(
    state: TrainState,
    model: StableDiffusion,
    embeddings: ViewEmbeddings,
    *,
    config: Config,
    buffer_capacity: int,
    mesh: Mesh | None,
) -> tuple[TrainState, Metrics]:
    inputs = inputs_of(state, model, config)
    result = ge3d_step(
        state, model, embeddings, inputs, config=config, buffer_capacity=buffer_capacity, mesh=mesh
    )
    # The next iteration must find the state placed as this one did, or it would be compiled again.
    return result if mesh is None else jax.lax.with_sharding_constraint(result, replicated(mesh))


def make_step(
    config: Config,
    buffer_capacity: int,
    mesh: Mesh | None = None,
    *,
    on_compiled: Callable[[Compilation], None] | None = None,
) -> Step:
    """One iteration as one compiled function. It donates the state it is given: use the returned one only.

    It is compiled at its first call, and again where the buffer of splats has grown since.

    Args:
        config: all settings, static.
        buffer_capacity: intersections that one view's buffer holds, static.
        mesh: devices that share the networks' work; state, model and embeddings must lie on all of them.
        on_compiled: told of each compilation, before what it compiled runs.
    """
    # The setting says only where the buffer starts: runs that reach the same size share compiled code.
    config = dataclasses.replace(config, buffer_capacity=buffer_capacity)
    programs: dict[int, jax.stages.Compiled] = {}

    def step(
        state: TrainState, model: StableDiffusion, embeddings: ViewEmbeddings
    ) -> tuple[TrainState, Metrics]:
        capacity = state.gaussians.capacity
        if capacity not in programs:
            begun = time.monotonic()
            lowered = _step.lower(
                state, model, embeddings, config=config, buffer_capacity=buffer_capacity, mesh=mesh
            )
            # The splats grow and never shrink: a program for fewer is done with.
            programs.clear()
            programs[capacity] = lowered.compile()
            if on_compiled is not None:
                devices = 1 if mesh is None else mesh.size
                on_compiled(compilation_of(programs[capacity], time.monotonic() - begun, devices))
        return programs[capacity](state, model, embeddings)

    return step
