"""One training iteration: render views, reduce gradients over the devices, update once.

A `Task` determines the views and the objective; its scene renders and is optimized. Nothing here knows about
splats, losses, or diffusion models.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from ge3d_jax.core.devices import BATCH_AXIS, SEEDS_AXIS, replicated, sharded
from ge3d_jax.core.random import Draws
from ge3d_jax.guidance.base import Numbers, Progress
from ge3d_jax.scenes.base import Parameters, Renders, Scene
from ge3d_jax.training.compilation import Compilation, compilation_of
from ge3d_jax.training.optimizer import adam
from ge3d_jax.training.state import TrainState
from ge3d_jax.training.together import Together

# Compiled iterations by task, devices, and shapes, each with the compiler's report.
Programs = dict[Any, tuple[jax.stages.Compiled, Compilation]]
# Name of the vmapped axis of runs that step together.
_RUNS = "runs"


class Task(Protocol):
    """What a run does in each iteration; immutable, so that it can be a static argument of `jit`."""

    @property
    def scene(self) -> Scene:
        """The scene being optimized."""

    @property
    def iterations(self) -> int:
        """T, the total number of iterations."""

    @property
    def views(self) -> int:
        """Number of views per iteration, over all devices."""

    def draw(self, state: TrainState, context: Any) -> Draws:
        """Draw the random values of the next iteration: a function of the state's key and iteration."""

    def run_key(self, state: TrainState) -> jax.Array:
        """Return the PRNG key in effect at `state`; usually the state's own."""

    def update_key(self, state: TrainState) -> jax.Array:
        """Return the PRNG key for the scene's `after_update`."""

    def image_size(self, context: Any) -> tuple[int, int]:
        """Return (width, height) of the views, pixels."""

    def look(
        self,
        scene: Any,
        learned: Any,
        perturbations: Any,
        context: Any,
        drawn: Draws,
        progress: Progress,
        axis: str | None,
    ) -> tuple[jax.Array, Numbers, Renders]:
        """Render this device's views and evaluate the objective.

        Args:
            scene: the scene's state.
            learned: the loss's learned parameters.
            perturbations: zeros, for the scene's `render`.
            context: whatever is constant over the run, on all devices.
            drawn: random values for this device's views.
            progress: of the run.
            axis: name of the axis of devices that share the views, None for a single device.

        Returns:
            a scalar, whose sum over the devices is minimized; metrics, (B,) to be averaged over all views or
            () to be kept as is; and the renders.
        """

    def learned_optimizer(self) -> optax.GradientTransformation:
        """Return the optimizer of the loss's learned parameters."""

    @property
    def shares_learned(self) -> bool:
        """Whether runs that step together share one set of learned parameters."""

    def grown(self, needed: int) -> "Task":
        """Return the same task with a larger buffer in its scene."""

    def remedies(self, devices: int) -> list[str]:
        """Return settings that lower an iteration's memory use, most effective first."""

    @property
    def steadier(self) -> str:
        """A sentence of advice for non-finite gradients."""


@struct.dataclass
class _Seen:
    """What a device computes for its views.

    Attributes:
        gradients: with respect to the scene's parameters, summed over the devices.
        learned_gradients: with respect to the loss's learned parameters, likewise.
        numbers: metrics over all views.
        perturbation_gradients, observed: for the device's own views.
    """

    gradients: Parameters
    learned_gradients: Any
    numbers: Numbers
    perturbation_gradients: Any
    observed: Any


def _look(
    scene_state: Any,
    learned: Any,
    iteration: jax.Array,
    context: Any,
    drawn: Draws,
    *,
    task: Task,
    axis: str | None,
) -> _Seen:
    scene = task.scene
    views = jax.tree.leaves(drawn.per_view)[0].shape[0]
    progress = Progress(iteration, task.iterations)

    def objective(
        parameters: Parameters, learned: Any, perturbations: Any
    ) -> tuple[jax.Array, tuple[Numbers, Renders]]:
        changed = scene.with_parameters(scene_state, parameters)
        scalar, numbers, renders = task.look(changed, learned, perturbations, context, drawn, progress, axis)
        return scalar, (numbers, renders)

    (gradients, learned_gradients, perturbation_gradients), (numbers, renders) = jax.grad(
        objective, argnums=(0, 1, 2), has_aux=True
    )(scene.parameters(scene_state), learned, scene.perturbations(scene_state, views))
    needed, overflow = jnp.max(renders.needed), jnp.max(renders.overflow)
    means = {name: jnp.sum(value) / task.views for name, value in numbers.items() if value.ndim}
    if axis is not None:
        gradients, learned_gradients, means = jax.lax.psum((gradients, learned_gradients, means), axis)
        needed, overflow = jax.lax.pmax((needed, overflow), axis)
    return _Seen(
        gradients=gradients,
        learned_gradients=learned_gradients,
        numbers=numbers | means | {"intersections": needed, "overflow": overflow},
        perturbation_gradients=perturbation_gradients,
        observed=renders.observed,
    )


def train_step(
    state: TrainState,
    context: Any,
    drawn: Draws,
    *,
    task: Task,
    mesh: Mesh | None = None,
    together: Together | None = None,
) -> tuple[TrainState, Numbers]:
    """Run one iteration with given random values; pure, and can be vmapped over `state` and `drawn`.

    If a view overflows the scene's buffer, the state is returned unchanged, and the caller repeats the
    iteration with a larger buffer. If a gradient is not finite, only the iteration number advances. Each
    device of a `mesh` processes its share of the views, forward and backward; the number of views must be
    divisible by the number of devices.

    Args:
        state: of the run.
        context: the task's context, constant over the run.
        drawn: the random values of the iteration.
        task: what to do.
        mesh: the devices; None for a single one, or if the caller distributes the work.
        together: relates this run to others that are vmapped with it and step together; None if runs are
            independent.
    """
    axis = None if mesh is None else BATCH_AXIS
    look: Callable[..., _Seen] = partial(_look, task=task, axis=axis)
    if mesh is not None:
        own: Any = sharded(mesh).spec
        shared: Any = replicated(mesh).spec
        # Explicit, because the compiler cannot partition the rasterizer's loops: every device would render
        # all views.
        look = jax.shard_map(
            look,
            mesh=mesh,
            in_specs=(shared, shared, shared, shared, Draws(shared=shared, per_view=own)),
            out_specs=_Seen(
                gradients=shared,
                learned_gradients=shared,
                numbers=shared,
                perturbation_gradients=own,
                observed=own,
            ),
            # Gradients of replicated values differ between devices until they are summed.
            check_vma=False,
        )
    seen = look(state.scene, state.learned, state.iteration, context, drawn)
    fits = seen.numbers["overflow"] == 0
    # Check everything that changes the state: a bad view may show up only in density control's statistics.
    is_finite = _is_finite((seen.gradients, seen.learned_gradients, seen.perturbation_gradients))
    moves = fits & is_finite
    learns = moves
    if together is not None:
        fits = together.all_fit(fits)
        moves = fits & is_finite & together.is_running
        learns = moves
        if task.shares_learned:
            learned_gradients, learns = together.mean(seen.learned_gradients, moves)
            seen = dataclasses.replace(seen, learned_gradients=learned_gradients)
    stepped = _updated(state, seen, task=task, image_size=task.image_size(context))
    # A non-finite step is skipped: the next iteration draws new random values.
    stepped = dataclasses.replace(
        _chosen(moves, stepped, state),
        learned=_chosen(learns, stepped.learned, state.learned),
        learned_optimizer_state=_chosen(
            learns, stepped.learned_optimizer_state, state.learned_optimizer_state
        ),
        iteration=state.iteration + fits,
    )
    skipped = {"skipped": (fits & ~is_finite).astype(jnp.int32)}
    return stepped, seen.numbers | task.scene.numbers(state.scene) | skipped


def _chosen(is_new: jax.Array, new: Any, old: Any) -> Any:
    """Select the new values or the old ones."""
    return jax.tree.map(partial(jnp.where, is_new), new, old)


def _is_finite(tree: Any) -> jax.Array:
    """Return whether all values are finite, () bool."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _updated(state: TrainState, seen: _Seen, *, task: Task, image_size: tuple[int, int]) -> TrainState:
    """Return the state after one optimizer step."""
    scene = task.scene
    progress = Progress(state.iteration, task.iterations).share
    directions, optimizer_state = adam().update(seen.gradients, state.optimizer_state)
    moved = optax.apply_updates(scene.parameters(state.scene), scene.updates(directions, progress))
    after = scene.after_update(
        task.update_key(state),
        scene.with_parameters(state.scene, moved),
        seen.perturbation_gradients,
        seen.observed,
        progress=progress,
        image_size=image_size,
    )
    updates, learned_state = task.learned_optimizer().update(
        seen.learned_gradients, state.learned_optimizer_state, state.learned
    )
    return TrainState(
        scene=after,
        optimizer_state=optimizer_state,
        learned=optax.apply_updates(state.learned, updates),
        learned_optimizer_state=learned_state,
        iteration=state.iteration + 1,
        key=state.key,
    )


@partial(jax.jit, static_argnames=("task", "mesh"), donate_argnums=0)
def _step(state: TrainState, context: Any, *, task: Task, mesh: Mesh | None) -> tuple[TrainState, Numbers]:
    drawn = task.draw(state, context)
    result = train_step(state, context, drawn, task=task, mesh=mesh)
    # The state must keep its sharding, or the next iteration would be compiled again.
    return result if mesh is None else jax.lax.with_sharding_constraint(result, replicated(mesh))


@partial(jax.jit, static_argnames=("task", "mesh"), donate_argnums=0)
def _step_together(
    states: tuple[TrainState, ...], is_running: jax.Array, context: Any, *, task: Task, mesh: Mesh
) -> tuple[tuple[TrainState, ...], Numbers]:
    """Run `_step` on S states at the same iteration; `is_running` and the metrics are (S,)."""
    # Fields common to all runs get no batch axis. Neither do values drawn from these fields alone, so a
    # condition on such a value stays a branch instead of evaluating both sides.
    common = ("iteration", "learned", "learned_optimizer_state") if task.shares_learned else ("iteration",)
    names = [field.name for field in dataclasses.fields(TrainState)]
    of_each: dict[str, Any] = {name: None if name in common else 0 for name in names}
    axes = TrainState(**of_each)

    def stacked(name: str) -> Any:
        values = [getattr(state, name) for state in states]
        return values[0] if name in common else jax.tree.map(lambda *leaves: jnp.stack(leaves), *values)

    def one(state: TrainState, is_running: jax.Array) -> tuple[TrainState, Numbers]:
        drawn = task.draw(state, context)
        together = Together(is_running, _RUNS)
        return train_step(state, context, drawn, task=task, mesh=mesh, together=together)

    after, numbers = jax.vmap(
        one, in_axes=(axes, 0), out_axes=(axes, 0), axis_name=_RUNS, spmd_axis_name=SEEDS_AXIS
    )(TrainState(**{name: stacked(name) for name in names}), is_running)

    def of_run(index: int, name: str) -> Any:
        value = getattr(after, name)
        return value if name in common else jax.tree.map(itemgetter(index), value)

    apart = tuple(TrainState(**{name: of_run(index, name) for name in names}) for index in range(len(states)))
    return jax.lax.with_sharding_constraint((apart, numbers), replicated(mesh))


def lower_step(state: Any, *others: Any, task: Task, mesh: Mesh | None, runs: int = 1) -> jax.stages.Lowered:
    """Trace one iteration without compiling it; the arguments are those of the function from `make_step`.

    Shapes with shardings can stand in for arrays, and the mesh may consist of devices that are not attached.
    """
    function = _step if runs == 1 else _step_together
    return function.lower(state, *others, task=task, mesh=mesh)


def make_step(
    task: Task,
    mesh: Mesh | None = None,
    *,
    runs: int = 1,
    on_compiled: Callable[[Compilation], None] | None = None,
    programs: Programs | None = None,
) -> Callable[..., Any]:
    """Return one iteration as a compiled function. It donates its input state; use only the returned one.

    The function is compiled on its first call, and again whenever the scene's arrays have grown.

    Args:
        task: what to do, static.
        mesh: devices that share the work; state and context must be placed on all of them.
        runs: number of runs that step together.
        on_compiled: called with each compiled iteration before its first execution here.
        programs: a cache of compiled iterations, used and extended; None keeps only the latest one.

    Returns:
        (state, context) → (state, metrics); for several runs, (states, is_running (S,) bool, context) →
        (states, metrics (S,)), with tuples of S states of the same shapes and iteration.
    """
    kept: Programs = {} if programs is None else programs
    told: set[Any] = set()

    def step(state: Any, *others: Any) -> tuple[Any, Numbers]:
        scenes = state.scene if runs == 1 else state[0].scene
        key = (task, mesh, runs, tuple(leaf.shape for leaf in jax.tree.leaves(scenes)))
        if key not in kept:
            begun = time.monotonic()
            lowered = lower_step(state, *others, task=task, mesh=mesh, runs=runs)
            if programs is None:
                # Scenes never shrink, so a program for a smaller one is no longer needed.
                kept.clear()
            compiled = lowered.compile()
            devices = 1 if mesh is None else len(mesh.local_devices)
            kept[key] = compiled, compilation_of(compiled, time.monotonic() - begun, devices)
        program, compilation = kept[key]
        if key not in told:
            told.add(key)
            if on_compiled is not None:
                on_compiled(compilation)
        return program(state, *others)

    return step
