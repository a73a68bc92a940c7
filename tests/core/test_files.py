"""Files written whole or not at all, locks of folders, and JSON in any encoding."""

import contextlib
import errno
import os
import threading
import time

import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import (
    atomic_path,
    clear_leftovers,
    held,
    in_turn,
    locked,
    parse_json,
    process_mark,
    remove_folder,
)


def test_a_file_appears_whole_in_a_folder_that_is_made_for_it(tmp_path):
    target = tmp_path / "new" / "deep" / "picture.png"
    with atomic_path(target) as temporary:
        temporary.write_text("whole", encoding="utf-8")
        # Writers of pictures and videos go by the ending.
        assert temporary.suffix == ".png" and temporary.parent == target.parent
        assert process_mark() in temporary.name and str(os.getpid()) in process_mark()
        assert not target.exists()
    assert target.read_text(encoding="utf-8") == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "numbers.csv"
    target.write_text("old", encoding="utf-8")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise ZeroDivisionError
    assert target.read_text(encoding="utf-8") == "old" and list(tmp_path.iterdir()) == [target]


def test_an_error_names_the_file_and_not_its_temporary_one(tmp_path):
    file = tmp_path / "a.txt"
    with pytest.raises(OSError) as full, atomic_path(file) as temporary:
        temporary.write_text("new", encoding="utf-8")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert full.value.filename == str(file) and full.value.errno == errno.ENOSPC
    file.mkdir()
    with pytest.raises(IsADirectoryError) as refused, atomic_path(file) as temporary:
        temporary.write_text("new", encoding="utf-8")
    assert refused.value.filename == str(file)
    with pytest.raises(FileNotFoundError) as missing, atomic_path(tmp_path / "b.txt"):
        (tmp_path / "source").read_text(encoding="utf-8")
    assert missing.value.filename == str(tmp_path / "source")


def test_leftovers_of_others_are_cleared_and_all_else_stays(tmp_path):
    kept = [tmp_path / name for name in (".hidden", "a.part.ply", ".lock")]
    # Another machine may have given its process the same number.
    elsewhere = f".picture.elsewhere-{os.getpid()}.part.png"
    for file in (*kept, tmp_path / ".object.1.part.ply", tmp_path / elsewhere):
        file.write_text("x", encoding="utf-8")
    (tmp_path / ".state.1.part" / "half").mkdir(parents=True)
    with atomic_path(tmp_path / "own.txt") as temporary:
        temporary.write_text("written meanwhile", encoding="utf-8")
        clear_leftovers(tmp_path)
        assert set(tmp_path.iterdir()) == {*kept, temporary}
    assert set(tmp_path.iterdir()) == {*kept, tmp_path / "own.txt"}


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    lock = tmp_path / ".lock"
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), held(lock, "sweep"):
            with pytest.raises(UserError, match=f"Another sweep is writing to {tmp_path}; "):
                with held(lock, "sweep"):
                    pass
            # What ends with an error lets go, too.
            raise ZeroDivisionError


def test_a_locked_folder_is_without_leftovers_and_refuses_other_runs(tmp_path):
    (tmp_path / ".object.1.part.ply").write_text("half", encoding="utf-8")
    with locked(tmp_path):
        assert not list(tmp_path.glob(".*.part*"))
        with pytest.raises(UserError, match="Another run is writing to"), locked(tmp_path):
            pass


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    folder = tmp_path / "file" / "run"
    with pytest.raises(UserError, match=f"The folder {folder} cannot be written to"), locked(folder):
        pass


def test_a_folder_is_removed_although_a_thread_still_writes_to_it(tmp_path):
    folder, begun = tmp_path / "part", threading.Event()
    folder.mkdir()

    def write():
        # So many files take longer to remove than the next one takes to write.
        for number in range(1000):
            (folder / str(number)).touch()
        begun.set()
        end = time.monotonic() + 0.5
        with contextlib.suppress(FileNotFoundError):
            while time.monotonic() < end:
                (folder / str(time.monotonic_ns())).touch()

    writer = threading.Thread(target=write)
    writer.start()
    begun.wait(60)
    remove_folder(folder)
    writer.join(60)
    assert not folder.exists()


def test_others_wait_for_their_turn(tmp_path):
    path, order = tmp_path / "new" / "shared", []

    def second():
        with in_turn(path):
            order.append("second")

    waiting = threading.Thread(target=second)
    with in_turn(path):
        waiting.start()
        waiting.join(0.1)
        order.append("first")
    waiting.join(60)
    assert order == ["first", "second"] and path.parent.is_dir() and not path.exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_is_read_in_any_encoding(tmp_path, encoding):
    (tmp_path / "notes.json").write_bytes('{"prompt": "Bär"}'.encode(encoding))
    assert parse_json(tmp_path / "notes.json") == {"prompt": "Bär"}


@pytest.mark.parametrize("content", [b"", b"{", b'"\xff"', b"[" * 200_000])
def test_what_is_not_json_is_a_value_error(tmp_path, content):
    (tmp_path / "notes.json").write_bytes(content)
    with pytest.raises(ValueError):
        parse_json(os.fspath(tmp_path / "notes.json"))
