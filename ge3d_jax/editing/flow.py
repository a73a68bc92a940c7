"""FlowEdit, which needs no inversion, adapted to networks that predict noise. Experimental.

The image moves along the difference between the two prompts' predictions under the same noise. With σ =
√((1−ᾱ)/ᾱ) and states x/√ᾱ, the ODE of a diffusion model is dX/dσ = ε, so

    Z ← Z + (σ_b − σ_a)·(ε̂_tgt(Z + σ_a·n) − ε̂_src(X + σ_a·n)),

where X is the image and n is fresh noise at each step. The paper covers flow models only.
Source: Kulikov et al., "FlowEdit: Inversion-Free Text-Based Editing Using Pre-Trained Flow Models", arXiv
2412.08629, algorithm 1.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import normal
from ge3d_jax.core.settings import check_at_least
from ge3d_jax.diffusion.denoiser import Denoiser
from ge3d_jax.editing.base import Edited, EditTask, Method
from ge3d_jax.editing.control import PromptControl


@dataclasses.dataclass(frozen=True)
class FlowEdit(Method):
    """FlowEdit.

    Attributes:
        source_scale: s of the source.
        strength: fraction of the steps to run, counted from the image end.
        draws: the number of noise samples n per step; their changes are averaged.
    """

    blends: ClassVar[bool] = False

    first_time: int = 1
    scale: float = 7.5
    source_scale: float = 1.5
    strength: float = 0.7
    draws: int = 1

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        super().__post_init__()
        check_at_least(draws=(self.draws, 1))
        if not 0 < self.strength <= 1 or self.made < 1:
            raise UserError(
                f"The setting strength is {self.strength}, which leaves none of {self.steps} steps; give a "
                "share up to 1."
            )

    @property
    def made(self) -> int:
        """The number of steps run."""
        return round(self.steps * self.strength)

    def __call__(self, task: EditTask, denoiser: Denoiser, key: jax.Array) -> Edited:
        """Edit the images; each step draws its own noise. The reconstruction is the image itself."""
        noise = normal(key, (self.made, self.draws, *task.latents.shape))
        states, maps = flow(
            denoiser,
            task.latents,
            jnp.concatenate([task.source, task.target]),
            jnp.concatenate([task.empties, task.empties]),
            self.times(denoiser)[self.steps - self.made :],
            noise,
            task.control.first(self.made),
            scales=jnp.asarray([self.source_scale, self.scale], task.latents.dtype),
        )
        source = jnp.broadcast_to(task.latents, states.shape)
        return Edited(task.latents[None], states, source, maps)


@jax.jit
def flow(
    denoiser: Denoiser,
    latents: jax.Array,
    texts: jax.Array,
    empty: jax.Array,
    times: jax.Array,
    noise: jax.Array,
    control: PromptControl,
    *,
    scales: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Move images along the difference between two prompts.

    Args:
        denoiser: the model.
        latents: (P, h, w, C), X.
        texts: (2P, L, D), of sources and targets.
        empty: (2P, L, D), the empty prompt.
        times: (N + 1,) int32, decreasing.
        noise: (N, K, P, h, w, C), n.
        control: what the targets take from their sources, for N steps.
        scales: (2,), s of sources and targets.

    Returns:
        Z (N + 1, P, h, w, C), starting with X; maps (2, P, mh, mw, L), attention to the texts, summed.
    """
    pictures = latents.shape[0]
    alphas = denoiser.schedule.alphas_cumprod
    scale = jnp.repeat(scales, pictures)[:, None, None, None].astype(latents.dtype)

    def step(moved: jax.Array, given: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        index, now, then, draws = given
        sigma, lower = (jnp.sqrt((1.0 - alphas[t]) / alphas[t]) for t in (now, then))

        def change(n: jax.Array) -> tuple[jax.Array, jax.Array]:
            both = jnp.concatenate([latents + sigma * n, moved + sigma * n]) * jnp.sqrt(alphas[now])
            (without, wanted), seen = denoiser.controlled_for(
                both, now, empty, texts, control=control.at(index)
            )
            source, target = jnp.split(without + scale * (wanted - without), 2)
            return target - source, seen

        changes, seen = jax.lax.map(change, draws)
        moved = moved + (lower - sigma) * jnp.mean(changes, axis=0)
        return moved, (moved, jnp.sum(seen, axis=0))

    given = (jnp.arange(len(times) - 1), times[:-1], times[1:], noise)
    _, (states, maps) = jax.lax.scan(step, latents, given)
    maps = jnp.sum(maps, axis=0)
    return jnp.concatenate([latents[None], states]), maps.reshape(2, pictures, *maps.shape[1:])
