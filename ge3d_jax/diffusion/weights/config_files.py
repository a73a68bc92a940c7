"""Reading a model's `config.json`: settings that are used, that must have one value, that are unsupported."""

from collections.abc import Collection, Mapping
from typing import Any

from ge3d_jax.core.errors import UserError


def _plain(value: Any) -> Any:
    """Lists as tuples, so that a config built from JSON can be hashed and compared."""
    return tuple(_plain(item) for item in value) if isinstance(value, (list, tuple)) else value


def read_settings(
    model: str,
    config: Mapping[str, Any],
    *,
    used: Collection[str],
    fixed: Mapping[str, Collection[Any]],
    ignored: Collection[str] = (),
) -> dict[str, Any]:
    """Select the used settings, and refuse those that would silently change the arithmetic.

    Args:
        model: name of the model, for messages.
        config: contents of a `config.json`. Keys that start with "_" are metadata of the writing program.
        used: keys to return if present.
        fixed: the supported values by key.
        ignored: keys that do not affect inference. Other unknown keys are accepted only if they are off (None
            or False).

    Returns:
        The used settings, lists as tuples.

    Raises:
        UserError: a setting is not supported; names the key and its value.
    """
    settings = {}
    for name, raw in config.items():
        value = _plain(raw)
        if name in used:
            settings[name] = value
        elif name in fixed:
            if value not in fixed[name]:
                allowed = " or ".join(repr(item) for item in fixed[name])
                raise UserError(f"{model} config: {name} = {raw!r} is not supported; it must be {allowed}.")
        elif not (name.startswith("_") or name in ignored or value is None or value is False):
            raise UserError(f"{model} config: the setting {name} = {raw!r} is unknown; remove it.")
    return settings
