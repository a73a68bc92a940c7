"""Reads damaged inputs, limited in time, and counts what comes of it."""

import dataclasses
import math
import resource
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ge3d_jax.core.errors import UserError
from tests.fuzz_readers.damage import Random

# CPU time, far more than any input takes, and seconds after which a reader counts as hanging.
SLOWEST_SECONDS = 4.0
HANGS_SECONDS = 30
# Sentences are shorter; longer ones repeat the file.
LONGEST_MESSAGE = 1500


@dataclasses.dataclass
class Outcome:
    """Results of a run.

    Attributes:
        files: number of inputs tried. read: number of inputs that were readable nevertheless.
        tracebacks, hangs, overallocations, messages: faults, the last kind being messages of several lines or
            of great length; the first few are described in `examples`.
        slowest_seconds: maximum CPU time of an input.
        grown_bytes: growth of the process' resident memory.
    """

    files: int = 0
    read: int = 0
    tracebacks: int = 0
    hangs: int = 0
    overallocations: int = 0
    messages: int = 0
    slowest_seconds: float = 0.0
    grown_bytes: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)

    @property
    def faults(self) -> int:
        """Total number of faults."""
        return self.tracebacks + self.hangs + self.overallocations + self.messages


class Target:
    """A reader and its inputs, in a separate folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prepare()

    def prepare(self) -> None:
        """Write the files that valid inputs need."""

    def damage(self, rng: Random) -> list[Path]:
        """Write a damaged input; returns the files that differ from valid ones."""
        raise NotImplementedError

    def read(self) -> None:
        """Read the input as scripts do."""
        raise NotImplementedError

    def restore(self) -> None:
        """Undo the damage, unless the next damage does."""


class _Hang(Exception):
    pass


def _on_alarm(number: int, frame: object) -> None:
    raise _Hang


def attempt(read: Callable[[], None], outcome: Outcome, describe: Callable[[str], str]) -> None:
    """Read one input, and count its outcome."""
    start, fault = time.process_time(), None
    signal.alarm(HANGS_SECONDS)
    try:
        read()
        outcome.read += 1
    except UserError as error:
        if "\n" in str(error) or len(str(error)) > LONGEST_MESSAGE:
            outcome.messages += 1
            fault = f"a message of {len(str(error))} characters: {str(error)[:300]!r}"
    except MemoryError:
        outcome.overallocations += 1
        fault = traceback.format_exc(limit=-3)
    except _Hang:
        outcome.hangs += 1
        fault = traceback.format_exc(limit=-3)
    except BaseException:
        outcome.tracebacks += 1
        fault = traceback.format_exc(limit=-3)
    finally:
        signal.alarm(0)
    seconds = time.process_time() - start
    if fault is None and seconds > SLOWEST_SECONDS:
        outcome.hangs += 1
        fault = f"{seconds:.1f} s"
    outcome.files += 1
    outcome.slowest_seconds = max(outcome.slowest_seconds, seconds)
    if fault is not None and len(outcome.examples) < 20:
        outcome.examples.append(describe(fault))


def fuzz(reader: type[Target], count: int, folder: Path, seed: int = 0, seconds: float = math.inf) -> Outcome:
    """Read `count` damaged inputs, or as many as `seconds` allow, and keep faulty ones in `folder`/faults."""
    end = time.monotonic() + seconds
    rng, target, outcome = np.random.default_rng(seed), reader(folder), Outcome()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, _on_alarm)
    try:
        for number in range(count):
            if time.monotonic() > end:
                break
            files = target.damage(rng)

            def describe(fault: str, number: int = number, files: list[Path] = files) -> str:
                kept = folder / "faults" / str(number)
                kept.mkdir(parents=True, exist_ok=True)
                for file in files:
                    shutil.copy(file, kept)
                return f"{kept} ({', '.join(file.name for file in files)}): {fault}"

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                attempt(target.read, outcome, describe)
    finally:
        signal.signal(signal.SIGALRM, handler)
        target.restore()
    outcome.grown_bytes = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return outcome
