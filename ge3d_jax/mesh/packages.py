"""The packages that only meshes need."""

import importlib.util
from collections.abc import Callable

from ge3d_jax.core.errors import UserError

# By module name.
_PACKAGES = {
    "mcubes": "PyMCubes",
    "fast_simplification": "fast-simplification",
    "xatlas": "xatlas",
    "trimesh": "trimesh",
}


def _is_present(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def check_packages(present: Callable[[str], bool] = _is_present) -> None:
    """Check that the packages for meshes are installed.

    Args:
        present: tells whether a module can be imported.

    Raises:
        UserError: a package is missing.
    """
    missing = [name for module, name in _PACKAGES.items() if not present(module)]
    if missing:
        raise UserError(
            f"Meshes need the package {missing[0]}, which is not installed; run pip install -r "
            "requirements-mesh.txt, with Python 3.11 or 3.12."
        )
