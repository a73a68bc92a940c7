"""Trees of settings: frozen dataclasses with sections, addressed by dotted names, `cameras.radius_begin`."""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ge3d_jax.core.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


def setting_names(config: "DataclassInstance") -> list[str]:
    """The dotted names of all settings, in the order of the tree."""
    names = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            names += [f"{field.name}.{inner.name}" for inner in dataclasses.fields(value)]
        else:
            names.append(field.name)
    return names


def _convert(name: str, value: Any, kind: Any) -> Any:
    """`value` as the annotated type `kind`; lists become tuples and whole numbers floats where asked for."""
    origin = typing.get_origin(kind)
    if origin is types.UnionType:
        if value is None:
            return None
        (inner,) = [option for option in typing.get_args(kind) if option is not types.NoneType]
        return _convert(name, value, inner)
    if origin is tuple:
        inner_kinds = typing.get_args(kind)
        if isinstance(value, list | tuple) and len(value) == len(inner_kinds):
            return tuple(_convert(name, v, k) for v, k in zip(value, inner_kinds, strict=True))
        expected = f"{len(inner_kinds)} numbers, as [{', '.join('…' for _ in inner_kinds)}]"
        raise UserError(f"The setting {name} is {value!r}; give {expected}.")
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is float and is_number:
        return float(value)
    if kind is int and is_number and value == int(value):
        return int(value)
    if kind in (bool, str) and isinstance(value, kind):
        return value
    expected = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}[kind]
    raise UserError(f"The setting {name} is {value!r}; give {expected}.")


def with_overrides(config: Settings, overrides: Mapping[str, Any]) -> Settings:
    """A copy of `config` with some settings changed.

    Args:
        config: a frozen dataclass of settings and of sections of settings.
        overrides: dotted setting name → value. A text for a setting that is no text is read as JSON
            (`"4"`, `"true"`, `"[3.35, 3.65]"`, `"null"`), so that values may come from a command line.

    Raises:
        UserError: an unknown setting (names it and close matches) or a value of the wrong kind.
    """
    names = setting_names(config)
    sections: dict[str, dict[str, Any]] = {}
    for name, given in overrides.items():
        if name not in names:
            leaves = {full.rsplit(".", 1)[-1]: full for full in names}
            close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
            close += [
                leaves[leaf] for leaf in difflib.get_close_matches(name.rsplit(".", 1)[-1], leaves, n=3)
            ]
            remedy = (
                f"did you mean {' or '.join(dict.fromkeys(close))}" if close else "see the settings' list"
            )
            raise UserError(f"The setting {name!r} does not exist; {remedy}?")
        section, _, leaf = name.rpartition(".")
        owner = getattr(config, section) if section else config
        kind = typing.get_type_hints(type(owner))[leaf]
        value = given
        if isinstance(given, str) and kind is not str:
            try:
                value = json.loads(given)
            except json.JSONDecodeError:
                raise UserError(
                    f"The setting {name} is {given!r}, which cannot be read; write 4, true or [1, 2]."
                ) from None
        sections.setdefault(section, {})[leaf] = _convert(name, value, kind)
    changes = sections.pop("", {})
    for section, values in sections.items():
        changes[section] = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **changes)
