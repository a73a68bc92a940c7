"""Our whole iteration under the clock: rendering, encoding, both trajectories, the way back, Adam."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import Measurement
from benchmarks.models import Size, random_model
from benchmarks.networks import UNET_FORWARD, VAE_GRADIENT, work_flop
from ge3d_jax.core.devices import batch_mesh, replicated
from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.diffusion.pipeline import StableDiffusion
from ge3d_jax.guidance.ge3d import GE3D
from ge3d_jax.guidance.prompts import PromptEmbeddings, embed_prompt
from ge3d_jax.scenes.splats import Splats
from ge3d_jax.training.compilation import Compilation
from ge3d_jax.training.config import Config
from ge3d_jax.training.distillation import Distillation, Prompted, begin
from ge3d_jax.training.state import TrainState
from ge3d_jax.training.step import Task, make_step

ITERATION = "iteration"
# Settings that leave out what PyTorch's iteration does not have and `iteration_flop` does not count.
WITHOUT = {"picture_weight": 0.0, "guidance.inversion": "plain"}


def ge3d_of(config: Config) -> GE3D:
    """The loss. Raises UserError where it is another one, whose operations nobody counts here."""
    if not isinstance(config.guidance, GE3D):
        raise UserError("The setting guidance.kind is another than ge3d, the only one timed; leave it out.")
    return config.guidance


def splats_of(config: Config) -> Splats:
    """The scene. Raises UserError where it is not made of splats."""
    if not isinstance(config.scene, Splats):
        raise UserError("The setting scene.kind is another than splats, the only one timed; leave it out.")
    return config.scene


def guided_branches(config: Config) -> int:
    """Samples of one view in a guided prediction: ∅ and the text, with Perp-Neg two views to avoid."""
    return 4 if config.prompts.use_perp_neg else 2


def iteration_flop(size: Size, config: Config, nodes: float) -> int:
    """Useful operations of an iteration's networks with so many active nodes; rendering is left out."""
    samples = config.views * nodes * (1 + guided_branches(config))
    encoding = config.views * work_flop(VAE_GRADIENT, size, 1)
    return round(samples * work_flop(UNET_FORWARD, size, 1) + encoding)


def check(size: Size, config: Config) -> None:
    """Refuse what would be counted wrongly: another image size than the model's, another loss or scene."""
    if ge3d_of(config).inversion != "plain":
        raise UserError("The setting guidance.inversion is not plain, which alone is counted; leave it out.")
    if config.picture_weight:
        raise UserError(
            f"The setting picture_weight is {config.picture_weight}, but decoding is not counted; set 0."
        )
    splats_of(config)
    if config.image_size != size.image_size:
        raise UserError(
            f"The setting image_size is {config.image_size}, but this model is timed at {size.image_size}; "
            "leave it out."
        )


def first_state(config: Config, model: StableDiffusion) -> TrainState:
    """The ball of gray splats, the same for us and for a peer."""
    return begin(config, model, jax.random.key(0))


def random_embeddings(size: Size) -> PromptEmbeddings:
    """Random text embeddings of all views."""
    rng = np.random.default_rng(0)

    def encode(texts: list[str]) -> jax.Array:
        shape = (len(texts), size.tokens, size.unet.cross_attention_dim)
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    return embed_prompt(encode, "", negative_prompt="")


def measure_iteration(
    size: Size, config: Config, dtype: jnp.dtype, *, repetitions: int, warm_up: int
) -> Measurement:
    """Time the step of a run's beginning as the run itself calls it: each from the state the last one left.

    Raises:
        UserError: an image size that is not the model's, or another loss or scene than is counted.
    """
    check(size, config)
    model = random_model(size, dtype, has_unet=True, has_vae=True)
    mesh = batch_mesh(config.views_per_pass, copied=model)
    context, state = jax.device_put(
        (Prompted(model, random_embeddings(size)), first_state(config, model)), replicated(mesh)
    )
    compilations: list[Compilation] = []
    task: Task = Distillation(config)
    step = make_step(task, mesh, on_compiled=compilations.append)
    seconds: list[float] = []
    nodes: list[Any] = []
    while len(seconds) < warm_up + repetitions:
        begun = time.perf_counter()
        state, numbers = jax.block_until_ready(step(state, context))
        taken = time.perf_counter() - begun
        if numbers["overflow"] > 0:
            # The buffer grows as in a run, and what was timed with a shorter one does not count.
            task = task.grown(int(numbers["intersections"]))
            step = make_step(task, mesh, on_compiled=compilations.append)
            seconds.clear()
            nodes.clear()
            continue
        seconds.append(taken)
        nodes.append(int(numbers["active_nodes"]))
    mean_nodes = float(np.mean(nodes[warm_up:]))
    return Measurement(
        work=ITERATION,
        implementation="ge3d_jax",
        seconds=tuple(seconds[warm_up:]),
        flop=iteration_flop(size, config, mean_nodes),
        compile_seconds=compilations[-1].seconds,
        peak_bytes=compilations[-1].total,
        note=f"{mean_nodes:.2f} nodes of {ge3d_of(config).nodes.count} on average",
    )


def with_count(config: Config, splats: int | None) -> Config:
    """The same settings, beginning with so many splats."""
    if splats is None:
        return config
    capacity = max(splats_of(config).capacity, splats)
    return with_overrides(config, {"scene.start.count": splats, "scene.capacity": capacity})
