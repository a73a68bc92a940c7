"""A run's metrics for TensorBoard: the same as in metrics.jsonl."""

import json
import struct
import sys

import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.runs.observers import Observer
from ge3d_jax.runs.tensorboard import TensorBoard
from tests.runs.toy_run import run_toy

pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")


def read(folder):
    """(iteration → name → value, wall times) from the single event file in a run's folder."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = (folder / "tensorboard").glob("events.out.tfevents.*")
    content, at, numbers, times = file.read_bytes(), 0, {}, []
    while at < len(content):
        # A record consists of its length, the length's checksum, the data, and the data's checksum.
        (length,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + length])
        at += 12 + length + 4
        for value in event.summary.value:
            numbers.setdefault(event.step, {})[value.tag] = value.simple_value
            times.append(event.wall_time)
    return numbers, times


def lines_of(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {line.pop("iteration"): line for line in lines}


def test_it_has_the_numbers_of_metrics_jsonl(tmp_path):
    assert run_toy(tmp_path, [TensorBoard()]).unwritten == []
    numbers, _ = read(tmp_path)
    lines = lines_of(tmp_path)
    assert list(numbers) == list(lines) == [1, 2, 3, 4, 5, 6]
    for iteration, line in lines.items():
        del line["seconds"]
        assert {"loss", "points", "skipped"} <= set(line)
        assert numbers[iteration] == pytest.approx(line, rel=1e-6)


class StopAt(Observer):
    """Stops the run after an iteration."""

    def __init__(self, number):
        self.number = number

    def on_iteration(self, done, numbers, state):
        return done == self.number


def test_a_run_that_goes_on_has_its_earlier_iterations_once(tmp_path):
    stopped = run_toy(tmp_path, [TensorBoard(), StopAt(4)])
    assert sorted(read(tmp_path)[0]) == [1, 2, 3, 4]
    earlier = [{**line, "seconds": 10.0 * line["iteration"]} for line in stopped.history]
    resumed = run_toy(tmp_path, [TensorBoard()], history=earlier, state=stopped.result.state)
    # Seconds go on, too.
    assert [line["seconds"] >= 40.0 for line in resumed.history[4:]] == [True, True]
    numbers, times = read(tmp_path)
    assert list(numbers) == [1, 2, 3, 4, 5, 6]
    assert numbers[2]["loss"] == pytest.approx(earlier[1]["loss"])
    # Events have the times of their iterations, of which the last was a moment ago.
    first, fifth = times[0], times[-1]
    assert times == sorted(times) and 30.0 < fifth - first < 40.0


def test_a_new_run_takes_the_place_of_an_earlier_one(tmp_path):
    for iterations in (5, 3):
        run_toy(tmp_path, [TensorBoard()], iterations=iterations)
    assert sorted(read(tmp_path)[0]) == [1, 2, 3]


def test_what_cannot_be_written_is_told_once_and_the_run_goes_on(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    outcome = run_toy(tmp_path, [TensorBoard()])
    assert len(outcome.history) == 6
    assert outcome.unwritten == ["tensorboard/ could not be written (File exists)."]


def test_without_its_package_there_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    with pytest.raises(UserError) as raised:
        TensorBoard()
    assert str(raised.value) == "--tensorboard needs the package tensorboardX; run pip install tensorboardX."
