"""Packages that are installed only where they are wanted."""

import importlib
from typing import Any

from ge3d_jax.core.errors import UserError


def load_package(name: str, *, wanted_by: str, install: str | None = None) -> Any:
    """Import an optional package, or a module of one.

    Args:
        name: of the module.
        wanted_by: what needs it, for the message.
        install: what to give to pip; None is the package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        # The package itself, or one that it needs and that was left out.
        missing, package = (each.partition(".")[0] for each in (error.name or name, name))
        raise UserError(
            f"{wanted_by} needs the package {missing}; run pip install {install or package}."
        ) from None
