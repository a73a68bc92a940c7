"""The training loop on the host: the scene's schedule, growing buffers, and interruption."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ge3d_jax.core.devices import batch_mesh, first_copy, place
from ge3d_jax.core.errors import RunDropped
from ge3d_jax.core.processes import anywhere
from ge3d_jax.training.compilation import Compilation, DoesNotFit, check_memory
from ge3d_jax.training.state import TrainState, as_long_as_the_longest
from ge3d_jax.training.step import Programs, Task, make_step

# Folded into the run's key before the iteration number, so that a scene's scheduled operations draw from a
# random stream of their own, out of reach of any iteration number.
_SCHEDULE_STREAM = 2**31 - 1
# Number of consecutive steps with non-finite gradients that ends a run.
MOST_SKIPPED = 20


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        state: the state after the last accepted iteration.
        iterations: number of completed iterations.
        task: the task, with the buffers that its scene has grown to.
        interrupted: whether the run was stopped before its last iteration.
        diverged: whether the run ended because too many consecutive gradients were not finite. None of those
            steps changed the state.
    """

    state: TrainState
    iterations: int
    task: Task
    interrupted: bool
    diverged: bool

    @property
    def object(self) -> Any:
        """The object that the scene represents."""
        return self.task.scene.shown(self.state.scene, self.iterations)


# Scalars of an iteration, by name, on the host.
HostNumbers = dict[str, int | float]
# (completed iterations, metrics, state) → whether to stop. The state is valid only during the call: the next
# iteration reuses its memory.
OnIteration = Callable[[int, HostNumbers, TrainState], bool | None]
# (index of the run, …) → the same, for runs that step together.
OnIterationOf = Callable[[int, int, HostNumbers, TrainState], bool | None]


def follow_schedule(state: TrainState, done: int, task: Task) -> tuple[TrainState, dict[str, int]]:
    """Apply the scene's scheduled operations after the iteration that makes it `done`. Donates `state`."""
    key = jax.random.fold_in(jax.random.fold_in(task.run_key(state), _SCHEDULE_STREAM), state.iteration)
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
    programs: Programs | None = None,
    mesh: Mesh | None = None,
) -> RunResult:
    """Run all remaining iterations, on as many devices as can evenly share the views.

    Args:
        state: the initial state or a restored one; left intact. Its key determines all randomness: the same
            state gives the same object.
        context: the task's context, constant over the run.
        task: what to do; its scene's buffer grows when a view needs more room.
        parts: the number of parts into which the views that go through the networks at a time can be divided
            among devices.
        stop_at: number of iterations after which the run is complete, if less than the task's. Schedules
            still follow the task's number of iterations and are cut off at this point: a stage after the run
            replaces its last part and does not compress the rest.
        on_iteration: called after each iteration; the run stops if it returns true.
        on_compiled: called with each compilation that fits the device: before the first iteration, and after
            a buffer has grown.
        programs, mesh: see `iterate_together`.

    Returns:
        RunResult. Ctrl-C between two iterations is not an error: the result is the object at that point.

    Raises:
        DoesNotFit: an iteration needs more memory than the device has; names the settings that lower it.
        RunDropped: passed through, without a result.
    """

    def on_iteration_of(_: int, done: int, numbers: HostNumbers, state: TrainState) -> bool | None:
        return on_iteration(done, numbers, state) if on_iteration is not None else None

    (result,) = iterate_together(
        [state],
        context,
        task,
        parts=parts,
        stop_at=stop_at,
        on_iteration=on_iteration_of,
        on_compiled=on_compiled,
        programs=programs,
        mesh=mesh,
    )
    return result


@dataclasses.dataclass
class _Course:
    """The host-side progress of one of the runs that step together.

    Attributes:
        followed: number of iterations for which the scene's schedule has been applied.
        skipped_in_a_row: number of consecutive steps with non-finite gradients, up to the latest step.
        ended: number of iterations after which the run stopped, None while it is running.
    """

    followed: int
    skipped_in_a_row: int = 0
    ended: int | None = None

    @property
    def is_running(self) -> bool:
        """Whether the run is still going."""
        return self.ended is None

    @property
    def diverged(self) -> bool:
        """Whether too many consecutive gradients were not finite."""
        return self.skipped_in_a_row == MOST_SKIPPED


def iterate_together(
    states: Sequence[TrainState],
    context: Any,
    task: Task,
    *,
    parts: int,
    stop_at: int | None = None,
    on_iteration: OnIterationOf | None = None,
    on_compiled: Callable[[Compilation], None] | None = None,
    programs: Programs | None = None,
    mesh: Mesh | None = None,
) -> list[RunResult]:
    """Run `iterate` for several runs in lockstep, as one program; a single run has its own program.

    If a view overflows in one run, all runs repeat the iteration with a buffer that fits the largest. A run
    that stops keeps its state while the others continue.

    Args:
        states: states of the runs, at the same iteration.
        context: the task's context, constant over the run and the same for all runs.
        task: the same for all runs. Values that decide which of its parts are computed must not differ
            between the runs: with `Distillation`, use the setting `shared_nodes`.
        parts: see `iterate`.
        stop_at: see `iterate`.
        on_iteration: called after each iteration for each run, with the run's index; that run stops if it
            returns true.
        on_compiled: see `iterate`.
        programs: a cache of compiled iterations, used and extended.
        mesh: devices that share the views; None for those of this process. If they belong to several
            processes, each process must call this function with the same states and context, and all stop
            when one does.

    Returns:
        RunResult of each run.

    Raises:
        ValueError: the runs are at different iterations.
        DoesNotFit: see `iterate`.
        RunDropped: see `iterate`.
    """
    begun = {int(state.iteration) for state in states}
    if len(begun) != 1:
        raise ValueError(f"Only runs at the same iteration can step together, not {sorted(begun)}.")
    count = len(states)
    if mesh is None:
        mesh = batch_mesh(parts, seeds=count, copied=context)
    # Copies, because the steps donate their input states.
    copies = [jax.tree.map(lambda leaf: leaf.copy(), state) for state in states]
    runs, context = place((copies, context), mesh)
    runs = as_long_as_the_longest(runs, task.scene)

    def compiled(compilation: Compilation) -> None:
        _check_memory_of_all(compilation, mesh, task)
        if on_compiled is not None:
            on_compiled(compilation)

    def make() -> Callable[[], list[HostNumbers]]:
        step = make_step(task, mesh, runs=count, on_compiled=compiled, programs=programs)

        def alone() -> list[HostNumbers]:
            runs[0], numbers = step(runs[0], context)
            return [{name: value.item() for name, value in jax.device_get(numbers).items()}]

        def together() -> list[HostNumbers]:
            is_running = place(np.array([course.is_running for course in courses]), mesh)
            runs[:], numbers = step(tuple(runs), is_running, context)
            on_host = {name: value.tolist() for name, value in jax.device_get(numbers).items()}
            return [{name: values[index] for name, values in on_host.items()} for index in range(count)]

        return alone if count == 1 else together

    def follow(index: int, done: int) -> dict[str, int]:
        runs[index], changes = follow_schedule(runs[index], done, task)
        courses[index].followed = done
        return changes

    (done,) = begun
    last = task.iterations if stop_at is None else stop_at
    courses = [_Course(done) for _ in runs]
    step = make()
    try:
        while done < last and any(course.is_running for course in courses):
            numbers = step()
            running = [index for index, course in enumerate(courses) if course.is_running]
            if any(numbers[index]["overflow"] > 0 for index in running):
                task = task.grown(int(max(numbers[index]["intersections"] for index in running)))
                step = make()
                continue
            for index in running:
                numbers[index] |= follow(index, done + 1)
            runs[:] = as_long_as_the_longest(runs, task.scene)
            done += 1
            for index in running:
                course, told = courses[index], numbers[index]
                course.skipped_in_a_row = course.skipped_in_a_row + 1 if told["skipped"] else 0
                is_stopped = on_iteration is not None and bool(
                    on_iteration(index, done, told, first_copy(runs[index]))
                )
                if mesh.is_multi_process:
                    is_stopped = anywhere(is_stopped)
                if is_stopped or course.diverged:
                    course.ended = done
    except RunDropped:
        raise
    except KeyboardInterrupt:
        # If the interrupt came just after the step took over the states' memory, there is nothing to return.
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(runs)):
            raise
        for index, course in enumerate(courses):
            if course.is_running and int(runs[index].iteration) > course.followed:
                # The interrupt came between the step and the scheduled operations of its iteration.
                follow(index, course.followed + 1)
    return [
        _result(first_copy(state), course, task, last) for state, course in zip(runs, courses, strict=True)
    ]


def _check_memory_of_all(compilation: Compilation, mesh: Mesh, task: Task) -> None:
    """Reject an iteration that does not fit; if it fails in one process, in all. Raises DoesNotFit."""
    failure = None
    try:
        check_memory(compilation, mesh.local_devices[0], task.remedies(compilation.devices))
    except DoesNotFit as error:
        failure = error
    if mesh.is_multi_process and anywhere(failure is not None) and failure is None:
        failure = DoesNotFit("An iteration does not fit on a device of another process.", needed=0, limit=0)
    if failure is not None:
        raise failure


def _result(state: TrainState, course: _Course, task: Task, last: int) -> RunResult:
    """Build the result of a run that was meant to reach `last` iterations."""
    done = int(state.iteration) if course.ended is None else course.ended
    # After a run stops, its iteration number advances with those of the others.
    ended = dataclasses.replace(state, iteration=jnp.full_like(state.iteration, done))
    interrupted = done < last and not course.diverged
    return RunResult(ended, done, task, interrupted=interrupted, diverged=course.diverged)
