"""Saving and restoring a run's state, or any tree of arrays, with orbax: whole or not at all."""

import os
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ge3d_jax.errors import UserError
from ge3d_jax.training.state import TrainState


def _without_typed_key(state: TrainState) -> TrainState:
    # A file holds numbers: the key's, and on the way back the template says which generator they are for.
    return state.replace(key=jax.random.key_data(state.key))


def save_state(folder: str | os.PathLike[str], state: TrainState) -> None:
    """Write the state to `folder`, replacing an earlier one; a broken-off save leaves that alone."""
    save_tree(folder, _without_typed_key(state))


def save_tree(folder: str | os.PathLike[str], tree: Any) -> None:
    """Write a tree of arrays to `folder`, replacing an earlier one; a broken-off save leaves that alone."""
    target = Path(folder).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{os.getpid()}.part")
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(fresh, tree)
    # A folder cannot be renamed onto a full one: the earlier state steps aside first.
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def restore_state(folder: str | os.PathLike[str], template: TrainState) -> TrainState:
    """Read what `save_state` wrote, bit for bit.

    Args:
        template: a state of the same configuration, for shapes, types and the kind of key.

    Raises:
        UserError: no state in `folder`, or one of another configuration.
    """
    restored = restore_tree(folder, _without_typed_key(template))
    key = jax.random.wrap_key_data(restored.key, impl=jax.random.key_impl(template.key))
    return restored.replace(key=key)


def restore_tree(folder: str | os.PathLike[str], template: Any) -> Any:
    """Read what `save_tree` wrote, in the shapes, types and placement of `template`.

    Raises:
        UserError: nothing saved in `folder`, or a tree that does not fit.
    """
    target = Path(folder).absolute()
    if not target.is_dir():
        raise UserError(f"There is no saved state at {folder}; give the folder of an interrupted run.")
    expected = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            return checkpointer.restore(target, expected)
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise UserError(
                f"The saved state at {folder} does not fit this run ({error}); resume with the settings it "
                "was saved with."
            ) from None
