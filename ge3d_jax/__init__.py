"""Text-to-3D with Gaussian splats: GE3D (arXiv 2412.05929) in JAX and Flax.

`ge3d_jax.generate("a red mushroom")` makes an object; see `ge3d_jax.runs.generate.generate`.
`ge3d_jax.sweep("a red mushroom", seeds=range(8))` makes many; see `ge3d_jax.runs.sweep.sweep`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ge3d_jax.runs.generate import Result as Result
    from ge3d_jax.runs.generate import generate as generate
    from ge3d_jax.runs.sweep import SweepResult as SweepResult
    from ge3d_jax.runs.sweep import sweep as sweep

_MODULE_OF = {"Result": "generate", "generate": "generate", "SweepResult": "sweep", "sweep": "sweep"}
__all__ = ["Result", "SweepResult", "generate", "sweep"]


def __getattr__(name: str) -> Any:
    # Imported on first use: JAX takes a second to import, and parts of the package work without it.
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"ge3d_jax.runs.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
