"""Going on with an interrupted run: what its folder must hold, and what is read from there."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ge3d_jax.core.errors import UserError
from ge3d_jax.training.checkpoints import restore_state, save_state
from ge3d_jax.training.state import TrainState

_STATE = "state"
_CONFIG = "config.json"
_METRICS = "metrics.jsonl"
# What does not change what is computed: another version or another device's memory may go on with a run.
_FREE_TO_CHANGE = (
    "versions",
    "settings.views_per_batch",
    "settings.attention_chunk",
    "settings.vae_rematerialise",
)


def save_run(folder: Path, state: TrainState) -> None:
    """Keep the state in the run's folder, in place of an earlier one."""
    save_state(folder / _STATE, state)


def forget_run(folder: Path) -> None:
    """Drop the saved state: the run is finished, or another one begins in its folder."""
    shutil.rmtree(folder / _STATE, ignore_errors=True)


def check_same_run(folder: Path, description: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that is not there, or was asked for something else.

    Args:
        folder: of the interrupted run.
        description: what would be written to config.json.

    Raises:
        UserError: names the first difference.
    """
    if not (folder / _STATE).is_dir() or not (folder / _CONFIG).is_file():
        raise UserError(f"The folder {folder} holds no interrupted run; start it without --resume.")
    try:
        found = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{folder / _CONFIG} is not readable JSON ({error}); start without --resume."
        ) from error
    # As JSON tells it: tuples are lists there.
    wanted = json.loads(json.dumps(dict(description)))
    for name, old, new in _differences(found, wanted):
        raise UserError(
            f"The run in {folder} was started with {name} = {old!r}, not {new!r}; "
            "ask for the same, or start without --resume."
        )


def _differences(found: Any, wanted: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted names of what differs between two trees of dictionaries, with both values."""
    different = []
    for name in sorted(found.keys() | wanted.keys()):
        old, new = found.get(name), wanted.get(name)
        if prefix + name in _FREE_TO_CHANGE:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            different += _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            different.append((prefix + name, old, new))
    return different


def resume_run(folder: Path, template: TrainState) -> tuple[TrainState, list[dict[str, float | int]]]:
    """The saved state, and the metrics of the iterations that lead to it.

    Args:
        folder: of the interrupted run.
        template: the state that the same run begins with.

    Raises:
        UserError: no state there, or one of another shape.
    """
    state = restore_state(folder / _STATE, template)
    lines = (folder / _METRICS).read_text(encoding="utf-8").splitlines()
    # An iteration after the last saved state will be done again.
    return state, [json.loads(line) for line in lines[: int(state.iteration)]]
