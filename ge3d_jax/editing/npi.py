"""Negative-prompt inversion: the source prompt takes the place of the empty prompt, which cancels guidance.

The source's two predictions then coincide, so denoising retraces its inversion without any optimization. The
proximal variant also treats small differences between the target's two predictions as zero.

Source: Miyake et al., "Negative-prompt Inversion", arXiv 2305.16807; Han et al., "ProxEdit: Improving
Tuning-Free Real Image Editing with Proximal Guidance", arXiv 2306.05414, and its public code.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ge3d_jax.core.errors import UserError, shown
from ge3d_jax.diffusion.denoiser import Denoiser
from ge3d_jax.editing.base import EditTask
from ge3d_jax.editing.ddim import DDIM
from ge3d_jax.editing.descent import Plan, Proximal, way_down

PROXIMAL = ("none", "l0", "l1")


def slerp(low: jax.Array, high: jax.Array, share: float | jax.Array) -> jax.Array:
    """Interpolate spherically between two embeddings, treating each text (L, D) of a batch as one vector.

    Args:
        low, high: (P, L, D); they must not point in the same or in opposite directions.
        share: 0 for `low`, 1 for `high`.
    """

    def flat(text: jax.Array) -> jax.Array:
        return text / jnp.linalg.norm(text.reshape(len(text), -1), axis=1)[:, None, None]

    angle = jnp.arccos(jnp.sum(flat(low) * flat(high), axis=(1, 2)))[:, None, None]
    return (jnp.sin((1.0 - share) * angle) * low + jnp.sin(share * angle) * high) / jnp.sin(angle)


@dataclasses.dataclass(frozen=True)
class NPI(DDIM):
    """Negative-prompt inversion.

    Attributes:
        proximal: how to shrink δ = ε_c − ε_∅: "none" leaves it as is; "l0" moves it toward 0 by its quantile
            and pulls the image onto its inversion trajectory where nothing is left; "l1" moves it twice.
        quantile: the quantile of |δ|, taken over both branches.
        pulled_below: with "l0", pull the image only below this time.
        towards_empty: how far the unconditional text moves from the source to the empty prompt, 0 to 1.
    """

    proximal: str = "none"
    quantile: float = 0.75
    pulled_below: int = 400
    towards_empty: float = 0.0

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        super().__post_init__()
        if self.proximal not in PROXIMAL:
            raise UserError(
                f"The setting proximal is {shown(self.proximal)}; use one of {', '.join(PROXIMAL)}."
            )
        for name in ("quantile", "towards_empty"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"The setting {name} is {getattr(self, name)}; give a number from 0 to 1.")

    def proximal_guidance(self) -> Proximal:
        """Return the proximal settings in the form that denoising takes."""
        return Proximal(
            quantile=jnp.float32(self.quantile),
            factor=jnp.float32(self.proximal != "none"),
            twice=jnp.asarray(self.proximal == "l1"),
            pulled_below=jnp.int32(self.pulled_below if self.proximal == "l0" else 0),
        )

    def plan(self, task: EditTask, denoiser: Denoiser) -> Plan:
        """Compute everything that denoising needs."""
        up = self.up(task, denoiser)
        without = task.source
        if self.towards_empty:
            without = slerp(task.source, task.empties, self.towards_empty)
        way = way_down(
            task,
            self.times(denoiser),
            up,
            scale=self.scale,
            unconditional=(without, without),
            proximal=self.proximal_guidance(),
        )
        return Plan(up, way)


@dataclasses.dataclass(frozen=True)
class ProximalNPI(NPI):
    """NPI with proximal guidance; same settings as NPI."""

    proximal: str = "l0"
