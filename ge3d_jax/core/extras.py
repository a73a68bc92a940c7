"""Optional dependencies."""

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ge3d_jax.core.errors import UserError


def load_package(name: str, *, wanted_by: str, install: str | None = None) -> Any:
    """Import an optional package, or a module of one.

    Args:
        name: name of the module.
        wanted_by: the feature that needs it, for the error message.
        install: the arguments to `pip install`; None means the package itself.

    Raises:
        UserError: the package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        # The missing package is the requested one or one of its own dependencies.
        missing, package = (each.partition(".")[0] for each in (error.name or name, name))
        raise UserError(
            f"{wanted_by} needs the package {missing}; run pip install {install or package}."
        ) from None


def package_folder(name: str, *, how_to_get: str) -> Path:
    """Return the folder of a package of which only data files are used; nothing of it is imported.

    Args:
        name: name of the package.
        how_to_get: the error message if it is missing.

    Raises:
        UserError: the package is not installed.
    """
    package = find_spec(name)
    if package is None or not package.submodule_search_locations:
        raise UserError(how_to_get)
    return Path(package.submodule_search_locations[0])
