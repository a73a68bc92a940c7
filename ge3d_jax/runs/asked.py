"""The inputs of a run: from a preset or the config.json of an earlier run, combined with the caller's."""

import dataclasses
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ge3d_jax.core.errors import UserError, reason, shown
from ge3d_jax.core.files import parse_json
from ge3d_jax.core.settings import from_tree, to_tree, with_overrides
from ge3d_jax.runs.model_choice import FilePath, ModelChoice
from ge3d_jax.scenes.start.starts import is_named
from ge3d_jax.toybox import MODELS
from ge3d_jax.training.config import Config
from ge3d_jax.training.presets import configured, preset, prompt_of, seed_of, with_start

DEFAULT_PRESET = "toybox"
# Presets of bundled models that are not named like them.
_BUNDLED = {"toybox_ball": "toybox"}
MODEL_FIELDS = tuple(field.name for field in dataclasses.fields(ModelChoice))


@dataclasses.dataclass(frozen=True)
class Asked:
    """All inputs of a run; see `runs.generate.generate`.

    Attributes:
        preset: name of the preset that the settings are based on.
        usual: settings of the preset, with the chosen loss and kinds of sections.
        settings: settings of the run.
        prompt: what to generate; None if nothing specifies it.
        seed, start, edit_from: as for `generate`.
        model: the choice of model.
    """

    preset: str
    usual: Config
    settings: Config
    prompt: str | None = None
    seed: int = 0
    start: FilePath | None = None
    edit_from: str | None = None
    model: ModelChoice = ModelChoice()

    def but(self, **given: Any) -> "Asked":
        """Replace inputs by name, including those of the model; None leaves an input unchanged."""
        changes = {name: value for name, value in given.items() if value is not None}
        of_model = {name: changes.pop(name) for name in MODEL_FIELDS if name in changes}
        return dataclasses.replace(self, model=dataclasses.replace(self.model, **of_model), **changes)


def asked_by_preset(
    name: str | None,
    *,
    guidance: str | None,
    density: str | None,
    start: FilePath | None = None,
    growth: str | None = None,
    overrides: Mapping[str, Any] | None,
) -> Asked:
    """The inputs from a preset.

    Args:
        name: name of the preset; None means that of the bundled model.
        guidance, density, start, growth: see `configured`.
        overrides: settings to change, by dotted name.

    Raises:
        UserError: see `configured`.
    """
    name = DEFAULT_PRESET if name is None else name
    path = None if start is None else os.fspath(start)
    usual = configured(name, guidance=guidance, density=density, start=path, growth=growth)
    return Asked(
        preset=name,
        usual=usual,
        settings=configured(
            name, guidance=guidance, density=density, start=path, growth=growth, overrides=overrides
        ),
        prompt=prompt_of(name),
        seed=seed_of(name),
        model=ModelChoice(bundled_model(name)),
        start=path,
    )


def bundled_model(preset_name: str) -> str | None:
    """Return the name of the bundled model that a preset is made for; None if it is made for none."""
    name = _BUNDLED.get(preset_name, preset_name)
    return name if name in MODELS else None


def model_by_preset(name: str, model: FilePath | None = None) -> ModelChoice:
    """The model of a preset, or `model` instead of it. Raises UserError if the preset does not exist."""
    return asked_by_preset(name, guidance=None, density=None, overrides=None).but(model=model).model


def asked_by_file(
    file: FilePath,
    *,
    start: FilePath | None = None,
    growth: str | None = None,
    overrides: Mapping[str, Any] | None,
) -> Asked:
    """The inputs of an earlier run.

    A setting added since then takes the value from the run's preset, with a warning.

    Args:
        file: the run's config.json.
        start, growth: a different start; see `configured`.
        overrides: settings to change, by dotted name.

    Raises:
        UserError: there is no such run, a setting does not exist, or a value is invalid.
    """
    saved = _read_run(Path(file))
    try:
        usual = _usual_settings(saved["preset"], saved["settings"])
        missing: dict[str, Any] = {}
        settings = from_tree(usual, _completed(saved["settings"], to_tree(usual), "", missing))
    except UserError as error:
        raise UserError(f"In {file}: {error}") from error
    if missing:
        values = ", ".join(f"{name} = {shown(value)}" for name, value in missing.items())
        warnings.warn(
            f"{file} does not give every setting; the preset {shown(saved['preset'])} provides {values}.",
            stacklevel=2,
        )
    path = None if start is None else os.fspath(start)
    usual = with_start(usual, saved["preset"], start=path, growth=growth)
    settings = with_start(settings, saved["preset"], start=path, growth=growth)
    return Asked(
        preset=saved["preset"],
        usual=usual,
        settings=with_overrides(settings, overrides or {}),
        prompt=saved["prompt"],
        seed=saved["seed"],
        start=path if path is not None else saved.get("start"),
        edit_from=saved.get("edit_from"),
        model=ModelChoice.described(saved),
    )


def refuse_beside_file(**given: str | None) -> None:
    """Check that no argument conflicts with the settings of a file.

    Args:
        given: name of the argument → the caller's value, or None.

    Raises:
        UserError: an argument is given; the message names it.
    """
    for name, value in given.items():
        if value is not None:
            raise UserError(
                f"Both config and {name} are given, but the config file has all settings already; leave "
                "one of them out, and change single settings by their names."
            )


def _read_run(file: Path) -> dict[str, Any]:
    """Read the config.json of a run. Raises UserError if it does not describe one."""
    try:
        saved = parse_json(file)
    except OSError as error:
        raise UserError(
            f"The configuration {file} cannot be read ({error.strerror or reason(error)}); "
            "give the config.json of a run."
        ) from error
    except ValueError as error:
        raise UserError(
            f"{file} is not readable JSON ({reason(error)}); give the config.json of a run."
        ) from error
    if not isinstance(saved, dict) or not _describes_run(saved):
        raise UserError(f"{file} does not describe a run of generate; give the config.json of one.")
    return saved


def _describes_run(saved: Mapping[str, Any]) -> bool:
    """Whether all entries other than the settings have the right type."""

    def are_texts(values: Any) -> bool:
        return isinstance(values, list) and all(isinstance(value, str) for value in values)

    def is_lora(value: Any) -> bool:
        return (
            isinstance(value, list)
            and len(value) == 2
            and isinstance(value[0], str)
            and isinstance(value[1], int | float)
        )

    loras = saved.get("loras", [])
    return (
        are_texts([saved.get(name) for name in ("prompt", "preset")])
        and type(saved.get("seed")) is int
        and isinstance(saved.get("settings"), dict)
        and are_texts([saved.get("model", ""), saved.get("dtype", ""), saved.get("start") or ""])
        and are_texts([saved.get("edit_from") or ""])
        and isinstance(loras, list)
        and all(is_lora(value) for value in loras)
        and are_texts(saved.get("textual_inversions", []))
    )


def _usual_settings(preset_name: str, tree: Mapping[str, Any]) -> Config:
    """The preset's settings, with a run's kinds of sections.

    Raises:
        UserError: the preset or a kind does not exist.
    """
    kinds = _kinds(tree)
    own = _kinds(to_tree(preset(preset_name)))

    def other(name: str) -> str | None:
        kind = kinds.get(name)
        return kind if kind != own.get(name) else None

    start = other("scene.start.kind")
    # These come with settings of their own; a start from a file gets its file from the run.
    return configured(
        preset_name,
        guidance=other("guidance.kind"),
        density=other("scene.density.kind"),
        start=start if is_named(start) else None,
        overrides=kinds,
    )


def _kinds(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Collect full name → kind for all choices in a settings tree."""
    kinds: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            kinds |= _kinds(value, f"{prefix}{name}.")
        elif name == "kind" and prefix and isinstance(value, str):
            kinds[f"{prefix}{name}"] = value
    return kinds


def _completed(tree: Any, usual: Mapping[str, Any], prefix: str, missing: dict[str, Any]) -> Any:
    """Fill in the settings that a tree lacks, and record their names and values in `missing`."""
    if not isinstance(tree, Mapping):
        return tree
    completed = dict(tree)
    for name, value in usual.items():
        if isinstance(value, Mapping):
            completed[name] = _completed(tree.get(name, {}), value, f"{prefix}{name}.", missing)
        elif name not in tree:
            completed[name] = missing[f"{prefix}{name}"] = value
    return completed
