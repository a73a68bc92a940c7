"""A whole run: the prompt's embeddings, the splats it begins with, and its iterations."""

from collections.abc import Callable
from functools import partial

import jax

from ge3d_jax.core.devices import batch_mesh, replicated
from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.pipeline import StableDiffusion, encode_text
from ge3d_jax.guidance.prompts import ViewEmbeddings, embed_views
from ge3d_jax.scenes.density_control import first_capacity
from ge3d_jax.scenes.start.ball import ball
from ge3d_jax.splatting.gaussians import Gaussians, padded
from ge3d_jax.training.compilation import Compilation, check_memory
from ge3d_jax.training.config import Config
from ge3d_jax.training.iterations import OnProgress, RunResult, iterate
from ge3d_jax.training.state import TrainState, initial_state
from ge3d_jax.training.step import Metrics, make_step


def start_gaussians(config: Config, key: jax.Array) -> Gaussians:
    """The splats a run begins with when none are given."""
    start = config.start
    return ball(
        key,
        count=start.count,
        radius=start.radius,
        opacity=start.opacity,
        scale=start.scale,
        gray=start.gray,
        sh_degree=start.sh_degree,
    )


def prompt_embeddings(config: Config, model: StableDiffusion, prompt: str) -> ViewEmbeddings:
    """Encode the prompt from each side, and the negative prompt."""
    return embed_views(
        partial(encode_text, model),
        prompt,
        negative_prompt=config.guidance.negative_prompt,
        noising_prompt=config.guidance.noising_prompt,
    )


def begin(config: Config, key: jax.Array, *, start: Gaussians | None = None) -> TrainState:
    """The state before the first iteration, from `start` or the ball of the settings.

    Raises:
        UserError: more splats to start from than `splat_capacity`.
    """
    start_key, run_key = jax.random.split(key)
    if start is None:
        start = start_gaussians(config, start_key)
    elif start.capacity > config.splat_capacity:
        raise UserError(
            f"The start has {start.capacity} splats, but splat_capacity is {config.splat_capacity}; raise it."
        )
    start = padded(start, first_capacity(start.capacity, config.splat_capacity))
    return initial_state(config.optimizer, start, run_key)


def run(
    config: Config,
    model: StableDiffusion,
    prompt: str,
    state: TrainState,
    *,
    on_progress: OnProgress | None = None,
    on_compiled: Callable[[Compilation], None] | None = None,
) -> RunResult:
    """Make an object, or go on making it.

    Args:
        state: from `begin`, or a restored one; left intact. Its key decides everything random: the same
            state gives the same object.
        on_progress: called after each iteration with the number done, its metrics and the state; when it
            returns true the run stops there.
        on_compiled: told of each compilation that fits the device: before the first iteration, and where a
            buffer has grown.

    Returns:
        RunResult. Ctrl-C between two iterations is not an error: the result is the object as it stands.

    Raises:
        UserError: an iteration takes more memory than the device has; names the settings that lower it.
    """
    highest, last = max(config.nodes.max_step), model.schedule.steps - 1
    if highest > last:
        raise UserError(
            f"The setting nodes.max_step goes up to {highest}, but the model's times end at {last}; lower it."
        )
    embeddings = prompt_embeddings(config, model, prompt)
    # The steps donate the state they are given.
    state = jax.tree.map(lambda x: x.copy(), state)
    mesh = batch_mesh(config.views_per_pass, copied=model)
    state, model, embeddings = jax.device_put((state, model, embeddings), replicated(mesh))

    def compiled(compilation: Compilation) -> None:
        check_memory(compilation, config, mesh.devices.flat[0])
        if on_compiled is not None:
            on_compiled(compilation)

    def step_for(buffer_capacity: int) -> Callable[[TrainState], tuple[TrainState, Metrics]]:
        step = make_step(config, buffer_capacity, mesh, on_compiled=compiled)
        return lambda state: step(state, model, embeddings)

    return iterate(
        state,
        step_for,
        iterations=config.iterations,
        buffer_capacity=config.buffer_capacity,
        splat_capacity=config.splat_capacity,
        density=config.density,
        on_progress=on_progress,
    )
