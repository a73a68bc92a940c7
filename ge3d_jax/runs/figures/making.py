"""Making one of the paper's figures by name: the time estimate, the folder lock, and the result files."""

import contextlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ge3d_jax.core.caching import keep_compiled_code
from ge3d_jax.core.files import locked
from ge3d_jax.runs.figures.base import PAPER_MODEL, Figure, Made, Work, write_made
from ge3d_jax.runs.figures.figures import FIGURES
from ge3d_jax.runs.folder import prepare_folder


def duration(seconds: float) -> str:
    """Format a duration for people, rounded to the precision of an estimate."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def told_time(figure: Figure, size: str) -> str:
    """Describe the estimated time of a figure, or that it was never timed."""
    seconds = figure.seconds.get(size)
    return "never timed" if seconds is None else f"about {duration(seconds)} on two CPU cores"


def model_of(size: str, model: str | None) -> str | None:
    """The requested model, or the default model of a size; None for the bundled one."""
    return PAPER_MODEL if model is None and size == "paper" else model


def command_of(name: str, size: str, model: str | None, own: Sequence[str] = ()) -> str:
    """The command that makes a figure; `own` holds flags specific to its script."""
    command = f"python experiments/figures/{name}.py --size={size}"
    flags = [*([] if model is None else [f"--model={model}"]), *own]
    return " ".join([command, *map(_quoted, flags)])


def _quoted(flag: str) -> str:
    name, equals, value = flag.partition("=")
    return f"{name}={shlex.quote(value)}" if equals else flag


@dataclass(frozen=True)
class Changed:
    """A figure modified by its own command-line flags.

    Attributes:
        make: makes the modified figure.
        flags: the flags, as typed on the command line.
        only_reads: whether it writes no records, so that another process may write them.
    """

    make: Callable[[Work], Made]
    flags: Sequence[str]
    only_reads: bool = False


def make_figure(
    name: str,
    *,
    size: str,
    out: Path,
    work: Path,
    model: str | None,
    report: Callable[[str], None],
    changed: Changed | None = None,
) -> None:
    """Make a figure, and write its tables, numbers and pictures.

    Args:
        name: a key of FIGURES.
        size: one of SIZES.
        out: the results folder.
        work: folder of objects and records. It holds a subfolder per figure and size, and the objects shared
            between figures.
        model: model to use instead of the size's own.
        report: called with progress messages.
        changed: modifications by the figure's own flags; None makes the figure as its size defines it.

    Raises:
        UserError: a folder cannot be written to, is in use by another process, or holds records of other
            settings; or the model cannot be read.
        KeyboardInterrupt: the user stopped it; finished steps are kept.
    """
    keep_compiled_code()
    figure = FIGURES[name]
    changed = changed or Changed(figure.make, ())
    out, folder = prepare_folder(out), prepare_folder(work / name / size)
    report(f"{name} ({figure.source}), {size}: {told_time(figure, size)}; finished steps are reused.")
    with contextlib.nullcontext() if changed.only_reads else locked(folder):
        made = changed.make(Work(size, folder, model_of(size, model), report, common=work / "objects"))
    write_made(made, name=name, command=command_of(name, size, model, changed.flags), out=out)
    report(f"{name} is in {out / f'{name}.md'}")
