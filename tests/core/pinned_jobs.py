"""Jobs of test_pinned.py, in a module that other processes can import."""

import os
import sys
import time
from pathlib import Path

from ge3d_jax.core.pinned import do_pinned


def write_core(job, report):
    """Write a file with the process and its cores; return its name."""
    job.write_text(f"{os.getpid()} {','.join(map(str, sorted(os.sched_getaffinity(0))))}")
    report(f"wrote {job.name}")
    return job.name


def write_core_in_company(job, report):
    """Like `write_core`, but wait for another job to write a file, too."""
    name = write_core(job, report)
    while len(list(job.parent.iterdir())) < 2:
        time.sleep(0.05)
    return name


def fail(job, report):
    """Report a line, then fail as the job says."""
    report("failing")
    if job == "die":
        os._exit(3)
    raise job


def sleep_on(job, report):
    """Write a file, and never finish."""
    write_core(job, report)
    while True:
        time.sleep(0.05)


if __name__ == "__main__":
    do_pinned(sleep_on, [Path(name) for name in sys.argv[1:]], processes=2, report=print)
