"""Several processes on one machine: connecting, comparing settings, and ending together."""

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.processes import Cluster, check_same, join, leave

ROOT = Path(__file__).parent.parent.parent


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.fixture
def run_processes(tmp_path):
    return partial(_run_processes, tmp_path)


def _run_processes(folder, texts, dying=()):
    """Run one process for each text; return their exit statuses, successes and errors."""
    port = free_port()
    files = [folder / f"{index}.txt" for index in range(len(texts))]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.core.one_of_several", str(port), str(len(texts)), str(index), text]
            + [str(files[index])]
            + ["dies"] * (index in dying),
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, text in enumerate(texts)
    ]
    ended = [process.communicate(timeout=300) for process in started]
    return [
        (process.returncode, file.read_text(encoding="utf-8").splitlines(), err)
        for process, file, (_, err) in zip(started, files, ended, strict=True)
    ]


def test_processes_that_were_asked_for_the_same_go_through(run_processes):
    for status, out, err in run_processes(["settings"] * 4):
        assert (status, out) == (0, ["the same", "left"]), err
        assert "on its own or because" not in err


def test_all_are_told_which_one_was_asked_for_something_else(run_processes):
    for status, out, _ in run_processes(["settings", "others"]):
        assert status == 0
        assert out[0].startswith("Process 1 was started with other settings than process 0")


@pytest.mark.parametrize("dead", [0, 1])
def test_one_that_dies_ends_the_others(dead, run_processes):
    ended = run_processes(["waits", "waits"], dying=[dead])
    assert ended[dead][0] == 9
    status, out, _ = ended[1 - dead]
    assert status != 0 and out == ["the same"]
    # Both processes end with a sentence.
    for process in (0, 1):
        sentence = f"Process {process} of 2 died, on its own or because another did; start all of them"
        assert ended[process][2].splitlines()[-1].startswith(sentence)


def test_a_coordinator_that_does_not_answer_is_named_with_the_time(tmp_path):
    program = (
        "from ge3d_jax.core.processes import Cluster, join\n"
        f"join(Cluster('localhost:{free_port()}', 2, 1, wait_seconds=2))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "did not answer within 2 seconds; start every process" in done.stderr.splitlines()[-1]


def test_a_process_by_itself_is_at_one_with_itself():
    check_same("anything")
    leave()


def test_an_environment_without_a_cluster_is_said():
    # Joining fails at once, because JAX reports what is missing.
    with pytest.raises(UserError, match="cannot find each other"):
        join(Cluster())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coordinator": "10.0.0.1"}, "no port"),
        ({"processes": 0}, "There are 0 processes"),
        ({"processes": 2, "process": 2}, "process 2 of 2; give a number from 0 to 1"),
        ({"processes": 2, "process": -1}, "process -1 of 2; give a number from 0 to 1"),
        ({"process": -1}, r"process -1; give a number from 0\.$"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Cluster(**settings)
