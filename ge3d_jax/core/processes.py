"""Several processes that work together, on one machine or many: `jax.distributed` finds and watches them."""

import atexit
import dataclasses
import hashlib
import os
import subprocess
import sys
import threading
from typing import NoReturn

import jax
import numpy as np

from ge3d_jax.core.errors import UserError

# The first to be through waits for the last one, which may have much more to do.
_LONGEST_WAIT_SECONDS = 30 * 24 * 3600

# What is run beside each process: it reads until that one has ended, and has the last word where it did not
# come to its end by itself. JAX aborts a process whose neighbor died, and nothing runs in it after that.
_LAST_WORD = "import sys; sys.stdin.read() or print(sys.argv[1], file=sys.stderr)"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """How this process finds the others.

    What is None is looked for in the environment: Slurm, MPI, Kubernetes and the clouds that JAX knows.

    Attributes:
        coordinator: address and port of process 0, "10.0.0.1:1234".
        processes: how many there are.
        process: which one this is, from 0.
        wait_seconds: for how long to wait for the others at the start.
        heartbeat_seconds: a process that was not heard for so long is taken for dead.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    wait_seconds: int = 300
    heartbeat_seconds: int = 60

    def __post_init__(self) -> None:
        """Check what types cannot say. Raises UserError."""
        if self.coordinator is not None and not self.coordinator.rpartition(":")[2].isdecimal():
            raise UserError(
                f"The coordinator {self.coordinator!r} has no port; give an address as 10.0.0.1:1234."
            )
        if self.processes is not None and self.processes < 1:
            raise UserError(f"There are {self.processes} processes; give at least 1.")
        if self.process is not None and not 0 <= self.process < (self.processes or self.process + 1):
            raise UserError(
                f"This is process {self.process} of {self.processes}; give a number from 0 to "
                f"{(self.processes or 1) - 1}."
            )

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left to be found."""
        return None not in (self.coordinator, self.processes, self.process)


def join(cluster: Cluster) -> None:
    """Become one of several processes; called before JAX is first used.

    From then on a process that dies ends the others; a sentence says so after JAX's own lines. One that ends
    with an error waits for the others before it is gone.

    Args:
        cluster: how to find the others.

    Raises:
        UserError: the others do not come, or the environment tells nothing of any.
    """
    errors: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                cluster.coordinator,
                cluster.processes,
                cluster.process,
                cluster_detection_method="deactivate" if cluster.is_whole else None,
                initialization_timeout=10 * cluster.wait_seconds,
                heartbeat_timeout_seconds=cluster.heartbeat_seconds,
                shutdown_timeout_seconds=_LONGEST_WAIT_SECONDS,
            )
        except Exception as error:
            errors.append(error)

    # JAX ends the program where nobody answers, with a trace of its own. It is asked from a thread, so that
    # there is time for a sentence before it does.
    thread = threading.Thread(target=initialize, daemon=True)
    thread.start()
    thread.join(cluster.wait_seconds)
    if thread.is_alive():
        where = f" at {cluster.coordinator}" if cluster.coordinator else ""
        raise UserError(
            f"The coordinator{where} and the other processes did not answer within {cluster.wait_seconds} "
            "seconds; start every process, and check the address."
        )
    if errors:
        raise UserError(
            f"The processes cannot find each other ({errors[0]}); give the coordinator, the number of "
            "processes and which one this is."
        ) from errors[0]
    _have_last_word(
        f"Process {jax.process_index()} of {jax.process_count()} was ended, by itself or since another one "
        "died; start all of them again, with --resume to go on from what was saved."
    )


def _have_last_word(sentence: str) -> None:
    """Print a sentence on standard error if this process is ended from outside."""
    # In a session of its own, where Ctrl-C does not reach it.
    command = [sys.executable, "-S", "-c", _LAST_WORD, sentence]
    beside = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    pipe = beside.stdin
    assert pipe is not None
    atexit.register(lambda: (pipe.write(b"ended"), pipe.close(), beside.wait()))


def leave() -> None:
    """Wait until the other processes are through, too. Nothing happens in a process by itself."""
    jax.distributed.shutdown()


def abandon(reason: str) -> NoReturn:
    """End this process and so the others, who would wait for it in the middle of a program they share."""
    print(reason, file=sys.stderr, flush=True)
    os._exit(1)


def anywhere(flag: bool) -> bool:
    """Whether it is so in any of the processes; each of them has to ask."""
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def check_same(text: str) -> None:
    """Check that all processes were asked for the same.

    Args:
        text: says all that they were asked for.

    Raises:
        UserError: in each of them, where one was asked for something else.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    others = multihost_utils.process_allgather(digest)
    differing = [index for index, other in enumerate(others) if not np.array_equal(other, others[0])]
    if differing:
        raise UserError(
            f"Process {differing[0]} was started with other settings than process 0; start all of them with "
            "the same, but for which one it is."
        )
