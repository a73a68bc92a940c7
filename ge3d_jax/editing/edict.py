"""EDICT: two coupled chains, each updated with the network's prediction for the other; exactly invertible.

Symbols: x_0, x_1, the chains; p, `mixing`; φ, the DDIM step with ε̂ of the other chain. Going down, at step
k: chain k mod 2 moves by φ, then the other; then x_0 ← p·x_0 + (1−p)·x_1, and x_1 ← (1−p)·x_0 + p·x_1 with
the new x_0. Going up undoes this in reverse, exactly up to rounding, which the mixing amplifies: 1e-4 in
float32, 1e-14 in float64. States are float64 if enabled, whatever precision the network computes in.

Source: Wallace et al., "EDICT: Exact Diffusion Inversion via Coupled Transformations", arXiv 2211.12446, and
its public code.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.denoiser import Denoiser, classifier_free_epsilon
from ge3d_jax.diffusion.schedule import ddim_step
from ge3d_jax.editing.base import Edited, EditTask, Method
from ge3d_jax.editing.control import PromptControl


@dataclasses.dataclass(frozen=True)
class EDICT(Method):
    """EDICT. With attention control, the target inherits its own latents' attention under the source prompt.

    Attributes:
        mixing: p.
        strength: fraction of the steps to run, counted from the image end.
    """

    blends: ClassVar[bool] = False

    scale: float = 3.0
    mixing: float = 0.93
    strength: float = 0.8

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        super().__post_init__()
        if not 0.5 < self.mixing <= 1:
            raise UserError(
                f"The setting mixing is {self.mixing}; give a number above 0.5, up to 1, so that "
                "inversion can undo the mixing."
            )
        if not 0 < self.strength <= 1 or self.made < 1:
            raise UserError(
                f"The setting strength is {self.strength}, which leaves none of {self.steps} steps; give a "
                "share up to 1."
            )

    @property
    def made(self) -> int:
        """The number of steps run in each direction."""
        return round(self.steps * self.strength)

    def up(self, task: EditTask, denoiser: Denoiser) -> jax.Array:
        """Invert both chains, (made + 1, 2, P, h, w, C), starting from the latents."""
        times = self.times(denoiser)[self.steps - self.made :]
        exact = task.latents.astype(jnp.result_type(float))
        chains = jnp.stack([exact, exact])
        return couple_up(
            denoiser, chains, task.source, task.empties, times, scale=self.scale, mixing=self.mixing
        )

    def down(self, task: EditTask, denoiser: Denoiser, chains: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Denoise both chains toward the target, and return attention maps; see `couple_down`."""
        times = self.times(denoiser)[self.steps - self.made :]
        texts = jnp.concatenate([task.source, task.target])
        empty = jnp.concatenate([task.empties, task.empties])
        return couple_down(
            denoiser,
            chains,
            texts,
            empty,
            times,
            task.control.first(self.made),
            scale=self.scale,
            mixing=self.mixing,
        )

    def __call__(self, task: EditTask, denoiser: Denoiser, key: jax.Array) -> Edited:
        """Edit the images; this method is deterministic and does not blend."""
        up = self.up(task, denoiser)
        down, maps = self.down(task, denoiser, up[-1])
        to_source = dataclasses.replace(task, target=task.source, control=task.control.closed)
        source, _ = self.down(to_source, denoiser, up[-1])
        return Edited(up[:, 0], down[:, 0], source[:, 0], maps)


def _in_order(chains: tuple[jax.Array, jax.Array], step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the chain that moves first at a step, then the other; applying it twice restores the order."""
    is_odd = step % 2 == 1
    first, second = chains
    return jnp.where(is_odd, second, first), jnp.where(is_odd, first, second)


@jax.jit
def couple_up(
    denoiser: Denoiser,
    chains: jax.Array,
    text: jax.Array,
    empty: jax.Array,
    times: jax.Array,
    *,
    scale: float,
    mixing: float,
) -> jax.Array:
    """Undo `couple_down` without attention control: chains (2, P, h, w, C) → (N + 1, 2, P, h, w, C).

    Args:
        denoiser: the model, for P views.
        chains: the starting states, at the last of the times.
        text, empty: (P, L, D).
        times: (N + 1,) int32, decreasing.
        scale: s.
        mixing: p.
    """
    schedule = denoiser.schedule

    def step(chains: jax.Array, given: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        index, now, then = given

        def raised(x: jax.Array, other: jax.Array) -> jax.Array:
            without, wanted = denoiser.predict_for(other, now, empty, text)
            epsilon = classifier_free_epsilon(without, wanted, scale)
            return ddim_step(schedule, x, epsilon, then, now).astype(x.dtype)

        zero, one = chains
        one = (one - (1.0 - mixing) * zero) / mixing
        zero = (zero - (1.0 - mixing) * one) / mixing
        first, second = _in_order((zero, one), index)
        second = raised(second, first)
        first = raised(first, second)
        chains = jnp.stack(_in_order((first, second), index))
        return chains, chains

    given = (jnp.arange(len(times) - 1), times[:-1], times[1:])
    reverse = jax.tree.map(lambda array: array[::-1], given)
    _, states = jax.lax.scan(step, chains, reverse)
    return jnp.concatenate([chains[None], states])


@jax.jit
def couple_down(
    denoiser: Denoiser,
    chains: jax.Array,
    texts: jax.Array,
    empty: jax.Array,
    times: jax.Array,
    control: PromptControl,
    *,
    scale: float,
    mixing: float,
) -> tuple[jax.Array, jax.Array]:
    """Denoise both chains toward a target.

    Args:
        denoiser: the model.
        chains: (2, P, h, w, C), the starting states, at the first of the times.
        texts: (2P, L, D), of sources, which only lend attention, and of targets.
        empty: (2P, L, D), the empty prompt.
        times: (N + 1,) int32, decreasing.
        control: what the targets take from their sources, for N steps.
        scale: s.
        mixing: p.

    Returns:
        states (N + 1, 2, P, h, w, C), and maps (2, P, mh, mw, L), summed attention to the texts.
    """
    schedule, pictures = denoiser.schedule, chains.shape[1]

    def step(
        chains: jax.Array, given: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        index, now, then = given

        def lowered(x: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
            both = jnp.concatenate([other, other])
            (without, wanted), seen = denoiser.controlled_for(
                both, now, empty, texts, control=control.at(index)
            )
            epsilon = classifier_free_epsilon(without[pictures:], wanted[pictures:], scale)
            return ddim_step(schedule, x, epsilon, now, then).astype(x.dtype), seen

        first, second = _in_order((chains[0], chains[1]), index)
        first, seen = lowered(first, second)
        second, seen_too = lowered(second, first)
        zero, one = _in_order((first, second), index)
        zero = mixing * zero + (1.0 - mixing) * one
        one = (1.0 - mixing) * zero + mixing * one
        chains = jnp.stack([zero, one])
        return chains, (chains, seen + seen_too)

    given = (jnp.arange(len(times) - 1), times[:-1], times[1:])
    _, (states, maps) = jax.lax.scan(step, chains, given)
    maps = jnp.sum(maps, axis=0)
    return jnp.concatenate([chains[None], states]), maps.reshape(2, pictures, *maps.shape[1:])
