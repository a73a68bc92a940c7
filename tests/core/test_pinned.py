"""Jobs in processes that are each pinned to one core."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.pinned import do_pinned, usable_cores
from tests.core.pinned_jobs import fail, write_core, write_core_in_company
from tests.two_cores import needs_two_cores

ROOT = Path(__file__).parents[2]


def test_a_single_process_is_this_one(tmp_path):
    told, jobs = [], [tmp_path / "one", tmp_path / "two"]
    assert do_pinned(write_core, jobs, processes=1, report=told.append) == ["one", "two"]
    assert told == ["wrote one", "wrote two"]
    assert (tmp_path / "one").read_text().split()[0] == str(os.getpid())


@needs_two_cores
def test_every_job_is_done_once_by_processes_with_a_core_each(tmp_path):
    before, told = usable_cores(), []
    jobs = [tmp_path / str(number) for number in range(4)]
    results = do_pinned(write_core_in_company, jobs, processes=2, report=told.append)
    assert results == ["0", "1", "2", "3"]
    assert sorted(told) == [f"wrote {number}" for number in range(4)]
    by_process = dict(job.read_text().split() for job in jobs)
    assert sorted(by_process.values()) == [str(core) for core in before[:2]]
    assert str(os.getpid()) not in by_process and usable_cores() == before


@needs_two_cores
def test_a_single_job_keeps_a_core_as_well(tmp_path):
    do_pinned(write_core, [tmp_path / "one"], processes=2, report=print)
    process, cores = (tmp_path / "one").read_text().split()
    assert process != str(os.getpid()) and cores == str(usable_cores()[0])


@needs_two_cores
@pytest.mark.parametrize(
    ("job", "kind", "says"),
    [
        (UserError("the budget is too short"), UserError, "the budget is too short"),
        (OSError("no room"), RuntimeError, "OSError: no room"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
        ("die", RuntimeError, "status 3"),
    ],
)
def test_what_goes_wrong_in_a_process_is_told_here(job, kind, says):
    with pytest.raises(kind, match=says):
        do_pinned(fail, [job], processes=2, report=lambda line: None)


@needs_two_cores
def test_processes_end_with_the_one_that_started_them_even_if_it_is_killed(tmp_path):
    jobs = [tmp_path / "one", tmp_path / "two"]
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.core.pinned_jobs", *map(str, jobs)], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    try:
        _wait(lambda: all(job.is_file() and job.read_text() for job in jobs))
        workers = [int(job.read_text().split()[0]) for job in jobs]
        assert all(map(_is_alive, workers))
    finally:
        parent.kill()
        parent.wait()
    _wait(lambda: not any(map(_is_alive, workers)))


def _wait(is_so, seconds=60):
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.05)


def _is_alive(process):
    """Whether a process is running; zombies do not count."""
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
