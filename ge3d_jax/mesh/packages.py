"""The packages that meshes need and nothing else does."""

import importlib.util

from ge3d_jax.core.errors import UserError

# By the names of their modules.
_PACKAGES = {
    "mcubes": "PyMCubes",
    "fast_simplification": "fast-simplification",
    "xatlas": "xatlas",
    "trimesh": "trimesh",
}


def check_packages() -> None:
    """Check that what meshes need is installed.

    Raises:
        UserError: a package is missing.
    """
    missing = [name for module, name in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(
            f"Meshes need the package {missing[0]}, which is not installed; run pip install -r "
            "requirements-mesh.txt, with Python 3.11 or 3.12."
        )
