"""Several processes that work together, on one machine or many: `jax.distributed` finds and watches them."""

import dataclasses
import hashlib
import threading

import jax
import numpy as np

from ge3d_jax.core.errors import UserError

# The first to be through waits for the last one, which may have much more to do.
_LONGEST_WAIT_SECONDS = 30 * 24 * 3600


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

    From then on a process that dies, or ends without `leave`, ends the others: JAX tells them that another
    task died.

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


def leave() -> None:
    """Wait until the other processes are through, too. Nothing happens in a process by itself."""
    jax.distributed.shutdown()


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
