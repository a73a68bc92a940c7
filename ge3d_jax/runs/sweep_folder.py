"""A sweep's folder: the outcome of each object, sweep.json, sweep.csv, the page, and the contact sheet."""

import contextlib
import csv
import dataclasses
import io
import json
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import atomic_path, held, unwritable
from ge3d_jax.runs.attempts import Attempts
from ge3d_jax.runs.folder import versions, write_json
from ge3d_jax.runs.sweep_plan import SweepObject
from ge3d_jax.viewer.gallery import save_gallery
from ge3d_jax.viewer.sheet import image_grid, save_png

_SWEEP_FILE = "sweep.json"
_OUTCOMES = "outcomes"
_COLUMNS = (
    "prompt",
    "seed",
    "settings",
    "status",
    "reason",
    "iterations",
    "splats",
    "loss",
    "seconds",
    "folder",
)
# Edge length of an image on the contact sheet, pixels, and the number of letters that fit below it.
_SHOWN_SIZE = 128
_SHOWN_LETTERS = 18
_EMPTY = 235


@dataclasses.dataclass(frozen=True)
class SweepOutcome:
    """The outcome of an object.

    Attributes:
        prompt, seed: prompt and seed of the object.
        settings: its own settings, in one line.
        folder: name of its folder within the sweep's.
        status: "finished"; "diverged", in which case it is the last good object; "failed"; or "pending".
        reason: why it is not finished.
        iterations: number of iterations done.
        splats: number of splats.
        loss: loss of the last iteration; None if there is none.
        seconds: its share of the time for the objects that were computed together.
    """

    prompt: str
    seed: int
    settings: str
    folder: str
    status: str = "pending"
    reason: str = ""
    iterations: int = 0
    splats: int = 0
    loss: float | None = None
    seconds: float = 0.0


class SweepFolder:
    """The folder of a sweep, and the objects that belong to it.

    Attributes:
        path: path of the folder.
        attempts: records failures to write outcomes.
    """

    def __init__(self, path: Path, objects: Sequence[SweepObject]) -> None:
        self.path = path
        self.attempts = Attempts()
        self._objects = objects
        self._finished: set[str] = set()

    @property
    def count(self) -> int:
        """Number of objects."""
        return len(self._objects)

    def check_free(self, *, resume: bool) -> None:
        """Check that the folder holds no other sweep. Raises UserError."""
        if not resume and (self.path / _SWEEP_FILE).exists():
            raise UserError(
                f"The folder {self.path} already holds a sweep; continue it with resume, or give another "
                "folder."
            )

    @contextlib.contextmanager
    def locked(self, process: int) -> Iterator[None]:
        """Keep other sweeps from writing here during the block. Raises UserError if one already does."""
        with held(self.path / f".process-{process}.lock", "sweep"):
            yield

    def write_description(self) -> None:
        """Write sweep.json: the objects and the versions. Raises UserError if it cannot be written."""
        objects = [
            {
                "prompt": one.request.prompt,
                "seed": one.request.seed,
                "settings": one.changes,
                "folder": one.name,
            }
            for one in self._objects
        ]
        try:
            write_json(self.path / _SWEEP_FILE, {"objects": objects, "versions": versions()})
        except OSError as error:
            raise unwritable(self.path, error) from error

    @staticmethod
    def pending(one: SweepObject) -> SweepOutcome:
        """The outcome of an object that has not been made yet."""
        return SweepOutcome(one.request.prompt, one.request.seed, one.changes, one.name)

    def record(self, outcome: SweepOutcome) -> None:
        """Save the outcome of an object."""
        name = f"{_OUTCOMES}/{outcome.folder}.json"
        with self.attempts.at(name):
            write_json(self.path / name, dataclasses.asdict(outcome))

    def outcome(self, one: SweepObject) -> SweepOutcome:
        """The outcome of an object so far."""
        file = self.path / _OUTCOMES / f"{one.name}.json"
        try:
            outcome = SweepOutcome(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return self.pending(one)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{file} does not describe an object's outcome ({error}); remove it.") from error
        if outcome.status == "finished" and not (one.request.folder / "object.ply").is_file():
            return self.pending(one)
        return outcome

    def outcomes(self) -> list[SweepOutcome]:
        """The outcomes of all objects so far, in order."""
        return [self.outcome(one) for one in self._objects]

    def count_finished(self) -> int:
        """Number of finished objects."""
        unknown = [one for one in self._objects if one.name not in self._finished]
        self._finished |= {one.name for one in unknown if self.outcome(one).status == "finished"}
        return len(self._finished)

    def write_tables(self) -> None:
        """Write sweep.csv and the page index.html for the current outcomes."""
        outcomes = self.outcomes()
        table = io.StringIO()
        writer = csv.DictWriter(table, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(outcome) for outcome in outcomes)
        with atomic_path(self.path / "sweep.csv") as path:
            path.write_text(table.getvalue(), encoding="utf-8")
        save_gallery(self.path / "index.html", [dataclasses.asdict(outcome) for outcome in outcomes])

    def write_sheet(self) -> None:
        """Write contact_sheet.png: the front view of each object, with one row per line of the sweep."""
        rows = [list(row) for _, row in groupby(self._objects, key=lambda one: one.line)]
        columns = max(map(len, rows))
        pictures, labels = [], []
        for row in rows:
            for one in row:
                pictures.append(_front(one.request.folder / "turntable.gif"))
                prompt = textwrap.shorten(one.request.prompt, _SHOWN_LETTERS, placeholder=" …")
                labels.append(f"{prompt} · {one.request.seed}")
            missing = columns - len(row)
            pictures += [_blank(255)] * missing
            labels += [""] * missing
        save_png(self.path / "contact_sheet.png", image_grid(pictures, labels, columns=columns))


def _blank(value: int) -> np.ndarray:
    return np.full((_SHOWN_SIZE, _SHOWN_SIZE, 3), value, np.uint8)


def _front(turntable: Path) -> np.ndarray:
    """The first frame of a turntable, uint8 (_SHOWN_SIZE, _SHOWN_SIZE, 3); gray if there is none."""
    try:
        with Image.open(turntable) as opened:
            picture = opened.convert("RGB").resize((_SHOWN_SIZE, _SHOWN_SIZE), Image.Resampling.LANCZOS)
    except OSError:
        return _blank(_EMPTY)
    return np.asarray(picture)
