"""Stored states: one complete state at any moment, and no lasting leftovers."""

import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.training.checkpoints import has_tree, restore_tree, save_tree

TREE = {"a": jnp.arange(3.0), "b": {"c": jnp.int32(4)}}
OTHER = {"a": jnp.ones(3), "b": {"c": jnp.int32(5)}}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_saved_tree_counts_and_the_others_go(tmp_path):
    folder = tmp_path / "state"
    assert not has_tree(folder)
    save_tree(folder, TREE)
    assert has_tree(folder) and names(folder) == ["1"]
    # Leftovers of a killed process, and an earlier tree that it had no time to remove.
    (folder / ".2.1.part").mkdir()
    (folder / "0").mkdir()
    save_tree(folder, OTHER)
    assert names(folder) == ["2"]
    restored = restore_tree(folder, TREE)
    np.testing.assert_array_equal(restored["a"], np.ones(3))
    assert int(restored["b"]["c"]) == 5


def test_until_a_tree_has_its_number_the_earlier_one_counts(tmp_path):
    save_tree(tmp_path, TREE)
    (tmp_path / ".2.1.part" / "half").mkdir(parents=True)
    np.testing.assert_array_equal(restore_tree(tmp_path, OTHER)["a"], np.arange(3.0))
    # Two complete states: the process was killed before removing the earlier one. Ten comes after nine.
    for number in ("9", "10"):
        save_tree(tmp_path / number, OTHER if number == "10" else TREE)
        (tmp_path / number / "1").rename(tmp_path / f"whole-{number}")
        (tmp_path / number).rmdir()
        (tmp_path / f"whole-{number}").rename(tmp_path / number)
    np.testing.assert_array_equal(restore_tree(tmp_path, TREE)["a"], np.ones(3))


def test_a_save_that_fails_leaves_the_earlier_one_and_no_rest(tmp_path):
    save_tree(tmp_path, TREE)
    with pytest.raises(Exception, match="Unsupported|not supported|object"):
        save_tree(tmp_path, {"a": object()})
    assert names(tmp_path) == ["1"]
    np.testing.assert_array_equal(restore_tree(tmp_path, OTHER)["a"], np.arange(3.0))


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path):
    save_tree(tmp_path, TREE)
    with pytest.raises(OSError, match="No space left on device"):
        save_tree(tmp_path, {"a": np.broadcast_to(np.float32(0.0), 2**45)})
    assert names(tmp_path) == ["1"]
