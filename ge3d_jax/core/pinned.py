"""Running jobs in processes that are each pinned to one processor core, so that times are comparable."""

import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from ge3d_jax.core.errors import UserError

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")
# How often to check whether a process died silently, seconds.
_LOOK_EVERY = 1.0


def usable_cores() -> list[int]:
    """Numbers of the cores that this process may run on; all cores if the system does not tell."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def do_pinned(
    do: Callable[[_Job, Callable[[str], None]], _Result],
    jobs: Sequence[_Job],
    *,
    processes: int,
    report: Callable[[str], None],
) -> list[_Result]:
    """Run jobs in worker processes, each pinned to one core; a single process is this one, on all its cores.

    Args:
        do: runs a job, given a function to report with. It must be a module-level function, because it, the
            jobs and the results are pickled.
        jobs: the jobs, started in this order.
        processes: number of processes, limited by the number of jobs and cores.
        report: called with each line that a job reports.

    Returns:
        The results of `do`, in the order of the jobs.

    Raises:
        UserError: a job raised it; the other jobs are terminated.
        RuntimeError: a process died, or a job raised another error.
        KeyboardInterrupt: the user stopped it.
    """
    if processes == 1:
        return [do(job, report) for job in jobs]
    cores = usable_cores()[: min(processes, len(jobs))]
    # A process forked from one that uses JAX may hang.
    context = multiprocessing.get_context("spawn")
    waiting, told = context.Queue(), context.Queue()
    for numbered in enumerate(jobs):
        waiting.put(numbered)
    for _ in cores:
        # One end marker for each process.
        waiting.put(None)
    workers = [context.Process(target=_work, args=(do, waiting, told), daemon=True) for _ in cores]
    try:
        for worker, core in zip(workers, cores, strict=True):
            _start_on(core, worker)
        results = _listen(workers, told, report)
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.terminate()
                worker.join()
    return [results[number] for number in range(len(jobs))]


def _start_on(core: int, worker: BaseProcess) -> None:
    """Start a process on a core, where it is pinned before it imports anything that counts the cores."""
    if not hasattr(os, "sched_setaffinity"):
        worker.start()
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        worker.start()
    finally:
        os.sched_setaffinity(0, before)


def _listen(workers: Iterable[BaseProcess], told: Any, report: Callable[[str], None]) -> dict[int, Any]:
    """Relay reports until all processes finish; return results by job number. Raises a failed job's error."""
    at_work = {worker.pid: worker for worker in workers}
    results: dict[int, Any] = {}
    while at_work:
        try:
            kind, pid, what = told.get(timeout=_LOOK_EVERY)
        except queue.Empty:
            for worker in at_work.values():
                if worker.exitcode:
                    raise RuntimeError(f"A process ended with status {worker.exitcode}.") from None
            continue
        if kind == "line":
            report(what)
        elif kind == "done":
            number, result = what
            results[number] = result
        elif kind == "through":
            del at_work[pid]
        elif kind == "refused":
            raise UserError(what)
        elif kind == "stopped":
            raise KeyboardInterrupt
        else:
            raise RuntimeError(what)
    return results


def _work(do: Callable[[Any, Callable[[str], None]], Any], waiting: Any, told: Any) -> None:
    """Run a worker process."""
    from ge3d_jax.core.caching import keep_compiled_code
    from ge3d_jax.core.devices import use_processor_cores

    threading.Thread(target=_end_with_parent, daemon=True).start()
    own = os.getpid()
    try:
        use_processor_cores()
        keep_compiled_code()
        while (numbered := waiting.get()) is not None:
            number, job = numbered
            result = do(job, lambda line: told.put(("line", own, line)))
            told.put(("done", own, (number, result)))
    except UserError as error:
        told.put(("refused", own, str(error)))
    except KeyboardInterrupt:
        told.put(("stopped", own, ""))
    except Exception as error:
        told.put(("failed", own, f"{type(error).__name__}: {error}"))
    else:
        told.put(("through", own, ""))


def _end_with_parent() -> None:
    """Exit when the parent process ends, even if it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
