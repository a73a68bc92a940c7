"""The function that makes figures in test_page.py, in a module that other processes can import."""

import os
import time

from ge3d_jax.core.errors import UserError


def note_process(name, *, report, folder):
    """Record which process makes a figure, and wait until both figures are under way."""
    if name == "third":
        raise UserError("The folder is full; make room.")
    (folder / name).write_text(f"{os.getpid()} {len(os.sched_getaffinity(0))}")
    report("made")
    while not all((folder / other).exists() for other in ("first", "second")):
        time.sleep(0.05)
