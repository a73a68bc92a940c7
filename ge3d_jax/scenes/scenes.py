"""The kinds of scenes there are."""

from ge3d_jax.scenes.splats import Splats

SCENES: dict[str, type] = {"splats": Splats}
