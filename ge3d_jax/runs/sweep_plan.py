"""The objects of a sweep, prompts × seeds, and how they are divided among processes."""

import dataclasses
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ge3d_jax.core.errors import UserError
from ge3d_jax.runs.folder import slug
from ge3d_jax.runs.model_choice import FilePath
from ge3d_jax.runs.object_request import ObjectRequest

_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True)
class Line:
    """A prompt of a sweep, with its own settings.

    Attributes:
        prompt: what to generate; None uses the preset's prompt.
        changes: settings for this prompt, by dotted name; also `guidance` and `density`, the names of a loss
            and of a density control.
        place: its location in the file, as a prefix for messages; "" if it is not from a file.
    """

    prompt: str | None
    changes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    place: str = ""

    @property
    def told_changes(self) -> str:
        """The line's own settings, as text on one line."""
        return " ".join(f"{name}={value}" for name, value in self.changes.items())

    def folder_name(self, prompt: str, seed: int) -> str:
        """Name of an object's folder, distinct from those with other settings."""
        if not self.changes:
            return f"{slug(prompt)}-{seed}"
        return f"{slug(prompt)}-{hashlib.sha256(self.told_changes.encode()).hexdigest()[:8]}-{seed}"


@dataclasses.dataclass(frozen=True)
class SweepObject:
    """An object of a sweep.

    Attributes:
        name: name of its folder.
        line: index of its prompt in the sweep; objects of the same line differ only in their seeds.
        changes: its own settings, as text on one line.
        request: the checked request for the object.
    """

    name: str
    line: int
    changes: str
    request: ObjectRequest


def read_lines(file: FilePath) -> list[Line]:
    """Read prompts, one per line, each with optional settings after a tab: name=value, separated by spaces.

    Raises:
        UserError: the file cannot be read or has no lines, or a line is empty or has anything but settings
            after its tab; the message names the line.
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The prompt file {file} cannot be read ({error}); give a text file with a prompt on each line."
        ) from error
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        place = f"{file}, line {number}: "
        prompt, _, settings = line.partition("\t")
        if not prompt.strip():
            raise UserError(f"{place}there is no prompt; write one, or remove the line.")
        try:
            pairs = [word.partition("=") for word in shlex.split(settings)]
        except ValueError as error:
            raise UserError(f"{place}the settings cannot be read ({error}).") from error
        for name, equals, _ in pairs:
            if not name or not equals:
                raise UserError(
                    f"{place}{name + equals!r} is no setting; write name=value after the tab, e.g. views=2."
                )
        lines.append(Line(prompt.strip(), {name: value for name, _, value in pairs}, place))
    if not lines:
        raise UserError(f"The prompt file {file} is empty; write a prompt on each line.")
    return lines


def parse_seeds(text: str) -> list[int]:
    """Parse seeds: comma-separated numbers and ranges, e.g. "0-7,12".

    Raises:
        UserError: the text is malformed or empty.
    """
    seeds: list[int] = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        first, dash, last = word.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise UserError(
                f"The seeds {text!r} cannot be read at {word!r}; give numbers and ranges, e.g. 0-7,12."
            )
        seeds += range(int(first), int(last if dash else first) + 1)
    if not seeds:
        raise UserError("There are no seeds; give some, e.g. 0-7.")
    return seeds


def check_distinct(objects: Sequence[SweepObject], lines: Sequence[Line]) -> None:
    """Check that no two objects would be written to the same folder.

    Raises:
        UserError: two objects collide; the message names them and their lines.
    """
    seen: dict[str, SweepObject] = {}
    for one in objects:
        other = seen.setdefault(one.name, one)
        if other is one:
            continue
        places = [lines[each.line].place.removesuffix(": ") for each in (other, one)]
        where = f" ({' and '.join(dict.fromkeys(places))})" if all(places) else ""
        if other.request.prompt == one.request.prompt:
            twice = f"The prompt {one.request.prompt!r} with seed {one.request.seed} is there twice"
        else:
            twice = f"{other.request.prompt!r} and {one.request.prompt!r} would be written to one folder"
        raise UserError(f"{twice}{where}; leave one of them out.")


def share_of(objects: Sequence[_Item], process: int, processes: int) -> Sequence[_Item]:
    """The share of one process: a contiguous slice, so that few prompts are split between processes.

    Raises:
        UserError: there are more processes than objects.
    """
    if processes > len(objects):
        raise UserError(
            f"There are {processes} processes for {len(objects)} objects; start at most as many as there are "
            "objects."
        )
    bounds = [len(objects) * index // processes for index in (process, process + 1)]
    return objects[slice(*bounds)]
