"""The losses there are, by the name that chooses them."""

from ge3d_jax.guidance.base import Loss
from ge3d_jax.guidance.ge3d import GE3D

LOSSES: dict[str, type[Loss]] = {"ge3d": GE3D}
