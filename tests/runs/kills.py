"""Kills a run at random moments of its work on the disk, and resumes it.

    python -m tests.runs.kills fit
    python -m tests.runs.kills generate --kills=50
    python -m tests.runs.kills sweep

Unlike in `endings`, the run is a process of its own that the system ends (SIGKILL), in the middle of whatever
its threads are doing. The resumed run must produce the same bytes as an undisturbed one.
"""

import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from absl import app, flags

from tests.runs.endings import KINDS, differing, resumed

_KILLS = flags.DEFINE_integer("kills", 20, "Number of runs to kill.", lower_bound=1)
_ITERATIONS = flags.DEFINE_integer("iterations", 6, "Iterations of a run.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments.")

_LONGEST_SECONDS = 300.0
_LOOK_EVERY = 0.002


def _begin(run: Callable[..., object], folder: Path) -> multiprocessing.process.BaseProcess:
    """Start a run in a process of its own, and return once it writes to its folder."""
    process = multiprocessing.get_context("spawn").Process(target=partial(run, folder, resume=False))
    process.start()
    deadline = time.monotonic() + _LONGEST_SECONDS
    while not (folder.is_dir() and any(folder.iterdir())):
        if not process.is_alive() or time.monotonic() > deadline:
            raise RuntimeError(f"The run did not begin to write to {folder}.")
        time.sleep(_LOOK_EVERY)
    return process


def _whole(run: Callable[..., object], folder: Path) -> float:
    """Make an undisturbed run, and return the seconds from its first file to its end."""
    process = _begin(run, folder)
    began = time.monotonic()
    process.join(_LONGEST_SECONDS)
    if process.exitcode != 0:
        raise RuntimeError("The undisturbed run failed.")
    return time.monotonic() - began


def killed_and_resumed(run: Callable[..., object], folder: Path, seconds: float) -> tuple[list[str], str]:
    """Kill a run some seconds after its first file, and resume it.

    Returns:
        Sentences that describe deviations from the expected result, and what the killed run had saved.
    """
    process = _begin(run, folder)
    time.sleep(seconds)
    process.kill()
    process.join()
    saved = sorted(path.name for path in folder.rglob("*") if path.parent.name == "state")
    found = ", ".join(saved) or "nothing"
    return resumed(run, folder), found


def main(arguments: list[str]) -> None:
    """Kill runs and report failures."""
    kind = arguments[1]
    moments = random.Random(_SEED.value)
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        run = partial(KINDS[kind](base / "inputs"), iterations=_ITERATIONS.value)
        whole = base / "whole"
        # The first run compiles; later ones take this code from the cache, and so do the killed ones.
        _whole(run, base / "first")
        duration = _whole(run, whole)
        bad = 0
        for number in range(_KILLS.value):
            folder, seconds = base / f"killed-{number}", moments.uniform(0.0, duration)
            wrong, saved = killed_and_resumed(run, folder, seconds)
            wrong += [f"differs: {name}" for name in differing(folder, whole)]
            bad += bool(wrong)
            print(f"after {seconds:.2f} of {duration:.2f} s, state: {saved}", *wrong, sep="; ", flush=True)
        print(f"{kind}: {_KILLS.value} runs killed, {bad} ended badly")


if __name__ == "__main__":
    app.run(main)
