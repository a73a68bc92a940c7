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

from ge3d_jax.core.devices import Target, compiling_for
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.scenes.base import Renders, Scene
from ge3d_jax.splatting.cameras import Camera
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
    """The operation that surrounds what an equation calls."""
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
            primitive = equation.primitive
            outputs = primitive.bind(*inputs, **primitive.get_bind_params(equation.params))
            outputs = outputs if primitive.multiple_results else [outputs]
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [value(atom) for atom in jaxpr.outvars], turns


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


def turn_counter(function: Any, *arguments: Any) -> Callable[..., dict[str, int]]:
    """A function of the same arguments that counts the turns of each `while` of a function, in all.

    Args:
        function: is traced, and run by what is returned.
        *arguments: arrays, or their shapes.

    Returns:
        a function to turns by the loop's place, "jit(f)/while/body/while"; those of several at one place are
        added up.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    numbers = {name: index for index, name in enumerate(dict.fromkeys(_loops(closed.jaxpr)))}

    @jax.jit
    def run(leaves: list[Any]) -> jax.Array:
        start = jnp.zeros(len(numbers), jnp.int32)
        return _evaluate(closed.jaxpr, closed.consts, leaves, start, numbers, "")[1]

    def count(*arguments: Any) -> dict[str, int]:
        counts = run(jax.tree.leaves(arguments)).tolist() if numbers else []
        return {name: counts[index] for name, index in numbers.items()}

    return count


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

    def cameras_at(self, fov: float) -> Camera:
        """Cameras of a field of view in radians."""
        ranges = {"fov_radians_begin": (fov, fov), "fov_radians_end": (fov, fov)}
        cameras, _ = sample_cameras(
            jax.random.key(0),
            with_overrides(self.cameras, ranges),
            jnp.int32(0),
            views=self.views,
            size=self.image_size,
            together=self.together,
        )
        return cameras

    def renderer(self) -> tuple[Callable[..., Renders], Any]:
        """A function of parameters, perturbations and cameras, and the first two of them."""
        scene, views = self.scene, self.views
        state = scene.begin(jax.random.key(0))

        def render(parameters: Any, perturbations: Any, cameras: Camera) -> Renders:
            changed = scene.with_parameters(state, parameters)
            return scene.render(changed, 0, cameras, jnp.ones((views, 3)), None, perturbations)

        return render, (scene.parameters(state), scene.perturbations(state, views))


def with_buffer(config: Config, fovs: Sequence[float]) -> Config:
    """The settings with a buffer that holds the start at each field of view, as it grows in a run."""
    start = Start.of(config)
    render, given = start.renderer()
    needs = jax.jit(lambda cameras: render(*given, cameras).needed)
    needed = max(int(jnp.max(needs(start.cameras_at(fov)))) for fov in fovs)
    if needed <= splats_of(config).buffer_capacity:
        return config
    return dataclasses.replace(config, scene=config.scene.grown(needed))


@functools.cache
def scene_turns(start: Start, target: Target, fovs: tuple[float, ...]) -> list[dict[str, int]]:
    """Turns of the renderer's loops, forward and back, for all views of each field of view, by `loop_key`.

    Args:
        start: what is rendered.
        target: the kind of device that the renderer is traced for.
        fovs: radians.
    """
    render, given = start.renderer()
    gradients = jax.grad(lambda *given: jnp.sum(render(*given).rgb), argnums=(0, 1))
    with compiling_for(target):
        count = turn_counter(gradients, *given, start.cameras_at(fovs[0]))
    return [
        {loop_key(f"/{name}"): turns for name, turns in count(*given, start.cameras_at(fov)).items()}
        for fov in fovs
    ]
