"""TensorBoard logging of every iteration, in tensorboard/ next to metrics.jsonl."""

import contextlib
import time
from typing import Any

from ge3d_jax.core.extras import load_package
from ge3d_jax.core.files import remove_files
from ge3d_jax.runs.observers import Observer, Watched
from ge3d_jax.training.iterations import HostNumbers
from ge3d_jax.training.state import TrainState

_FOLDER = "tensorboard"
_PREFIX = "events"
# Keys of metrics.jsonl to skip: the iteration is the step, and TensorBoard records the wall time itself.
_NOT_SHOWN = ("iteration", "seconds")


class TensorBoard(Observer):
    """Writes the contents of metrics.jsonl as scalars; `tensorboard --logdir=outputs` shows all runs.

    A resumed run first rewrites its earlier iterations, as recorded in metrics.jsonl. If the disk is full,
    logging stops, which is reported at the end of the run.
    """

    def __init__(self) -> None:
        """Initialize the observer. Raises UserError if tensorboardX is not installed."""
        # SummaryWriter is unsuitable: its writer thread dies if the disk is full, and the run then waits for
        # it forever.
        files, self._summary, self._events = (
            load_package(f"tensorboardX.{name}", wanted_by="--tensorboard")
            for name in ("event_file_writer", "summary", "proto.event_pb2")
        )
        self._open = files.EventsWriter
        self._file: Any = None

    def on_run(self, watched: Watched) -> None:
        """Remember the run."""
        self._watched = watched

    def on_begin(self, *, is_new: bool) -> None:
        """Start the file with the iterations done earlier."""
        run = self._watched.run
        folder = run.folder / _FOLDER
        with self._attempt():
            folder.mkdir(exist_ok=True)
            remove_files(folder.glob(f"{_PREFIX}.*"))
            self._file = self._open(str(folder / _PREFIX))
            now, last = time.time(), run.history[-1]["seconds"] if run.history else 0.0
            for line in run.history:
                self._write(int(line["iteration"]), line, now - last + line["seconds"])
            self._file.flush()

    def on_iteration(self, done: int, numbers: HostNumbers, state: TrainState) -> bool:
        """Write the numbers."""
        if self._file is not None:
            with self._attempt():
                self._write(done, numbers, time.time())
                self._file.flush()
        return False

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        if self._file is not None:
            with self._attempt():
                self._file.close()

    @contextlib.contextmanager
    def _attempt(self) -> Any:
        """Try to write; give up after the first failure."""
        with self._watched.attempts.at(f"{_FOLDER}/"):
            try:
                yield
            except Exception:
                self._file = None
                raise

    def _write(self, iteration: int, numbers: HostNumbers, wall_time: float) -> None:
        event = self._events.Event(wall_time=wall_time, step=iteration)
        for name, value in numbers.items():
            if name not in _NOT_SHOWN:
                event.summary.value.extend(self._summary.scalar(name, value).value)
        self._file.write_event(event)
