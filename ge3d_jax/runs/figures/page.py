"""All figures together: how long they take, making those that are missing, and the page that shows them."""

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
from ge3d_jax.runs.figures.base import Figure
from ge3d_jax.runs.figures.making import command_of, duration, told_time
from ge3d_jax.runs.folder import prepare_folder

# Folder beside the results with what was written by hand.
READINGS = "readings"
_COMMITTED_SIZE = "full"
# What a process that makes a figure may need, most of it for compiling.
_BYTES_OF_FIGURE = 4 * 2**30


def choose(figures: Mapping[str, Figure], names: Sequence[str] | None) -> dict[str, Figure]:
    """The figures of these names, in the order of `figures`; None for all.

    Raises:
        UserError: there is no such figure.
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
    """What is in the files of a figure that was made.

    Attributes:
        command: that made it.
        pictures, videos: names of files beside them.
        text: the tables, Markdown.
    """

    command: str
    pictures: Sequence[str]
    videos: Sequence[str]
    text: str


def read_results(name: str, out: Path) -> Results | None:
    """What was made of a figure, from the folder of results; None where there is nothing.

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
            f"The results {file} and {text.name} cannot be read ({reason(error)}); remove {file}, and the "
            "figure is made again."
        ) from error


def is_made(name: str, command: str, out: Path) -> bool:
    """Whether the results of a figure are there and were made by this command."""
    results = read_results(name, out)
    return results is not None and results.command == command


def told_times(figures: Mapping[str, Figure], missing: Mapping[str, Figure], size: str) -> list[str]:
    """Lines on how long each figure takes, and how long all that are missing take together.

    Args:
        figures: all to be told of.
        missing: those that will be made.
        size: one of SIZES.
    """
    lines = [
        f"{name}: {told_time(figure, size) if name in missing else 'made already'}"
        for name, figure in figures.items()
    ]
    known = [figure.seconds[size] for figure in missing.values() if size in figure.seconds]
    untimed = len(missing) - len(known)
    together = duration(sum(known))
    if not missing:
        lines.append(f"Nothing is left to make, size {size}.")
    elif untimed:
        never = f"{untimed} of them never timed"
        told = f"more than {together}, {never}" if known else never
        lines.append(f"{len(missing)} figures to make, size {size}: {told}.")
    else:
        lines.append(f"{len(missing)} figures to make, size {size}: about {together} on two CPU cores.")
    return lines


class Make(Protocol):
    """Makes a figure of a name; a function of a module or a partial one, to be sent to another process."""

    def __call__(self, name: str, *, report: Callable[[str], None]) -> None:
        """Make it, reporting lines on the way."""


def make_each(
    figures: Mapping[str, Figure], make: Make, *, report: Callable[[str], None], processes: int = 1
) -> list[str]:
    """Make figures; one that fails does not stop the others.

    Args:
        figures: by name.
        make: makes one.
        report: told of the progress, and of what fails, with a traceback where it is nothing that a user can
            mend.
        processes: how many figures are made at a time, each by a process on a processor core; those that
            compare times are made alone, at the end.

    Returns:
        A sentence for each that failed.

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
    """Make a figure; a sentence if that fails. Lines have its name before them where `is_named`."""

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
    """How many figures to make at a time: `processes`, or what this machine has room for.

    Raises:
        UserError: more than there are processor cores.
    """
    cores = len(usable_cores())
    if processes is not None:
        if processes > cores:
            raise UserError(f"--at_a_time is {processes}, but there are {cores} cores; give at most as many.")
        return processes
    device = jax.devices()[0]
    if device.platform != "cpu":
        return 1
    memory = memory_limit(device)
    room = cores if memory is None else memory // _BYTES_OF_FIGURE
    return max(1, min(cores, room))


def page_path(size: str, out: Path) -> Path:
    """Where the page is: of the full size beside the folder of results, else in it."""
    return out.with_name(f"{out.name}.md") if size == _COMMITTED_SIZE else out / "README.md"


def write_page(figures: Mapping[str, Figure], *, size: str, model: str | None, out: Path) -> Path:
    """Write the page of all figures whose results are there.

    Args:
        figures: by name, in the order of the page.
        size: one of SIZES.
        model: another model than the size's own, for the commands of those that are missing.
        out: folder of the results.

    Returns:
        The page.

    Raises:
        UserError: results that cannot be read, or a folder that cannot be written to.
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
    """The page, Markdown: every figure's tables, pictures and reading from its files.

    Args:
        figures, size, model, out: as for `write_page`.
        folder: of the results, as the page's links name it.
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
        f"Every number comes from a file in [{folder}]({folder}); the command under each figure "
        "reproduces it.",
        contents,
    ]
    if missing:
        commands = "\n".join(
            f"- {figures[name].title}: `{command_of(name, size, model)}`" for name in missing
        )
        chapters.append(f"## Not made yet\n\n{commands}")
    return "\n\n".join(part for part in [*head, *chapters] if part) + "\n"


def _anchor(title: str) -> str:
    """How a heading is linked to."""
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
