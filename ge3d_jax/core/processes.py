"""Multi-process runs, on one machine or many: `jax.distributed` connects and monitors the processes."""

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

# The first process to finish waits for the last, which may have much more work left.
_LONGEST_WAIT_SECONDS = 30 * 24 * 3600

# The program that runs beside each process: it reads until that process has ended, and prints a message if
# the process was killed. JAX aborts a process when a peer dies, so nothing can run in the process itself.
_LAST_WORD = "import sys; sys.stdin.read() or print(sys.argv[1], file=sys.stderr)"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """How this process finds the others.

    Values that are None are detected from the environment: Slurm, MPI, Kubernetes, and the clouds that JAX
    supports.

    Attributes:
        coordinator: address and port of process 0, e.g. "10.0.0.1:1234".
        processes: number of processes.
        process: index of this process, from 0.
        wait_seconds: how long to wait for the other processes at startup.
        heartbeat_seconds: a process that has been silent for this long is considered dead.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    wait_seconds: int = 300
    heartbeat_seconds: int = 60

    def __post_init__(self) -> None:
        """Validate the values. Raises UserError."""
        if self.coordinator is not None and not self.coordinator.rpartition(":")[2].isdecimal():
            raise UserError(
                f"The coordinator {self.coordinator!r} has no port; give an address such as 10.0.0.1:1234."
            )
        if self.processes is not None and self.processes < 1:
            raise UserError(f"There are {self.processes} processes; give at least 1.")
        if self.process is not None and not 0 <= self.process < (self.processes or self.process + 1):
            of, to = (
                ("", "") if self.processes is None else (f" of {self.processes}", f" to {self.processes - 1}")
            )
            raise UserError(f"This is process {self.process}{of}; give a number from 0{to}.")

    @property
    def is_whole(self) -> bool:
        """Whether every value is given, so that nothing has to be detected."""
        return None not in (self.coordinator, self.processes, self.process)


def join(cluster: Cluster) -> None:
    """Join a group of processes; call this before JAX is first used.

    From then on, a process that dies takes the others down; a sentence after JAX's own output says so. A
    process that ends with an error waits for the others before it exits.

    Args:
        cluster: how to find the other processes.

    Raises:
        UserError: the other processes do not connect, or the environment does not describe any.
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

    # If nobody answers, JAX terminates the program with a stack trace. Running it in a thread leaves time to
    # raise a readable error first.
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
            "processes and the index of this one."
        ) from errors[0]
    _have_last_word(
        f"Process {jax.process_index()} of {jax.process_count()} died, on its own or because another did; "
        "start all of them again, with --resume to continue from the last saved state."
    )


def _have_last_word(sentence: str) -> None:
    """Print a sentence to standard error if this process is killed from outside."""
    # In its own session, so that Ctrl-C does not reach it.
    command = [sys.executable, "-S", "-c", _LAST_WORD, sentence]
    beside = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    pipe = beside.stdin
    assert pipe is not None
    atexit.register(lambda: (pipe.write(b"ended"), pipe.close(), beside.wait()))


def leave() -> None:
    """Wait until the other processes have finished, too. A no-op in a single-process run."""
    jax.distributed.shutdown()


def abandon(reason: str) -> NoReturn:
    """Exit this process and thereby the others, which would otherwise wait for it in a shared program."""
    print(reason, file=sys.stderr, flush=True)
    os._exit(1)


def anywhere(flag: bool) -> bool:
    """Whether the flag is set in any of the processes; all of them must call this."""
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def check_same(text: str) -> None:
    """Check that all processes were given the same request.

    Args:
        text: a complete description of the request.

    Raises:
        UserError: the requests differ; raised in every process.
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
            "the same settings, except for the process's own index."
        )
