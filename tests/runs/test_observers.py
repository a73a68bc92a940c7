"""When a state is saved, what happens if saving fails, and what previews are left of a killed run."""

import contextlib
import json
import resource

import pytest

from ge3d_jax.runs.attempts import Attempts
from ge3d_jax.runs.observers import Checkpoints, Metrics, Previews
from ge3d_jax.runs.resume import has_state
from ge3d_jax.training.presets import PRESETS
from ge3d_jax.viewer.turntable import Viewpoint
from tests.training.toy_task import ToyTask, begin_toy

ITERATIONS = 100


class Clock:
    """A clock that moves only when told to, and by the given duration of a save."""

    def __init__(self, cost=0.0):
        self.now, self.cost = 1000.0, cost

    def __call__(self):
        self.now += self.cost
        return self.now


@pytest.fixture(scope="module")
def state():
    return begin_toy(ToyTask(), [0.0, 0.0, 0.0], 0)


@pytest.fixture
def saves(state, tmp_path):
    """(observer, clock, seconds per iteration, iterations) → iterations after which the state was saved."""

    def saves(checkpoints, clock, seconds, iterations):
        saved = []
        for done in range(1, iterations + 1):
            clock.now += seconds
            before = sorted((tmp_path / "state").glob("[0-9]*"))
            assert not checkpoints.on_iteration(done, {}, state)
            if sorted((tmp_path / "state").glob("[0-9]*")) != before:
                saved.append(done)
        return saved

    return saves


def begun(folder, clock, **options):
    given = {"every_seconds": 30.0, "iterations": ITERATIONS, "say": print, "clock": clock}
    checkpoints = Checkpoints(folder, **(given | options))
    checkpoints.on_begin(is_new=True)
    return checkpoints


def test_a_state_is_saved_every_half_minute(saves, tmp_path):
    clock = Clock()
    assert saves(begun(tmp_path, clock), clock, 11.0, 10) == [3, 6, 9]


def test_saving_takes_a_fiftieth_of_the_time_at_most(saves, tmp_path):
    # Reading the clock takes two seconds, and so does a save: the next save waits for fifty times that.
    clock = Clock(cost=2.0)
    assert saves(begun(tmp_path, clock), clock, 8.0, 16) == [3, 13]


def test_each_iteration_is_saved_but_the_last_which_is_by_itself(saves, tmp_path):
    clock = Clock(cost=2.0)
    assert saves(begun(tmp_path, clock, every_seconds=0.0, iterations=4), clock, 0.0, 4) == [1, 2, 3]


def test_none_is_saved_where_none_is_wanted(saves, tmp_path):
    clock = Clock()
    assert saves(begun(tmp_path, clock, every_seconds=None), clock, 1e6, 3) == []
    assert not has_state(tmp_path)


def test_a_state_that_cannot_be_saved_is_said_once_and_tried_again(saves, tmp_path):
    clock, told = Clock(), []
    checkpoints = begun(tmp_path, clock, say=told.append)
    (tmp_path / "state").write_text("in the way")
    assert saves(checkpoints, clock, 31.0, 2) == []
    (sentence,) = told
    assert sentence.startswith("The state could not be saved (File exists); the run continues")
    (tmp_path / "state").unlink()
    assert saves(checkpoints, clock, 31.0, 2) == [1, 2]
    assert told[1:] == ["The state could be saved again."]


@pytest.mark.parametrize("is_new", [False, True])
def test_a_killed_run_leaves_no_part_of_a_preview(tmp_path, is_new):
    folder = tmp_path / "previews"
    folder.mkdir()
    for name in ("iteration_00010.png", ".iteration_00020.999999999.part.png"):
        (folder / name).write_bytes(b"")
    scene = PRESETS["toybox"].scene
    previews = Previews(tmp_path, scene, Viewpoint(), every=10, attempts=Attempts())
    previews.on_begin(is_new=is_new)
    assert [path.name for path in folder.iterdir()] == ([] if is_new else ["iteration_00010.png"])


@contextlib.contextmanager
def largest_file(size):
    """Files cannot grow beyond this many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("has_room_at_the_end", [True, False])
def test_metrics_that_found_no_room_are_kept_until_the_end(state, tmp_path, has_room_at_the_end):
    told, attempts = [], Attempts()
    metrics = Metrics(tmp_path, [], attempts, say=told.append)
    with contextlib.ExitStack() as room:
        with metrics:
            assert not metrics.on_iteration(1, {"loss": 1.0}, state)
            size = (tmp_path / "metrics.jsonl").stat().st_size
            room.enter_context(largest_file(size + 5))
            for done in (2, 3):
                assert not metrics.on_iteration(done, {"loss": 1.0}, state)
            assert len(told) == 1 and "metrics.jsonl could not be written (File too large)" in told[0]
            if has_room_at_the_end:
                room.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    if has_room_at_the_end:
        assert [json.loads(line)["iteration"] for line in lines] == [1, 2, 3] and not attempts.failed
    else:
        assert attempts.failed == ["metrics.jsonl could not be written (File too large)."]
        assert json.loads(lines[0])["iteration"] == 1 and len(metrics.history) == 3
