"""All figures together: time estimates, generation of missing figures, and the results page."""

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax

from ge3d_jax.core.devices import memory_limit
from ge3d_jax.core.errors import UserError, reason
from ge3d_jax.core.files import atomic_path, parse_json
from ge3d_jax.core.pinned import do_pinned, usable_cores
from ge3d_jax.core.tables import counted
from ge3d_jax.runs.figures.base import Figure
from ge3d_jax.runs.figures.making import command_of, duration, told_time
from ge3d_jax.runs.folder import prepare_folder

# Folder in the results with the handwritten commentary on each figure.
READINGS = "readings"
_COMMITTED_SIZE = "full"
# Memory that a process may need to make a figure, most of it for compilation.
_BYTES_OF_FIGURE = 4 * 2**30


def choose(figures: Mapping[str, Figure], names: Sequence[str] | None) -> dict[str, Figure]:
    """Select figures by name, keeping the order of `figures`; None selects all.

    Raises:
        UserError: a name is unknown, or the list is empty.
    """
    if names is None:
        return dict(figures)
    wanted = [name.strip() for name in names]
    unknown = [name for name in wanted if name not in figures]
    if unknown or not wanted:
        told = f"no figure {unknown[0]!r}" if unknown else "no figure in the list"
        raise UserError(f"There is {told}; use some of {', '.join(figures)}.")
    return {name: figure for name, figure in figures.items() if name in wanted}


@dataclass(frozen=True)
class Results:
    """Contents of a figure's result files.

    Attributes:
        command: the command that made the figure.
        pictures, videos: names of the picture and video files in the same folder.
        text: the tables, Markdown.
    """

    command: str
    pictures: Sequence[str]
    videos: Sequence[str]
    text: str


def read_results(name: str, out: Path) -> Results | None:
    """Read a figure's results from the results folder; None if there are none.

    Raises:
        UserError: a file cannot be read.
    """
    file, text = out / f"{name}.json", out / f"{name}.md"
    if not file.is_file():
        return None
    try:
        content: Any = parse_json(file)
        command, pictures, videos = (content[key] for key in ("command", "pictures", "videos"))
        return Results(command, pictures, videos, text.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The results {file} and {text.name} cannot be read ({reason(error)}); remove {file} to make the "
            "figure again."
        ) from error


def is_made(name: str, command: str, out: Path) -> bool:
    """Whether a figure's results exist and were made by this command."""
    results = read_results(name, out)
    return results is not None and results.command == command


def told_times(
    figures: Mapping[str, Figure], missing: Mapping[str, Figure], size: str, processes: int = 1
) -> list[str]:
    """Describe the estimated time of each figure and the total for all missing ones.

    Args:
        figures: figures to list.
        missing: figures that will be made.
        size: one of SIZES.
        processes: number of figures made at a time.

    Returns:
        One line per figure, then a line with the total.
    """
    lines = [
        f"{name}: {told_time(figure, size) if name in missing else 'made already'}"
        for name, figure in figures.items()
    ]
    known = [figure.seconds[size] for figure in missing.values() if size in figure.seconds]
    untimed = len(missing) - len(known)
    together, count = duration(sum(known)), counted(len(missing), "figure")
    if not missing:
        lines.append(f"Nothing is left to make, size {size}.")
    elif untimed:
        never = f"{untimed} of them never timed"
        told = f"more than {together}, {never}" if known else never
        lines.append(f"{count} to make, size {size}: {told}.")
    else:
        lines.append(f"{count} to make, size {size}: about {together} on two CPU cores.")
    if processes > 1 and len(missing) > 1:
        lines.append(f"It takes less than that, since {processes} figures are made at a time.")
    return lines


class Make(Protocol):
    """Makes a figure by name; must be picklable: a module-level function, or a partial of one."""

    def __call__(self, name: str, *, report: Callable[[str], None]) -> None:
        """Make the figure, reporting progress line by line."""


def make_each(
    figures: Mapping[str, Figure], make: Make, *, report: Callable[[str], None], processes: int = 1
) -> list[str]:
    """Make figures; a failure of one does not stop the others.

    Args:
        figures: figures by name.
        make: makes one figure.
        report: called with progress messages and failures; a failure other than a UserError comes with its
            traceback.
        processes: number of figures to make in parallel, each by a process pinned to one core. Figures that
            compare times are made one at a time, at the end.

    Returns:
        A sentence for each failed figure.

    Raises:
        KeyboardInterrupt: the user stopped it.
    """
    timed = [name for name, figure in figures.items() if figure.is_timed]
    others = [name for name in figures if name not in timed]
    told = do_pinned(
        partial(_attempt, make=make, is_named=processes > 1), others, processes=processes, report=report
    )
    told += [_attempt(name, report, make=make) for name in timed]
    return [sentence for sentence in told if sentence is not None]


def _attempt(name: str, report: Callable[[str], None], *, make: Make, is_named: bool = False) -> str | None:
    """Make a figure, and return a sentence if it fails; `is_named` prefixes each line with its name."""

    def tell(line: str) -> None:
        report(f"{name} | {line}" if is_named else line)

    try:
        make(name, report=tell)
    except UserError as error:
        sentence = f"{name} was not made: {error}"
    except Exception as error:
        tell(traceback.format_exc().rstrip())
        sentence = f"{name} was not made: {type(error).__name__}: {reason(error)}"
    else:
        return None
    report(sentence)
    return sentence


def at_a_time(processes: int | None) -> int:
    """Return the number of figures to make in parallel: `processes`, or as many as this machine can hold.

    Raises:
        UserError: `processes` exceeds the number of processor cores.
    """
    cores = len(usable_cores())
    if processes is not None:
        if processes > cores:
            raise UserError(
                f"--at_a_time is {processes}, but there are {cores} cores; use at most that many."
            )
        return processes
    device = jax.devices()[0]
    if device.platform != "cpu":
        return 1
    memory = memory_limit(device)
    room = cores if memory is None else memory // _BYTES_OF_FIGURE
    return max(1, min(cores, room))


def page_path(size: str, out: Path) -> Path:
    """Path of the results page: beside the results folder for the full size, inside it for the others."""
    return out.with_name(f"{out.name}.md") if size == _COMMITTED_SIZE else out / "README.md"


def write_page(figures: Mapping[str, Figure], *, size: str, model: str | None, out: Path) -> Path:
    """Write the results page with all figures made so far.

    Args:
        figures: figures by name, in page order.
        size: one of SIZES.
        model: model to use instead of the size's own, shown in the commands for missing figures.
        out: the results folder.

    Returns:
        Path of the page.

    Raises:
        UserError: results cannot be read, or a folder cannot be written to.
    """
    page = page_path(size, prepare_folder(out).absolute())
    prepare_folder(page.parent)
    folder = Path(os.path.relpath(out.absolute(), page.parent)).as_posix()
    text = results_page(figures, size=size, model=model, out=out, folder=folder)
    with atomic_path(page) as path:
        path.write_text(text, encoding="utf-8")
    return page_path(size, out)


def results_page(
    figures: Mapping[str, Figure], *, size: str, model: str | None, out: Path, folder: str
) -> str:
    """Compose the page, Markdown: each figure's tables, pictures and commentary, from its files.

    Args:
        figures, size, model, out: see `write_page`.
        folder: path of the results folder as used in the page's links.
    """
    found = {name: read_results(name, out) for name in figures}
    made = {name: results for name, results in found.items() if results is not None}
    missing = [name for name in figures if name not in made]
    chapters = [_chapter(figures[name], name, results, out, folder) for name, results in made.items()]
    contents = "\n".join(
        f"- [{figures[name].title}](#{_anchor(figures[name].title)}) ({figures[name].source})"
        for name in made
    )
    head = [
        "# The paper's tables and figures",
        f"Written by `python experiments/figures/page.py --size={size}`, which makes whatever is missing. "
        f"Every number in the tables comes from a file in [{folder}]({folder}); the command under each "
        "figure reproduces it.",
        contents,
    ]
    if missing:
        commands = "\n".join(
            f"- {figures[name].title}: `{command_of(name, size, model)}`" for name in missing
        )
        chapters.append(f"## Not made yet\n\n{commands}")
    return "\n\n".join(part for part in [*head, *chapters] if part) + "\n"


def _anchor(title: str) -> str:
    """The link anchor of a heading."""
    kept = "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -_")
    return kept.replace(" ", "-")


def _chapter(figure: Figure, name: str, results: Results, out: Path, folder: str) -> str:
    reading = out / READINGS / f"{name}.md"
    parts = [
        f"## {figure.title}",
        f"{figure.source}. {figure.expected}",
        results.text.strip(),
        *(f"![{figure.title}]({folder}/{file})" for file in results.pictures),
        *(f"[Video: {file}]({folder}/{file})" for file in results.videos),
        f"```sh\n{results.command}\n```",
    ]
    if reading.is_file():
        parts.append(reading.read_text(encoding="utf-8").strip())
    return "\n\n".join(part for part in parts if part)
