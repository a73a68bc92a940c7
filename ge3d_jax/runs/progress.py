"""Terminal interface of a run: a progress bar with the time left, and Ctrl-C without loss of work."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ge3d_jax.core.errors import RunDropped

# Ctrl-C and the signals that schedulers and closed terminals send; Windows has no SIGHUP.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
# Number of lines that a run prints if there is no terminal for a progress bar.
_LINES_WITHOUT_TERMINAL = 10


def say(text: str) -> None:
    """Print a line to standard error; for use when there is no bar."""
    Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)


def told(progress: bool) -> Callable[[str], None]:
    """`say` if progress is shown, and otherwise a function that does nothing."""
    return say if progress else lambda text: None


class RunProgress:
    """A bar on a terminal or occasional lines elsewhere, on standard error; nothing unless `enabled`."""

    def __init__(self, total: int, *, enabled: bool = True, doing: str = "generating") -> None:
        self._doing = doing
        console = Console(stderr=True, quiet=not enabled)
        self._console = console
        self._total = total
        self._last_line = 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("·"),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("left{task.fields[figures]}"),
            console=console,
            disable=not (enabled and console.is_terminal),
        )
        self._task = self._bar.add_task("compiling", total=total, figures="")

    def __enter__(self) -> "RunProgress":
        self._bar.start()
        if not self._console.is_terminal:
            self._console.print(f"compiling, then {self._total} iterations")
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, done: int, numbers: Mapping[str, int | float]) -> None:
        """Show that `done` iterations are complete, with the loss and splat count from `numbers`."""
        figures = f" · loss {numbers['loss']:.4g}" if "loss" in numbers else ""
        figures += f" · {numbers['splats']} splats" if "splats" in numbers else ""
        self.show(done, figures)

    def show(self, done: int, figures: str) -> None:
        """Show that `done` iterations are complete, followed by the text `figures`."""
        self._bar.update(self._task, description=self._doing, completed=done, figures=figures)
        every = max(1, self._total // _LINES_WITHOUT_TERMINAL)
        is_due = done and (done % every == 0 or done == self._total)
        if not self._console.is_terminal and is_due and done != self._last_line:
            self._last_line = done
            self._console.print(f"iteration {done}/{self._total}{figures}", highlight=False)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a line about a problem, even if nothing else is shown."""
        if self._console.quiet:
            say(text)
        else:
            self.say(text)


class StopRequest:
    """Whether the user has asked the run to stop."""

    def __init__(self) -> None:
        self.requested = False


@contextlib.contextmanager
def gentle_interrupt(
    progress: RunProgress,
    message: str = "Stopping after this iteration, then writing the object; Ctrl-C again to drop it.",
) -> Iterator[StopRequest]:
    """Within the block, the first termination signal only sets `requested`; the second takes effect at once.

    An aborted step leaves no usable splats, so the loop finishes the current step and then stops. The signals
    are Ctrl-C, whose second occurrence raises RunDropped, and SIGTERM and SIGHUP, which schedulers and closed
    terminals send and whose second occurrence ends the process. Outside the main thread, where Python handles
    no signals, nothing changes. `message` tells the user what happens next.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def drop(number: int, frame: FrameType | None) -> None:
        raise RunDropped

    def on_first(number: int, frame: FrameType | None) -> None:
        request.requested = True
        for other in _SIGNALS:
            signal.signal(other, drop if other == signal.SIGINT else signal.SIG_DFL)
        progress.say(message)

    for number in _SIGNALS:
        signal.signal(number, on_first)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
