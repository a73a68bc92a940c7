"""One iteration of any run: look at some views, gather gradients over the devices, update once.

A `Task` says what is looked at and what is wanted of it; its scene renders and learns. Nothing here knows
splats, losses or diffusion models.
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

# Compiled iterations: by task, devices and shapes, with what the compiler said of each.
Programs = dict[Any, tuple[jax.stages.Compiled, Compilation]]
# Name of the vmapped axis of runs that step together.
_RUNS = "runs"


class Task(Protocol):
    """What a run does in each iteration; frozen, so that compiled functions may depend on it."""

    @property
    def scene(self) -> Scene:
        """What is optimized."""

    @property
    def iterations(self) -> int:
        """T, in all."""

    @property
    def views(self) -> int:
        """Views of an iteration on all devices."""

    def draw(self, state: TrainState, context: Any) -> Draws:
        """What chance decides in the iteration `state` stands before: a function of its key and iteration."""

    def run_key(self, state: TrainState) -> jax.Array:
        """PRNG key that chance goes by where `state` is; mostly the state's own."""

    def update_key(self, state: TrainState) -> jax.Array:
        """PRNG key of what the scene does after the update."""

    def image_size(self, context: Any) -> tuple[int, int]:
        """(width, height) of the views, pixels."""

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
        """Render this device's views and say what is wanted of them.

        Args:
            scene: the scene's state.
            learned: what the loss learns.
            perturbations: zeros, for the scene's `render`.
            context: what stays the same over the run, on all devices.
            drawn: of this device's views.
            progress: how far the run is.
            axis: of the devices that share the views, None for a single one.

        Returns:
            a scalar, whose sum over the devices is minimized; numbers for the metrics, (B,) to be averaged
            over all views or () as they are; and the renders.
        """

    def learned_optimizer(self) -> optax.GradientTransformation:
        """What trains what the loss learns."""

    @property
    def shares_learned(self) -> bool:
        """Whether runs that step together learn one thing together."""

    def grown(self, needed: int) -> "Task":
        """The same with a larger buffer in its scene."""

    def remedies(self, devices: int) -> list[str]:
        """Settings that lower the memory of an iteration, the strongest first."""

    @property
    def steadier(self) -> str:
        """A sentence on what to change where gradients are not finite."""


@struct.dataclass
class _Seen:
    """What a device found out about its views.

    Attributes:
        gradients: in the scene's parameters, summed over the devices.
        learned_gradients: in what the loss learns, likewise.
        numbers: over all views.
        perturbation_gradients, observed: of its own views.
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
    """One iteration with everything random given; pure, and may be vmapped over `state` and `drawn`.

    Where a view overflows the scene's buffer the state comes back as it was: the caller repeats the iteration
    with a larger buffer. Where a gradient is not finite only the iteration number moves on. The devices of a
    `mesh` each take their share of the views, which must divide among them, all the way there and back.

    Args:
        state: of the run.
        context: what the task needs in every iteration.
        drawn: what chance decides.
        task: what to do.
        mesh: the devices; None for one, or for what a caller divides.
        together: how this run stands to others that are vmapped with it and go in step; None where each
            goes by itself.
    """
    axis = None if mesh is None else BATCH_AXIS
    look: Callable[..., _Seen] = partial(_look, task=task, axis=axis)
    if mesh is not None:
        own: Any = sharded(mesh).spec
        shared: Any = replicated(mesh).spec
        # Not left to the compiler: it cannot divide the rasterizer's loops, and has every device render all.
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
            # Gradients of shared values stay each device's own until they are summed.
            check_vma=False,
        )
    seen = look(state.scene, state.learned, state.iteration, context, drawn)
    fits = seen.numbers["overflow"] == 0
    # All that moves the state: one view's part may show in what density control goes by alone.
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
    # A step that is not finite is left out: the next one draws anew.
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
    """The new values or the old ones."""
    return jax.tree.map(partial(jnp.where, is_new), new, old)


def _is_finite(tree: Any) -> jax.Array:
    """Whether all numbers are, () bool."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _updated(state: TrainState, seen: _Seen, *, task: Task, image_size: tuple[int, int]) -> TrainState:
    """The state after one descent step."""
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
    # The next iteration must find the state placed as this one did, or it would be compiled again.
    return result if mesh is None else jax.lax.with_sharding_constraint(result, replicated(mesh))


@partial(jax.jit, static_argnames=("task", "mesh"), donate_argnums=0)
def _step_together(
    states: tuple[TrainState, ...], is_running: jax.Array, context: Any, *, task: Task, mesh: Mesh
) -> tuple[tuple[TrainState, ...], Numbers]:
    """`_step` of S states that have come equally far; `is_running` and the numbers are (S,)."""
    # What all of them have in common stays without an axis of theirs. So does what is drawn from it alone,
    # and a condition on that is computed once, not both ways.
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
    """One iteration, traced and not yet compiled; the arguments are those of `make_step`'s function.

    Shapes with shardings serve as arrays, and the mesh may be of devices that are not at hand.
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
    """One iteration as one compiled function. It donates the state it is given: use the returned one only.

    It is compiled at its first call, and again where the scene's arrays have grown since.

    Args:
        task: what to do, static.
        mesh: devices that share the work; state and context must lie on all of them.
        runs: how many runs step together.
        on_compiled: told of each compiled iteration, before it runs here for the first time.
        programs: those compiled before, which are taken where they fit, and kept; None keeps the last one.

    Returns:
        (state, context) → (state, numbers); for several runs (states, is_running (S,) bool, context) →
        (states, numbers (S,)), with tuples of as many states, of the same shapes and iteration.
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
                # Scenes grow and never shrink: a program for a smaller one is done with.
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
