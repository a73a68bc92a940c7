"""The registry of scene types, by name."""

from ge3d_jax.scenes.splats import Splats

SCENES: dict[str, type] = {"splats": Splats}
