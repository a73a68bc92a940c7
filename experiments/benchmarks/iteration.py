"""Timing our whole iteration: rendering, encoding, both trajectories, the backward pass, Adam."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ge3d_jax.scenes.density_control import grown_capacity
from ge3d_jax.training.loop import begin

from benchmarks.measure import Measurement
from benchmarks.models import Size, random_model
from benchmarks.networks import UNET_FORWARD, VAE_GRADIENT, work_flop
from ge3d_jax.core.devices import batch_mesh, replicated
from ge3d_jax.core.errors import UserError
from ge3d_jax.guidance.prompts import ViewEmbeddings, embed_views
from ge3d_jax.training.compilation import Compilation
from ge3d_jax.training.config import Config
from ge3d_jax.training.state import TrainState
from ge3d_jax.training.step import make_step

ITERATION = "iteration"


def guided_branches(config: Config) -> int:
    """Samples per view in a guided prediction: ∅ and the text, and with Perp-Neg two views to avoid."""
    return 4 if config.guidance.use_perp_neg else 2


def iteration_flop(size: Size, config: Config, nodes: float) -> int:
    """Useful operations of an iteration's networks with this many active nodes, excluding rendering."""
    samples = config.views * nodes * (1 + guided_branches(config))
    encoding = config.views * work_flop(VAE_GRADIENT, size, 1)
    return round(samples * work_flop(UNET_FORWARD, size, 1) + encoding)


def check_size(size: Size, config: Config) -> None:
    """Check that the image size is the model's; the operations of another would be miscounted.

    Raises:
        UserError: it is not.
    """
    if config.image_size != size.image_size:
        raise UserError(
            f"The setting image_size is {config.image_size}, but this model is timed at {size.image_size}; "
            "leave it out."
        )


def first_state(config: Config) -> TrainState:
    """The initial ball of gray splats, the same for us and for a peer."""
    return begin(config, jax.random.key(0))


def random_embeddings(size: Size, config: Config) -> ViewEmbeddings:
    """Random text embeddings for all views."""
    rng = np.random.default_rng(0)

    def encode(texts: list[str]) -> jax.Array:
        shape = (len(texts), size.tokens, size.unet.cross_attention_dim)
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    return embed_views(
        encode,
        "",
        negative_prompt=config.guidance.negative_prompt,
        noising_prompt=config.guidance.noising_prompt,
    )


def measure_iteration(
    size: Size, config: Config, dtype: jnp.dtype, *, repetitions: int, warm_up: int
) -> Measurement:
    """Time the first steps of a run as the run itself calls them, each from the state after the last one.

    Args:
        size: the model.
        config: settings of the run.
        dtype: precision of the networks.
        repetitions: number of timed steps.
        warm_up: number of steps before those.

    Returns:
        The times.

    Raises:
        UserError: the image size is not the model's.
    """
    check_size(size, config)
    model = random_model(size, dtype, has_unet=True, has_vae=True)
    mesh = batch_mesh(config.views_per_pass, copied=model)
    model, embeddings, state = jax.device_put(
        (model, random_embeddings(size, config), first_state(config)), replicated(mesh)
    )
    compilations: list[Compilation] = []
    capacity = config.buffer_capacity
    step = make_step(config, capacity, mesh, on_compiled=compilations.append)
    seconds: list[float] = []
    nodes: list[Any] = []
    while len(seconds) < warm_up + repetitions:
        begun = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, model, embeddings))
        taken = time.perf_counter() - begun
        if metrics.overflow > 0:
            # The buffer grows as in a run; times with a shorter one do not count.
            capacity = grown_capacity(int(metrics.intersections))
            step = make_step(config, capacity, mesh, on_compiled=compilations.append)
            seconds.clear()
            nodes.clear()
            continue
        seconds.append(taken)
        nodes.append(int(metrics.active_nodes))
    mean_nodes = float(np.mean(nodes[warm_up:]))
    return Measurement(
        work=ITERATION,
        implementation="ge3d_jax",
        seconds=tuple(seconds[warm_up:]),
        flop=iteration_flop(size, config, mean_nodes),
        compile_seconds=compilations[-1].seconds,
        peak_bytes=compilations[-1].total,
        note=f"{mean_nodes:.2f} nodes of {config.nodes.count} on average",
    )


def with_count(config: Config, splats: int | None) -> Config:
    """The same settings with another initial number of splats; None leaves it unchanged."""
    if splats is None:
        return config
    return dataclasses.replace(
        config,
        start=dataclasses.replace(config.start, count=splats),
        splat_capacity=max(config.splat_capacity, splats),
    )
