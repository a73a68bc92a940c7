"""Iterating on the host's side: the scene's schedule, growing buffers, interruption."""

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
# (index of the run, …) → the same, of runs that step together.
OnIterationOf = Callable[[int, int, HostNumbers, TrainState], bool | None]


def follow_schedule(state: TrainState, done: int, task: Task) -> tuple[TrainState, dict[str, int]]:
    """What the scene does after the iteration that makes it `done` in all. Donates `state`."""
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
        programs, mesh: see `iterate_together`.

    Returns:
        RunResult. Ctrl-C between two iterations is not an error: the result is the object as it stands.

    Raises:
        DoesNotFit: an iteration takes more memory than the device has; names the settings that lower it.
        RunDropped: as it comes, without a result.
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
    """How far one of the runs that step together is, on the host.

    Attributes:
        followed: iterations after which the scene's schedule was followed.
        skipped_in_a_row: steps without a finite gradient, up to the last one.
        ended: iterations after which it stopped, None while it runs.
    """

    followed: int
    skipped_in_a_row: int = 0
    ended: int | None = None

    @property
    def is_running(self) -> bool:
        """Whether it goes on."""
        return self.ended is None

    @property
    def diverged(self) -> bool:
        """Whether too many gradients in a row were not finite."""
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
    """`iterate` of several runs in step, as one program; of a single one the program is its own.

    A view that overflows in one of them lets all repeat the iteration, with a buffer for the fullest. One
    that stops stays as it is while the others go on.

    Args:
        states: of runs that have come equally far.
        context: what the task needs in every iteration, the same for all.
        task: the same for all. What decides which parts of it are computed must not differ between them:
            with `Distillation`, the setting `shared_nodes`.
        parts: see `iterate`.
        stop_at: see `iterate`.
        on_iteration: called after each iteration for each run with its index; when it returns true that run
            stops there.
        on_compiled: see `iterate`.
        programs: compiled iterations that may be taken, and to be kept.
        mesh: devices that share the views; None for those of this process. Where they are of several
            processes, each of these has to call this with the same states and context, and all of them stop
            where one does.

    Returns:
        RunResult of each.

    Raises:
        ValueError: one has come farther than another.
        DoesNotFit: see `iterate`.
        RunDropped: see `iterate`.
    """
    begun = {int(state.iteration) for state in states}
    if len(begun) != 1:
        raise ValueError(f"Only runs that have come equally far step together, not {sorted(begun)}.")
    count = len(states)
    if mesh is None:
        mesh = batch_mesh(parts, seeds=count, copied=context)
    # The steps donate the states they are given.
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
        # Caught in the instant after the step took over the states' memory, there is nothing left to give.
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(runs)):
            raise
        for index, course in enumerate(courses):
            if course.is_running and int(runs[index].iteration) > course.followed:
                # Caught between the step and what its iteration ends with.
                follow(index, course.followed + 1)
    return [
        _result(first_copy(state), course, task, last) for state, course in zip(runs, courses, strict=True)
    ]


def _check_memory_of_all(compilation: Compilation, mesh: Mesh, task: Task) -> None:
    """Refuse an iteration that does not fit, in all processes where it does not in one. Raises DoesNotFit."""
    failure = None
    try:
        check_memory(compilation, mesh.local_devices[0], task.remedies(compilation.devices))
    except DoesNotFit as error:
        failure = error
    if mesh.is_multi_process and anywhere(failure is not None) and failure is None:
        failure = DoesNotFit("An iteration does not fit a device of another process.", needed=0, limit=0)
    if failure is not None:
        raise failure


def _result(state: TrainState, course: _Course, task: Task, last: int) -> RunResult:
    """How a run ended that was to come to `last` iterations."""
    done = int(state.iteration) if course.ended is None else course.ended
    # The number of iterations went on with those of the others.
    ended = dataclasses.replace(state, iteration=jnp.full_like(state.iteration, done))
    interrupted = done < last and not course.diverged
    return RunResult(ended, done, task, interrupted=interrupted, diverged=course.diverged)
