"""Iterating on the host's side: density control on schedule, growing buffers, interruption."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from ge3d_jax.core.devices import first_copy
from ge3d_jax.core.errors import RunDropped
from ge3d_jax.scenes.density_control import follow_schedule, grown_capacity
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.training.config import DensityConfig
from ge3d_jax.training.state import TrainState


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


# state → (next state, metrics). It donates the state; the metrics have `intersections` and `overflow`, and
# where the latter is not 0 the state comes back as it was.
Step = Callable[[TrainState], tuple[TrainState, Any]]
# (iterations done, metrics on the host, state) → whether to stop here. The state is lent: the next iteration
# reuses its memory.
OnProgress = Callable[[int, Any, TrainState], bool | None]


def iterate(
    state: TrainState,
    make_step: Callable[[int], Step],
    *,
    iterations: int,
    buffer_capacity: int,
    splat_capacity: int,
    density: DensityConfig,
    on_progress: OnProgress | None = None,
) -> RunResult:
    """Step until so many iterations are done in all. Donates `state`.

    Args:
        make_step: intersections that one view's buffer holds → a step.
        buffer_capacity: what that buffer starts with; it grows where a view needs more.
        splat_capacity: how many splats there may be.
        on_progress: called after each iteration; when it returns true the run stops there.

    Returns:
        RunResult. Ctrl-C between two iterations is not an error: the result is the object as it stands.

    Raises:
        RunDropped: as it comes, without a result.
    """
    step = make_step(buffer_capacity)
    done, is_stopped = int(state.iteration), False
    try:
        while done < iterations and not is_stopped:
            state, device_metrics = step(state)
            metrics = jax.device_get(device_metrics)
            if metrics.overflow > 0:
                buffer_capacity = grown_capacity(int(metrics.intersections))
                step = make_step(buffer_capacity)
                continue
            state = follow_schedule(state, done + 1, config=density, splat_capacity=splat_capacity)
            done += 1
            if on_progress is not None:
                is_stopped = bool(on_progress(done, metrics, first_copy(state)))
    except RunDropped:
        raise
    except KeyboardInterrupt:
        # Caught in the instant after the step took over the state's memory, there is nothing left to give.
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(state)):
            raise
        if int(state.iteration) > done:
            # Caught between the step and what its iteration ends with.
            state = follow_schedule(state, done + 1, config=density, splat_capacity=splat_capacity)
    done = int(state.iteration)
    return RunResult(first_copy(state), done, buffer_capacity, interrupted=done < iterations)
