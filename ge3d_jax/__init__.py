"""Text-to-3D with Gaussian splats: GE3D (arXiv 2412.05929) in JAX and Flax.

`ge3d_jax.generate("a red mushroom")` makes an object; see `ge3d_jax.runs.generate.generate`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ge3d_jax.runs.generate import Result as Result
    from ge3d_jax.runs.generate import generate as generate

__all__ = ["Result", "generate"]


def __getattr__(name: str) -> Any:
    # Imported on first use: JAX takes a second to import, and parts of the package work without it.
    if name in __all__:
        from ge3d_jax.runs import generate

        return getattr(generate, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
