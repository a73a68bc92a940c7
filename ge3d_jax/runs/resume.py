"""Going on with an interrupted run: what its folder must hold, and what is read from there."""

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
# What does not change what is computed: another version or another device's memory may go on with a run.
_FREE_TO_CHANGE = (
    "versions",
    "settings.views_per_batch",
    "settings.attention_chunk",
    "settings.vae_rematerialize",
    "settings.scene.rasterizer",
)


def save_run(folder: Path, state: TrainState) -> None:
    """Keep the state in the run's folder, in place of an earlier one."""
    save_state(folder / _STATE, state)


def forget_run(folder: Path) -> None:
    """Drop the saved state: the run is finished, or another one begins in its folder."""
    shutil.rmtree(folder / _STATE, ignore_errors=True)


def check_same_run(
    folder: Path,
    description: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    *,
    say: Callable[[str], None],
) -> bool:
    """Whether there is a run to go on with; one that has saved nothing begins instead, which is said.

    See `check_described`; the number of iterations may be another than before.

    Args:
        folder, description, defaults: as there.
        say: told that the run begins.

    Raises:
        UserError: the folder holds a run that was asked for something else, or an object without its state.
    """
    if has_state(folder):
        if not (folder / _CONFIG).is_file():
            raise UserError(f"{folder} holds a state without its {_CONFIG}; start without resume.")
        check_described(folder, description, defaults, free=("settings.iterations",))
        return True
    if (folder / _OBJECT).exists():
        raise UserError(
            f"The folder {folder} holds an object, but no state to go on from; start without resume to make "
            "it anew."
        )
    say(f"Nothing was saved in {folder}: the run begins.")
    return False


def has_state(folder: Path) -> bool:
    """Whether there is a state to go on from."""
    return has_tree(folder / _STATE)


def check_described(
    folder: Path,
    description: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    *,
    free: Collection[str] = (),
) -> None:
    """Refuse to go on with a run that was asked for something else.

    A run of an older version is gone on with where its settings still mean the same: settings that are new
    since then keep their defaults, and none that it was started with is gone.

    Args:
        folder: of the run, with its config.json.
        description: what would be written to config.json.
        defaults: the same for the preset alone, without what the person asked for; None tells no defaults.
        free: dotted names of what may differ, beside what never matters.

    Raises:
        UserError: names the first difference.
    """
    saved = _read_description(folder / _CONFIG)
    # As JSON tells it: tuples are lists there.
    trees = (saved, description, defaults or {})
    found, wanted, usual = (_leaves(json.loads(json.dumps(dict(tree))), free) for tree in trees)
    # What differs comes before what is missing: another kind of a section has other settings.
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
    """What config.json holds. Raises UserError where that is no description of a run."""
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not readable JSON ({error}); start without resume.") from error
    if not isinstance(description, dict):
        raise UserError(f"{file} does not describe a run; start without resume.")
    return description


def _leaves(tree: Mapping[str, Any], free: Collection[str], prefix: str = "") -> dict[str, Any]:
    """Dotted name → value of all that a tree of dictionaries holds, less what is free to change."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        full_name = prefix + name
        if full_name in _FREE_TO_CHANGE or full_name in free:
            continue
        leaves |= _leaves(value, free, f"{full_name}.") if isinstance(value, dict) else {full_name: value}
    return leaves


def _by_version(saved: Mapping[str, Any]) -> str:
    """Which version started the run, to go on a sentence with; nothing where the run does not tell."""
    versions = saved.get("versions")
    version = versions.get("ge3d_jax") if isinstance(versions, dict) else None
    return f" by version {version}" if version is not None else ""


def resume_run(
    folder: Path, template: TrainState, scene: Scene, *, last: int
) -> tuple[TrainState, list[dict[str, float | int]]]:
    """The saved state, and the metrics of the iterations that lead to it.

    Args:
        folder: of the interrupted run.
        template: the state that the same run begins with.
        scene: whose state it is.
        last: iterations after which the run will be complete.

    Raises:
        UserError: no state there, one of another shape, or one that has come farther than `last`.
    """
    state = restore_state(folder / _STATE, template, scene)
    done = int(state.iteration)
    if done > last:
        raise UserError(
            f"The run in {folder} has done {done} iterations already; ask for more, or start without resume."
        )
    # An iteration after the last saved state will be done again.
    return state, [line for line in _read_metrics(folder / _METRICS) if line["iteration"] <= done]


def _read_metrics(file: Path) -> list[dict[str, float | int]]:
    """The lines of a file of metrics, as far as they are whole: a full disk may have cut it off."""
    metrics: list[dict[str, float | int]] = []
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            metrics.append(json.loads(line))
    except (FileNotFoundError, ValueError):
        pass
    return metrics
