"""Resuming an interrupted run: validating its folder and reading the saved state."""

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ge3d_jax.core.errors import UserError
from ge3d_jax.scenes.base import Scene
from ge3d_jax.training.checkpoints import has_tree, restore_state, save_state
from ge3d_jax.training.state import TrainState

_STATE = "state"
_CONFIG = "config.json"
_METRICS = "metrics.jsonl"
_OBJECT = "object.ply"
# These do not affect the result: a run may be resumed with another version or with more or less memory.
_FREE_TO_CHANGE = (
    "versions",
    "settings.views_per_batch",
    "settings.attention_chunk",
    "settings.vae_rematerialize",
    "settings.scene.rasterizer",
)


def save_run(folder: Path, state: TrainState) -> None:
    """Save the state in the run's folder, replacing an earlier one."""
    save_state(folder / _STATE, state)


def forget_run(folder: Path) -> None:
    """Delete the saved state, because the run is finished or another one starts in its folder."""
    shutil.rmtree(folder / _STATE, ignore_errors=True)


def check_same_run(
    folder: Path,
    description: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    *,
    say: Callable[[str], None],
) -> bool:
    """Check whether there is a run to resume; if it has saved nothing, announce that it starts over.

    See `check_described`; the number of iterations may differ.

    Args:
        folder, description, defaults: as for `check_described`.
        say: called with a message if the run starts over.

    Returns:
        Whether there is a saved state to resume from.

    Raises:
        UserError: the folder holds a different run, or an object without its state.
    """
    if has_state(folder):
        if not (folder / _CONFIG).is_file():
            raise UserError(f"{folder} holds a state without its {_CONFIG}; start without resume.")
        check_described(folder, description, defaults, free=("settings.iterations",))
        return True
    if (folder / _OBJECT).exists():
        raise UserError(
            f"The folder {folder} holds an object, but no state to resume from; start without resume to make "
            "it again."
        )
    say(f"Nothing was saved in {folder}: the run starts over.")
    return False


def has_state(folder: Path) -> bool:
    """Whether there is a state to resume from."""
    return has_tree(folder / _STATE)


def check_described(
    folder: Path,
    description: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    *,
    free: Collection[str] = (),
) -> None:
    """Check that the run in a folder was started with the same inputs.

    A run of an older version can be resumed if its settings still mean the same: settings added since then
    are at their defaults, and no setting that it was started with has been removed.

    Args:
        folder: folder of the run, with its config.json.
        description: what would be written to config.json.
        defaults: the same for the preset alone, without the user's inputs; None if there are no defaults.
        free: dotted names that may differ, in addition to those that never matter.

    Raises:
        UserError: the inputs differ; the message names the first difference.
    """
    saved = _read_description(folder / _CONFIG)
    # Compare as JSON, where tuples become lists.
    trees = (saved, description, defaults or {})
    found, wanted, usual = (_leaves(json.loads(json.dumps(dict(tree))), free) for tree in trees)
    # Report differences before missing settings, because another kind of section has other settings.
    for name, new in wanted.items():
        if name in found and found[name] != new:
            raise UserError(
                f"The run in {folder} was started with {name} = {found[name]!r}, not {new!r}; "
                "ask for the same, or start without resume."
            )
    for name, old in found.items():
        if name not in wanted:
            raise UserError(
                f"The run in {folder} was started{_by_version(saved)} with the setting {name} = {old!r}, "
                "which this version does not know; start without resume."
            )
    for name, new in wanted.items():
        if name not in found and (name not in usual or usual[name] != new):
            remedy = f"leave it at {usual[name]!r}, or start" if name in usual else "start"
            raise UserError(
                f"The run in {folder} was started{_by_version(saved)} without the setting {name}, "
                f"which is {new!r} now; {remedy} without resume."
            )


def _read_description(file: Path) -> dict[str, Any]:
    """Read a config.json. Raises UserError if it does not describe a run."""
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not readable JSON ({error}); start without resume.") from error
    if not isinstance(description, dict):
        raise UserError(f"{file} does not describe a run; start without resume.")
    return description


def _leaves(tree: Mapping[str, Any], free: Collection[str], prefix: str = "") -> dict[str, Any]:
    """Flatten a tree of dictionaries to dotted name → value, skipping names that are free to change."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        full_name = prefix + name
        if full_name in _FREE_TO_CHANGE or full_name in free:
            continue
        leaves |= _leaves(value, free, f"{full_name}.") if isinstance(value, dict) else {full_name: value}
    return leaves


def _by_version(saved: Mapping[str, Any]) -> str:
    """A phrase with the version that started the run, to insert into a sentence; empty if unknown."""
    versions = saved.get("versions")
    version = versions.get("ge3d_jax") if isinstance(versions, dict) else None
    return f" by version {version}" if version is not None else ""


def resume_run(
    folder: Path, template: TrainState, scene: Scene, *, last: int
) -> tuple[TrainState, list[dict[str, float | int]]]:
    """Read the saved state and the metrics of the iterations that led to it.

    Args:
        folder: folder of the interrupted run.
        template: the initial state of the same run.
        scene: the scene that the state belongs to.
        last: number of iterations after which the run is complete.

    Raises:
        UserError: there is no state, it has another shape, or it is already past `last` iterations.
    """
    state = restore_state(folder / _STATE, template, scene)
    done = int(state.iteration)
    if done > last:
        raise UserError(
            f"The run in {folder} has done {done} iterations already; ask for more, or start without resume."
        )
    # Iterations after the last saved state will be repeated.
    return state, [line for line in _read_metrics(folder / _METRICS) if line["iteration"] <= done]


def _read_metrics(file: Path) -> list[dict[str, float | int]]:
    """Read the complete lines of a metrics file, which a full disk may have truncated."""
    metrics: list[dict[str, float | int]] = []
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            metrics.append(json.loads(line))
    except (FileNotFoundError, ValueError):
        pass
    return metrics
