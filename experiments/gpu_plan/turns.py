"""How often the renderer's loops turn for a scene, counted by running the same program here.

The number of turns of a `while` depends on the data, so no compiler knows it. The renderer is traced as the
iteration is, for the same card; its loops get a counter each, and the program runs on this machine.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from benchmarks.iteration import splats_of
from jax.extend import core

from ge3d_jax.core.settings import with_overrides
from ge3d_jax.scenes.base import Renders, Scene
from ge3d_jax.training.cameras import sample_cameras
from ge3d_jax.training.config import CameraConfig, Config
from gpu_plan.walk import loop_key

# Primitives that call one program as it is, and where they keep it. A loop within any other is not counted.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "custom_vmap_call": "call",
}


def _name(equation: Any, within: str) -> str:
    """The operation that XLA will name, as `/a/b/while`."""
    stack = str(equation.source_info.name_stack)
    return "/".join(part for part in (within, stack, equation.primitive.name) if part)


def _around(equation: Any, within: str) -> str:
    """The operation that what an equation calls is within: calls are named in the stacks of what they call."""
    return "/".join(part for part in (within, str(equation.source_info.name_stack)) if part)


def _called(equation: Any) -> tuple[Any, list[Any]] | None:
    """The jaxpr that an equation calls as it is, and its constants; None where it does not."""
    inner = equation.params.get(_CALLS.get(equation.primitive.name, ""))
    if inner is None:
        return None
    return (inner.jaxpr, list(inner.consts)) if isinstance(inner, core.ClosedJaxpr) else (inner, [])


def _loops(jaxpr: Any, within: str = "") -> list[str]:
    """Operations of all `while` loops."""
    found = []
    for equation in jaxpr.eqns:
        called = _called(equation)
        if equation.primitive.name == "while":
            name = _name(equation, within)
            found += [name, *_loops(equation.params["body_jaxpr"].jaxpr, f"{name}/body")]
        elif called is not None:
            found += _loops(called[0], _around(equation, within))
    return found


def _evaluate(
    jaxpr: Any, consts: Any, arguments: Any, turns: jax.Array, numbers: Mapping[str, int], within: str
) -> tuple[list[Any], jax.Array]:
    """What a jaxpr computes, and `turns` (loops,) with the turns of its loops added."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs, kind = [value(atom) for atom in equation.invars], equation.primitive.name
        if kind == "while":
            outputs, turns = _counted_while(equation, inputs, turns, numbers, within)
        elif (called := _called(equation)) is not None and _loops(called[0]):
            around = _around(equation, within)
            outputs, turns = _evaluate(*called, inputs, turns, numbers, around)
        else:
            outputs = _alone(equation, inputs)
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [value(atom) for atom in jaxpr.outvars], turns


def _alone(equation: Any, inputs: list[Any]) -> list[Any]:
    """What a single equation computes."""
    # Constants that are written into the equation are no inputs of a program.
    taken = [not isinstance(atom, core.Literal) for atom in equation.invars]
    names = [atom for atom, is_taken in zip(equation.invars, taken, strict=True) if is_taken]
    given = dict(zip(names, (value for value, is_taken in zip(inputs, taken, strict=True) if is_taken)))
    jaxpr = core.Jaxpr((), list(given), equation.outvars, [equation])
    return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, ()))(*given.values())


def _counted_while(
    equation: Any, inputs: list[Any], turns: jax.Array, numbers: Mapping[str, int], within: str
) -> tuple[list[Any], jax.Array]:
    condition, body = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]
    of_condition = equation.params["cond_nconsts"]
    of_both = of_condition + equation.params["body_nconsts"]
    name = _name(equation, within)

    def goes_on(state: tuple[list[Any], jax.Array]) -> jax.Array:
        arguments = [*inputs[:of_condition], *state[0]]
        return core.jaxpr_as_fun(condition)(*arguments)[0]

    def turn(state: tuple[list[Any], jax.Array]) -> tuple[list[Any], jax.Array]:
        arguments = [*inputs[of_condition:of_both], *state[0]]
        turns = state[1].at[numbers[name]].add(1)
        return _evaluate(body.jaxpr, body.consts, arguments, turns, numbers, f"{name}/body")

    return jax.lax.while_loop(goes_on, turn, (inputs[of_both:], turns))


def count_turns(function: Any, *arguments: Any) -> dict[str, int]:
    """Turns of each `while` of a function, in all.

    Args:
        function: traced, and run once.
        *arguments: arrays.

    Returns:
        turns by the loop's place, "jit(f)/while/body/while". Of several at one place the most.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    loops = _loops(closed.jaxpr)
    numbers = {name: index for index, name in enumerate(dict.fromkeys(loops))}
    if not numbers:
        return {}

    def run(leaves: list[Any]) -> jax.Array:
        start = jnp.zeros(len(numbers), jnp.int32)
        return _evaluate(closed.jaxpr, closed.consts, leaves, start, numbers, "")[1]

    counts = jax.jit(run)(jax.tree.leaves(arguments)).tolist()
    return {name: counts[index] for name, index in numbers.items()}


@dataclasses.dataclass(frozen=True)
class Start:
    """What decides the pictures of a run's first iteration.

    Attributes:
        scene: with the splats to begin with.
        cameras: settings of the cameras.
        views: cameras of an iteration.
        image_size: edge of the pictures, pixels.
        together: views that are arranged around the object together.
    """

    scene: Scene
    cameras: CameraConfig
    views: int
    image_size: int
    together: int

    @classmethod
    def of(cls, config: Config) -> "Start":
        """That of a run with these settings."""
        together = config.guidance.views_together
        return cls(config.scene, config.cameras, config.views, config.image_size, together)

    def renders(self, fov: float) -> tuple[Callable[..., Renders], tuple[Any, Any]]:
        """A function that renders all views at a field of view in radians, and what to give it."""
        scene, ranges = self.scene, {"fov_radians_begin": (fov, fov), "fov_radians_end": (fov, fov)}
        state = scene.begin(jax.random.key(0))
        cameras, _ = sample_cameras(
            jax.random.key(0),
            with_overrides(self.cameras, ranges),
            jnp.int32(0),
            views=self.views,
            size=self.image_size,
            together=self.together,
        )
        backgrounds = jnp.ones((self.views, 3))

        def render(parameters: Any, perturbations: Any) -> Renders:
            changed = scene.with_parameters(state, parameters)
            return scene.render(changed, 0, cameras, backgrounds, None, perturbations)

        return render, (scene.parameters(state), scene.perturbations(state, self.views))


@functools.cache
def needed_buffer(start: Start, fov: float) -> int:
    """How long the intersection buffer must be for the fullest of the views."""
    render, arguments = start.renders(fov)
    return int(jnp.max(jax.jit(lambda *given: render(*given).needed)(*arguments)))


def with_buffer(config: Config, fovs: Sequence[float]) -> Config:
    """The settings with a buffer that holds all of these views, as it grows in a run."""
    needed = max(needed_buffer(Start.of(config), fov) for fov in fovs)
    if needed <= splats_of(config).buffer_capacity:
        return config
    return dataclasses.replace(config, scene=config.scene.grown(needed))


@functools.cache
def scene_turns(start: Start, fov: float) -> dict[str, int]:
    """Turns of the renderer's loops, forward and back, for all views, by `loop_key`."""
    render, arguments = start.renders(fov)
    gradients = jax.grad(lambda *given: jnp.sum(render(*given).rgb), argnums=(0, 1))
    return {loop_key(f"/{name}"): count for name, count in count_turns(gradients, *arguments).items()}
