"""A whole run on the host's side: iterations, density control on schedule, growing buffers, interruption."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax

from ge3d_jax.devices import batch_mesh, everywhere, first_copy
from ge3d_jax.diffusion.pipeline import StableDiffusion, encode_text
from ge3d_jax.errors import UserError
from ge3d_jax.guidance.prompts import ViewEmbeddings, embed_views
from ge3d_jax.initialize.shapes import ball
from ge3d_jax.splatting.gaussians import Gaussians, padded
from ge3d_jax.training.config import Config
from ge3d_jax.training.density_control import control_density, lower_opacities
from ge3d_jax.training.state import TrainState, initial_state
from ge3d_jax.training.step import Metrics, make_step

# A new buffer holds this much more than the view that overflowed, since the splats go on growing.
_BUFFER_MARGIN = 1.25


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        state: after the last accepted iteration.
        iterations: how many were done in all.
        buffer_capacity: what the intersection buffer grew to.
        interrupted: whether it was stopped before its last iteration.
    """

    state: TrainState
    iterations: int
    buffer_capacity: int
    interrupted: bool

    @property
    def gaussians(self) -> Gaussians:
        """The object."""
        return self.state.gaussians


# (iterations done, metrics on the host, state) → whether to stop here. The state is lent: the next iteration
# reuses its memory.
OnProgress = Callable[[int, Metrics, TrainState], bool | None]


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
        capacity=config.splat_capacity,
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
    return initial_state(config, padded(start, config.splat_capacity), run_key)


def grown_capacity(needed: int) -> int:
    """A buffer's next size: the power of two that holds what was needed and a margin."""
    return 2 ** (int(needed * _BUFFER_MARGIN) - 1).bit_length()


def run(
    config: Config,
    model: StableDiffusion,
    prompt: str,
    state: TrainState,
    *,
    on_progress: OnProgress | None = None,
) -> RunResult:
    """Make an object, or go on making it.

    Args:
        state: from `begin`, or a restored one; left intact. Its key decides everything random: the same
            state gives the same object.
        on_progress: called after each iteration with the number done, its metrics and the state; when it
            returns true the run stops there.

    Returns:
        RunResult. Ctrl-C between two iterations is not an error: the result is the object as it stands.
    """
    embeddings = prompt_embeddings(config, model, prompt)
    # The steps donate the state they are given.
    state = jax.tree.map(lambda x: x.copy(), state)
    mesh = batch_mesh(config.views)
    state, model, embeddings = jax.device_put((state, model, embeddings), everywhere(mesh))
    buffer_capacity = config.buffer_capacity
    step = make_step(config, buffer_capacity, mesh)
    done, is_stopped = int(state.iteration), False
    try:
        while done < config.iterations and not is_stopped:
            state, device_metrics = step(state, model, embeddings)
            metrics = jax.device_get(device_metrics)
            if metrics.overflow > 0:
                buffer_capacity = grown_capacity(int(metrics.intersections))
                step = make_step(config, buffer_capacity, mesh)
                continue
            done += 1
            if config.density.densifies_at(done):
                state, _ = control_density(state, config.density.prunes_large_at(done), config=config.density)
            if config.density.resets_at(done):
                state = lower_opacities(state, config=config.density)
            if on_progress is not None:
                is_stopped = bool(on_progress(done, metrics, first_copy(state)))
    except KeyboardInterrupt:
        # Caught in the instant after the step took over the state's memory, there is nothing left to give.
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(state)):
            raise
    done = int(state.iteration)
    return RunResult(first_copy(state), done, buffer_capacity, interrupted=done < config.iterations)
