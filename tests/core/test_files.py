"""Files that appear whole or not at all."""

import errno

import pytest

from ge3d_jax.core.files import atomic_path, clear_leftovers, process_mark


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    file = tmp_path / "new" / "a.txt"
    with atomic_path(file) as temporary:
        temporary.write_text("whole")
        assert not file.exists() and temporary.suffix == ".txt" and process_mark() in temporary.name
    assert file.read_text() == "whole" and [one.name for one in file.parent.iterdir()] == ["a.txt"]


def test_an_error_leaves_the_old_file_and_names_it(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(OSError) as full, atomic_path(file) as temporary:
        temporary.write_text("new")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert full.value.filename == str(file) and full.value.errno == errno.ENOSPC
    assert file.read_text() == "old" and [one.name for one in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_of_that_name_is_named_in_the_error(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(IsADirectoryError) as refused, atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert refused.value.filename == str(tmp_path / "a.txt")


def test_an_error_with_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as missing, atomic_path(tmp_path / "a.txt"):
        (tmp_path / "source").read_text()
    assert missing.value.filename == str(tmp_path / "source")


def test_parts_of_other_processes_are_leftovers(tmp_path):
    own, other = (tmp_path / f".a.{mark}.part.txt" for mark in (process_mark(), "elsewhere-1"))
    for part in (own, other):
        part.write_text("part")
    clear_leftovers(tmp_path)
    assert own.exists() and not other.exists()
