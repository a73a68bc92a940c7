"""Atomic saving and restoring of a run's state, or of any tree of arrays, with Orbax."""

import dataclasses
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import flush, process_mark, remove_folder
from ge3d_jax.scenes.base import Scene
from ge3d_jax.training.state import TrainState, shapes_by_path

# Disk space of a saved tree relative to its arrays' bytes, and the bytes of its folders and names.
_ROOM = 1.2
_ROOM_FOR_NAMES = 2**16
# File in a state's folder if the state was not written by Orbax.
_ARRAYS = "arrays.npz"


def _arrays_of(state: TrainState) -> dict[str, Any]:
    """Return the state as nested dictionaries of plain arrays, with the typed key as raw data."""
    return serialization.to_state_dict(dataclasses.replace(state, key=jax.random.key_data(state.key)))


def save_state(folder: str | os.PathLike[str], state: TrainState) -> None:
    """Write the state to `folder`, replacing an earlier one; an interrupted save leaves that one intact."""
    save_tree(folder, _arrays_of(state))


def save_tree(folder: str | os.PathLike[str], tree: Any) -> None:
    """Write a tree of arrays to `folder`, replacing an earlier one; an interrupted save leaves that intact.

    Saved trees are numbered, and the last one is current. A tree gets its number atomically, once all of it
    is on disk; only then are earlier trees and the remains of interrupted saves deleted.

    Raises:
        OSError: it cannot be written, for example because the disk is full.
    """
    target = Path(folder).absolute()
    target.mkdir(parents=True, exist_ok=True)
    # Checked first, because on a full disk Orbax's threads print pages of tracebacks.
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    if shutil.disk_usage(target).free < _ROOM * size + _ROOM_FOR_NAMES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    number = max(_numbers(target), default=0) + 1
    fresh = target / f".{number}.{process_mark()}.part"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        _write_tree(fresh, tree)
        for path in (*fresh.rglob("*"), fresh):
            flush(path)
        fresh.rename(target / str(number))
        flush(target)
    except BaseException:
        # Including Orbax's own temporary folder, whose name has the same prefix. When one of its threads has
        # failed, others may still be writing.
        for leftover in target.glob(f"{fresh.name}*"):
            remove_folder(leftover)
        raise
    for other in target.iterdir():
        if other.name != str(number):
            shutil.rmtree(other, ignore_errors=True)


def has_tree(folder: str | os.PathLike[str]) -> bool:
    """Return whether a tree was saved to `folder`."""
    return bool(_numbers(Path(folder)))


def _numbers(folder: Path) -> list[int]:
    """Return the numbers of the trees saved to a folder."""
    return [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]


def _last(folder: str | os.PathLike[str]) -> Path:
    """Return the path of the last tree saved to a folder."""
    target = Path(folder).absolute()
    return target / str(max(_numbers(target), default=0))


def _write_tree(folder: Path, tree: Any) -> None:
    if jax.process_count() > 1:
        # Orbax writes only arrays on the devices of all processes, and NumPy arrays of the first process.
        folder.mkdir()
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        arrays: dict[str, Any] = {_path_name(path): np.asarray(leaf) for path, leaf in leaves}
        np.savez(folder / _ARRAYS, **arrays)
        return
    # Not the default checkpointer, which saves in the background: its threads deadlock when the disk is full.
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(folder, args=ocp.args.StandardSave(tree))


def restore_state(folder: str | os.PathLike[str], template: TrainState, scene: Scene) -> TrainState:
    """Restore the state written by `save_state`, bit for bit.

    Args:
        folder: the folder given to `save_state`.
        template: a state of the same configuration, for shapes, dtypes, and the key type.
        scene: the scene of the state; its arrays may have grown since the run began.

    Raises:
        UserError: no state in `folder`, or a state of another configuration (names an array that differs).
    """
    saved = _saved_shapes(folder)
    of_scene = {
        name.removeprefix("scene."): shape for name, (shape, _) in saved.items() if name.startswith("scene.")
    }
    template = template.with_scene(*scene.resized(template.scene, template.moments, of_scene))
    expected = _arrays_of(template)
    wanted = shapes_by_path(expected)
    differing = sorted(name for name in saved.keys() | wanted.keys() if saved.get(name) != wanted.get(name))
    if differing:
        name = differing[0]
        raise UserError(
            f"The saved state at {folder} does not fit this run ({name} is {saved.get(name)}, not "
            f"{wanted.get(name)}); resume with the settings it was saved with."
        )
    restored = restore_tree(folder, expected)
    plain = serialization.from_state_dict(
        dataclasses.replace(template, key=jax.random.key_data(template.key)), restored
    )
    return dataclasses.replace(
        plain, key=jax.random.wrap_key_data(plain.key, impl=jax.random.key_impl(template.key))
    )


def _saved_shapes(folder: str | os.PathLike[str]) -> dict[str, tuple[tuple[int, ...], str]]:
    target = _last(folder)
    if (target / _ARRAYS).is_file():
        with np.load(target / _ARRAYS) as arrays:
            return {name: (arrays[name].shape, str(arrays[name].dtype)) for name in arrays.files}
    with _checkpointer() as checkpointer:
        found = checkpointer.metadata(target).item_metadata if target.is_dir() else None
    if found is None:
        raise UserError(f"There is no saved state at {folder}; give the folder of an interrupted run.")
    return shapes_by_path(found.tree)


def restore_tree(folder: str | os.PathLike[str], template: Any) -> Any:
    """Restore a tree written by `save_tree`; `template` gives its exact shapes, dtypes, and placement."""
    last = _last(folder)
    file = last / _ARRAYS
    if file.is_file():
        with np.load(file) as arrays:
            return jax.tree_util.tree_map_with_path(
                lambda path, leaf: _placed_as(arrays[_path_name(path)], leaf), template
            )
    with _checkpointer() as checkpointer:
        on_host = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), template)
        restored = checkpointer.restore(last, on_host)
    return jax.tree.map(_placed_as, restored, template)


def _path_name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _placed_as(value: np.ndarray, template: Any) -> Any:
    return jax.device_put(value, template.sharding) if isinstance(template, jax.Array) else value


def _checkpointer() -> ocp.StandardCheckpointer:
    """Return an Orbax checkpointer for this process alone, which waits for no other process."""
    own = jax.process_index()
    return ocp.StandardCheckpointer(
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
        )
    )
