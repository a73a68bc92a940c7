"""Settings trees: nested frozen dataclasses whose fields are addressed by dotted names.

A section is a setting whose value is a frozen dataclass: `scene.density.every` is the setting `every` of the
section `density` of the section `scene`. A section may be a choice among several dataclasses, each identified
by a kind; `guidance.kind` selects one.
"""

import dataclasses
import difflib
import json
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from ge3d_jax.core.errors import UserError, shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")

_CHOICES = "choices"
_KIND = "kind"
_NUMBERS = (int, float)
# A longer hint would be a list.
_MOST_SUGGESTIONS = 4


@dataclasses.dataclass
class _Draft:
    """A mutable section: dataclasses validate themselves, so they are built once all values are known."""

    cls: type
    # The values of sections are drafts themselves.
    values: dict[str, Any]


def choice(choices: Callable[[], Mapping[str, type]], default: Any) -> Any:
    """A dataclass field whose value is one of several frozen dataclasses.

    Args:
        choices: returns the mapping of kind → class, in display order. Each kind has its own class, which
            can be constructed without arguments and has no setting named `kind`. The function is called when
            the settings are used rather than when they are defined, so that it may import modules lazily.
        default: an instance of one of the classes.

    Returns:
        What `dataclasses.field` returns.
    """
    return dataclasses.field(default=default, metadata={_CHOICES: choices})


def _is_section(value: Any) -> TypeGuard["DataclassInstance"]:
    """Whether a value is a section, i.e. holds settings itself."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _choices_of(owner: type, field_name: str) -> Mapping[str, type] | None:
    """The mapping of kind → class of a dataclass field; None if the field is not a choice."""
    (field,) = [field for field in dataclasses.fields(owner) if field.name == field_name]
    return field.metadata[_CHOICES]() if _CHOICES in field.metadata else None


def _kind_of_class(name: str, cls: type, choices: Mapping[str, type]) -> str:
    """The kind of a class. Raises TypeError if the section `name` holds none of its choices."""
    for kind, known in choices.items():
        if known is cls:
            return kind
    raise TypeError(f"{name} holds a {cls.__name__}, which is none of its choices: {', '.join(choices)}.")


def _class_of_kind(name: str, kind: Any, choices: Mapping[str, type]) -> type:
    """The class of a kind. Raises UserError if the section `name` has no such kind."""
    if not isinstance(kind, str) or kind not in choices:
        raise UserError(f"The setting {name}.{_KIND} is {shown(kind)}; use one of {', '.join(choices)}.")
    return choices[kind]


def kind_of(config: "DataclassInstance", name: str) -> str:
    """The kind of a section that is a choice.

    Args:
        config: a frozen dataclass of settings and sections.
        name: the full dotted name of the section, such as `guidance` or `scene.density`.

    Raises:
        TypeError: the section is not a choice, or its value is none of the choices.
    """
    owner_name, _, field_name = name.rpartition(".")
    owner: Any = config
    for part in owner_name.split(".") if owner_name else ():
        owner = getattr(owner, part)
    choices = _choices_of(type(owner), field_name)
    if choices is None:
        raise TypeError(f"{name} is not a choice.")
    return _kind_of_class(name, type(getattr(owner, field_name)), choices)


def to_tree(config: "DataclassInstance") -> dict[str, Any]:
    """Convert all settings to nested dictionaries, for JSON; a choice's dictionary begins with `kind`.

    Args:
        config: a frozen dataclass of settings and sections.

    Returns:
        Name → value, or name → nested dictionary for a section. Tuples stay tuples.
    """
    tree: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if _is_section(value):
            choices = _choices_of(type(config), field.name)
            kind = {} if choices is None else {_KIND: _kind_of_class(field.name, type(value), choices)}
            tree[field.name] = kind | to_tree(value)
        else:
            tree[field.name] = value
    return tree


def from_tree(default: Settings, tree: Mapping[str, Any]) -> Settings:
    """Rebuild settings from the output of `to_tree`, even after a round trip through JSON.

    Args:
        default: settings of the same class; provides the classes of the sections that are not choices.
        tree: name → value, or name → nested dictionary for a section; every setting is present.

    Raises:
        UserError: an unknown or missing setting, a kind that does not exist, or a value of the wrong type;
            the message names it.
    """
    return _from_tree(default, tree, "")


def _from_tree(default: Settings, tree: Any, prefix: str) -> Settings:
    """Apply `from_tree` to the section whose setting names begin with `prefix`."""
    if not isinstance(tree, Mapping):
        section = prefix.removesuffix(".") or "configuration"
        raise UserError(f"The section {section} is {shown(tree)}; give its settings by name.")
    known = [field.name for field in dataclasses.fields(default)]
    for name in tree:
        if name not in known:
            raise _no_such_setting(f"{prefix}{name}", [prefix + other for other in known])
    hints = typing.get_type_hints(type(default))
    values = {}
    for name in known:
        current = getattr(default, name)
        if _is_section(current):
            # For an absent section, the error names its first setting.
            inner = tree.get(name, {})
            choices = _choices_of(type(default), name)
            if choices is not None and isinstance(inner, Mapping):
                kind = _given(inner, _KIND, f"{prefix}{name}.")
                current = _class_of_kind(prefix + name, kind, choices)()
                inner = {leaf: value for leaf, value in inner.items() if leaf != _KIND}
            values[name] = _from_tree(current, inner, f"{prefix}{name}.")
        else:
            values[name] = _convert(prefix + name, _given(tree, name, prefix), hints[name])
    return type(default)(**values)


def _given(tree: Mapping[str, Any], name: str, prefix: str) -> Any:
    """The value called `name`. Raises UserError if there is none."""
    if name not in tree:
        raise UserError(
            f"The configuration lacks the setting {prefix}{name}; add it, or start from a preset."
        )
    return tree[name]


def setting_names(config: "DataclassInstance") -> list[str]:
    """The full dotted names of all settings, in tree order; a choice's names begin with `….kind`.

    Args:
        config: a frozen dataclass of settings and sections.
    """
    return _draft_names(_opened(config))


def with_overrides(config: Settings, overrides: Mapping[str, Any]) -> Settings:
    """A copy of `config` with some settings changed.

    Args:
        config: a frozen dataclass of settings and sections.
        overrides: dotted setting name → value. The end of a name suffices if it is unambiguous, e.g.
            `density.every` for `scene.density.every`; if two names refer to the same setting, the later one
            wins. A string for a non-string setting is parsed as JSON (`"4"`, `"true"`, `"[3.35, 3.65]"`,
            `"null"`), so that values may come from a command line. Kinds of choices are applied first,
            regardless of their position: a new kind starts from its own defaults and keeps none of the
            previous kind's values.

    Raises:
        UserError: an unknown setting (the message suggests close matches), an ambiguous name (lists the
            candidates), a kind that does not exist (lists the valid ones), or a value of the wrong type.
    """
    draft = _opened(config)
    _choose_kinds(draft, overrides)
    names = _draft_names(draft)
    for given, value in overrides.items():
        name = _full_name(given, names)
        owner, leaf = _owner(draft, name)
        # Otherwise it is a kind, which has already been applied.
        if leaf in owner.values:
            annotated = typing.get_type_hints(owner.cls)[leaf]
            owner.values[leaf] = _convert(name, _read(name, value, annotated), annotated)
    return _closed(draft)


def _opened(config: "DataclassInstance") -> _Draft:
    """Convert settings to a draft."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    opened = {name: _opened(value) if _is_section(value) else value for name, value in values.items()}
    return _Draft(type(config), opened)


def _closed(draft: _Draft) -> Any:
    """Build the settings of a draft, inner sections first."""
    values = draft.values.items()
    return draft.cls(
        **{name: _closed(value) if isinstance(value, _Draft) else value for name, value in values}
    )


def _draft_names(draft: _Draft, prefix: str = "") -> list[str]:
    """The `setting_names` of a draft."""
    names = []
    for name, value in draft.values.items():
        if not isinstance(value, _Draft):
            names.append(prefix + name)
            continue
        if _choices_of(draft.cls, name) is not None:
            names.append(f"{prefix}{name}.{_KIND}")
        names += _draft_names(value, f"{prefix}{name}.")
    return names


def _owner(draft: _Draft, name: str) -> tuple[_Draft, str]:
    """The section that contains a setting, and the setting's name within it."""
    *path, leaf = name.split(".")
    for part in path:
        draft = draft.values[part]
    return draft, leaf


def _choose_kinds(draft: _Draft, overrides: Mapping[str, Any]) -> None:
    """Apply the kinds among the overrides: replace each choice by a section of the given kind."""
    pending = dict(overrides)
    while True:
        names = _draft_names(draft)
        full_names = {given: _matches(given, names) for given in pending}
        kinds = {found[0]: pending[given] for given, found in full_names.items() if _are_kind(draft, found)}
        if not kinds:
            return
        # Outermost first: outer kinds introduce the sections that inner ones refer to.
        name = min(kinds, key=lambda kind: kind.count("."))
        _choose_kind(draft, name.removesuffix(f".{_KIND}"), kinds[name])
        pending = {given: value for given, value in pending.items() if full_names[given] != [name]}


def _are_kind(draft: _Draft, names: list[str]) -> bool:
    """Whether there is a single name and it is a choice's kind, not an ordinary setting named `kind`."""
    if len(names) != 1:
        return False
    owner, leaf = _owner(draft, names[0])
    return leaf == _KIND and leaf not in owner.values


def _choose_kind(draft: _Draft, section: str, kind: Any) -> None:
    """Switch the choice `section` to a kind; unless that is its current kind, it starts from the defaults."""
    owner, name = _owner(draft, section)
    choices = _choices_of(owner.cls, name)
    assert choices is not None  # it has a kind
    cls = _class_of_kind(section, kind, choices)
    if owner.values[name].cls is not cls:
        owner.values[name] = _opened(cls())


def _matches(given: str, names: Iterable[str]) -> list[str]:
    """The setting called `given`; failing that, those whose names end with it."""
    return [given] if given in names else [name for name in names if name.endswith(f".{given}")]


def _full_name(given: str, names: list[str]) -> str:
    """The full name of a setting. Raises UserError unless it is exactly one setting and not a section."""
    inside = [name for name in names if name.startswith(f"{given}.")]
    if inside:
        raise UserError(f"The setting {given!r} is a section; give one of its settings, e.g. {inside[0]}.")
    found = _matches(given, names)
    if len(found) > 1:
        raise UserError(f"The setting {given!r} could be {' or '.join(found)}; write one of them in full.")
    if not found:
        raise _no_such_setting(given, names)
    return found[0]


def _no_such_setting(given: str, names: list[str]) -> UserError:
    """The error for a setting that does not exist, with similar names as suggestions."""
    leaves = {name: name.rsplit(".", 1)[-1] for name in names}
    close_leaves = difflib.get_close_matches(given.rsplit(".", 1)[-1], set(leaves.values()), n=3)
    close = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    close += [name for name, leaf in leaves.items() if leaf in close_leaves]
    suggestions = list(dict.fromkeys(close))[:_MOST_SUGGESTIONS]
    remedy = f"did you mean {' or '.join(suggestions)}" if suggestions else "see the settings' list"
    return UserError(f"The setting {shown(given)} does not exist; {remedy}?")


def _without_none(annotated: Any) -> Any:
    """X for X | None; any other annotation unchanged."""
    if typing.get_origin(annotated) not in (types.UnionType, typing.Union):
        return annotated
    (inner,) = [option for option in typing.get_args(annotated) if option is not types.NoneType]
    return inner


def _read(name: str, given: Any, annotated: Any) -> Any:
    """Parse a string as JSON; for a string setting, only `null` (meaning None) is parsed."""
    inner = _without_none(annotated)
    if not isinstance(given, str) or (inner is str and (annotated is str or given != "null")):
        return given
    try:
        return json.loads(given)
    # Besides text that is not JSON: a number with too many digits, or brackets nested too deeply.
    except (ValueError, RecursionError):
        raise UserError(
            f"The setting {name} is {shown(given)}, which cannot be read; write 4, true or [1, 2]."
        ) from None


def _convert(name: str, value: Any, annotated: Any) -> Any:
    """Convert a value to the annotated type: lists to tuples and whole numbers to floats where annotated."""
    inner = _without_none(annotated)
    if inner is not annotated and value is None:
        return None
    if typing.get_origin(inner) is tuple:
        return _convert_tuple(name, value, typing.get_args(inner))
    # Numbers too large for a float do not count as numbers; neither do NaN and infinity.
    is_number = isinstance(value, _NUMBERS) and not isinstance(value, bool)
    is_number = is_number and abs(value) <= sys.float_info.max
    if inner is float and is_number:
        return float(value)
    if inner is int and is_number and value == int(value):
        return int(value)
    if inner in (bool, str) and isinstance(value, inner):
        return value
    expected = {float: "a number", int: "a whole number", bool: "true or false", str: "a string"}[inner]
    raise UserError(f"The setting {name} is {shown(value)}; give {expected}.")


def _convert_tuple(name: str, value: Any, annotated: tuple[Any, ...]) -> tuple[Any, ...]:
    """Apply `_convert` to tuple[X, Y], or to tuple[X, ...] of any length."""
    of_any_length = annotated[-1] is Ellipsis
    if isinstance(value, list | tuple):
        inner = (annotated[0],) * len(value) if of_any_length else annotated
        if len(value) == len(inner):
            return tuple(_convert(name, v, kind) for v, kind in zip(value, inner, strict=True))
    plural = "numbers" if all(kind in (*_NUMBERS, Ellipsis) for kind in annotated) else "values"
    if of_any_length:
        raise UserError(f"The setting {name} is {shown(value)}; give a list of {plural}, e.g. […, …].")
    places = ", ".join("…" for _ in annotated)
    raise UserError(f"The setting {name} is {shown(value)}; give {len(annotated)} {plural} as [{places}].")


def check_at_least(**bounds: tuple[float, float]) -> None:
    """Check that settings are not below their lower bounds.

    Args:
        bounds: name of a setting → its value and the smallest allowed value.

    Raises:
        UserError: a setting is too small; the message names it.
    """
    for name, (value, least) in bounds.items():
        if value < least:
            raise UserError(f"The setting {name} is {value}, but at least {least} is needed; raise it.")
