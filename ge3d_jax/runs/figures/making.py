"""Making one of the paper's figures from its name: time told, lock held, files written."""

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
    """A time as people say it, rounded to what an estimate can promise."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"


def told_time(figure: Figure, size: str) -> str:
    """About how long a figure takes, or that nobody knows."""
    seconds = figure.seconds.get(size)
    return "never timed" if seconds is None else f"about {duration(seconds)} on two CPU cores"


def model_of(size: str, model: str | None) -> str | None:
    """The model of a size, where no other one is asked for; None for the bundled one."""
    return PAPER_MODEL if model is None and size == "paper" else model


def command_of(name: str, size: str, model: str | None, own: Sequence[str] = ()) -> str:
    """The command that makes a figure; `own` are flags of its script."""
    command = f"python experiments/figures/{name}.py --size={size}"
    flags = [*([] if model is None else [f"--model={model}"]), *own]
    return " ".join([command, *map(_quoted, flags)])


def _quoted(flag: str) -> str:
    name, equals, value = flag.partition("=")
    return f"{name}={shlex.quote(value)}" if equals else flag


@dataclass(frozen=True)
class Changed:
    """A figure as flags of its own change it.

    Attributes:
        make: makes it.
        flags: these flags, as they are typed.
        only_reads: whether it writes no records, so that another process may.
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
    """Make a figure, and write its table, numbers and pictures.

    Args:
        name: in FIGURES.
        size: one of SIZES.
        out: folder of the results.
        work: folder of objects and records; the figure has one of its own in it, for each size, beside the
            objects that figures have in common.
        model: another model than the size's own.
        report: told of the progress.
        changed: how it is made, if not as the size says.

    Raises:
        UserError: a folder that cannot be written to, that another process uses, or whose records are of
            other settings; a model that cannot be read.
        KeyboardInterrupt: the user stopped it; what is done is kept.
    """
    keep_compiled_code()
    figure = FIGURES[name]
    changed = changed or Changed(figure.make, ())
    out, folder = prepare_folder(out), prepare_folder(work / name / size)
    report(f"{name} ({figure.source}), {size}: {told_time(figure, size)}; what is done is not done again.")
    with contextlib.nullcontext() if changed.only_reads else locked(folder):
        made = changed.make(Work(size, folder, model_of(size, model), report, common=work / "objects"))
    write_made(made, name=name, command=command_of(name, size, model, changed.flags), out=out)
    report(f"{name} is in {out / f'{name}.md'}")
