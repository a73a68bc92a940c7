"""What the processes of test_pinned.py do: they import it by its name."""

import os
import sys
import time
from pathlib import Path

from ge3d_jax.core.pinned import do_pinned


def write_core(job, report):
    """Leave a file that says by which process and on which cores it was written; return its name."""
    job.write_text(f"{os.getpid()} {','.join(map(str, sorted(os.sched_getaffinity(0))))}")
    report(f"wrote {job.name}")
    return job.name


def write_core_in_company(job, report):
    """The same, and wait for somebody else to write another one."""
    name = write_core(job, report)
    while len(list(job.parent.iterdir())) < 2:
        time.sleep(0.05)
    return name


def fail(job, report):
    """Fail as the job says, after a line."""
    report("failing")
    if job == "die":
        os._exit(3)
    raise job


def sleep_on(job, report):
    """Leave a file, and never come to an end."""
    write_core(job, report)
    while True:
        time.sleep(0.05)


if __name__ == "__main__":
    do_pinned(sleep_on, [Path(name) for name in sys.argv[1:]], processes=2, report=print)
