"""Iterating on the host's side: the scene's schedule, growing buffers, interruption."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from ge3d_jax.core.devices import batch_mesh, first_copy, replicated
from ge3d_jax.core.errors import RunDropped
from ge3d_jax.training.compilation import Compilation, check_memory
from ge3d_jax.training.state import TrainState
from ge3d_jax.training.step import Task, make_step

# Folded into the run's key before the iteration's number: what a scene does on its schedule draws from a
# stream of its own, which no iteration's number reaches.
_SCHEDULE_STREAM = 2**31 - 1
# So many steps without a finite gradient, one after the other, end a run.
MOST_SKIPPED = 20


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        state: after the last accepted iteration.
        iterations: how many were done in all.
        task: with the buffers that its scene grew.
        interrupted: whether it was stopped before its last iteration.
        diverged: whether it was ended since too many gradients in a row were not finite. None of these steps
            moved the state.
    """

    state: TrainState
    iterations: int
    task: Task
    interrupted: bool
    diverged: bool

    @property
    def object(self) -> Any:
        """What the scene shows."""
        return self.task.scene.shown(self.state.scene, self.iterations)


# Scalars of an iteration, by name, on the host.
HostNumbers = dict[str, int | float]
# (iterations done, numbers, state) → whether to stop here. The state is lent: the next iteration reuses its
# memory.
OnIteration = Callable[[int, HostNumbers, TrainState], bool | None]


def follow_schedule(state: TrainState, done: int, task: Task) -> tuple[TrainState, dict[str, int]]:
    """What the scene does after the iteration that makes it `done` in all. Donates `state`."""
    key = jax.random.fold_in(jax.random.fold_in(state.key, _SCHEDULE_STREAM), state.iteration)
    scene, moments, numbers = task.scene.on_schedule(key, state.scene, state.moments, done, task.iterations)
    return state.with_scene(scene, moments), numbers


def iterate(
    state: TrainState,
    context: Any,
    task: Task,
    *,
    parts: int,
    stop_at: int | None = None,
    on_iteration: OnIteration | None = None,
    on_compiled: Callable[[Compilation], None] | None = None,
) -> RunResult:
    """Step until all iterations are done, on as many devices as the views divide among.

    Args:
        state: the first one, or a restored one; left intact. Its key decides everything random: the same
            state gives the same object.
        context: what the task needs in every iteration.
        task: what to do; its scene's buffer grows where a view needs more.
        parts: into how many parts the views that go through the networks at a time can be divided among
            devices.
        stop_at: iterations after which the run is complete, where that is before the task's last one. What
            changes over a run goes by the task's number, so it is left as far as it has come: a stage after
            the run takes the place of its last part and does not compress the rest.
        on_iteration: called after each iteration; when it returns true the run stops there.
        on_compiled: told of each compilation that fits the device: before the first iteration, and where a
            buffer has grown.

    Returns:
        RunResult. Ctrl-C between two iterations is not an error: the result is the object as it stands.

    Raises:
        UserError: an iteration takes more memory than the device has; names the settings that lower it.
        RunDropped: as it comes, without a result.
    """
    mesh = batch_mesh(parts, copied=context)
    # The steps donate the state they are given.
    state = jax.tree.map(lambda leaf: leaf.copy(), state)
    state, context = jax.device_put((state, context), replicated(mesh))

    def compiled(compilation: Compilation) -> None:
        check_memory(compilation, mesh.devices.flat[0], task.remedies(compilation.devices))
        if on_compiled is not None:
            on_compiled(compilation)

    step = make_step(task, mesh, on_compiled=compiled)
    last = task.iterations if stop_at is None else stop_at
    done, is_stopped, skipped_in_a_row = int(state.iteration), False, 0
    try:
        while done < last and not is_stopped:
            state, device_numbers = step(state, context)
            numbers = {name: value.item() for name, value in jax.device_get(device_numbers).items()}
            if numbers["overflow"] > 0:
                task = task.grown(int(numbers["intersections"]))
                step = make_step(task, mesh, on_compiled=compiled)
                continue
            state, changes = follow_schedule(state, done + 1, task)
            done += 1
            skipped_in_a_row = skipped_in_a_row + 1 if numbers["skipped"] else 0
            if on_iteration is not None:
                is_stopped = bool(on_iteration(done, numbers | changes, first_copy(state)))
            is_stopped = is_stopped or skipped_in_a_row == MOST_SKIPPED
    except RunDropped:
        raise
    except KeyboardInterrupt:
        # Caught in the instant after the step took over the state's memory, there is nothing left to give.
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(state)):
            raise
        if int(state.iteration) > done:
            # Caught between the step and what its iteration ends with.
            state, _ = follow_schedule(state, done + 1, task)
    done, diverged = int(state.iteration), skipped_in_a_row == MOST_SKIPPED
    return RunResult(
        first_copy(state),
        done,
        task,
        interrupted=done < last and not diverged,
        diverged=diverged,
    )
