"""A run that was killed anywhere, or hit a full disk, resumes to the same bytes as an undisturbed run."""

import pytest

from tests.runs.endings import Operations, differing, fitting, whole_and_resumed


@pytest.fixture(scope="module")
def operations():
    return Operations()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fitting(tmp_path_factory.mktemp("images") / "mushroom")


@pytest.fixture(scope="module")
def whole(run, operations, tmp_path_factory):
    """An undisturbed run, and its number of file operations."""
    folder = tmp_path_factory.mktemp("whole")
    with operations.counted(folder) as count:
        run(folder, resume=False)
        return folder, count()


# `python -m tests.runs.endings` tries all operations; these lie within saves and among the results.
# Ignores Orbax's coroutines, which nothing awaits any more.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine")
@pytest.mark.parametrize(("way", "share"), [("killed", 0.25), ("killed", 0.6), ("full", 0.35), ("full", 0.8)])
def test_what_was_ended_comes_to_the_same(way, share, run, whole, operations, tmp_path):
    folder, total = whole
    ended = tmp_path / "ended"
    assert whole_and_resumed(run, ended, operations, round(share * total), way) == []
    assert differing(ended, folder) == []


def test_what_differs_is_noticed(whole, tmp_path):
    folder, _ = whole
    (tmp_path / "object.ply").write_bytes(b"another")
    missing = {"views.png", "turntable.gif", "viewer.html", "config.json"}
    assert set(differing(tmp_path, folder)) == {"object.ply"} | missing
