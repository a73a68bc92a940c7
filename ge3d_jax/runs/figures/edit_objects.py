"""Prompt-based editing of objects, in several ways: is the target reached, and is the rest preserved?"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ge3d_jax.core.settings import to_tree
from ge3d_jax.core.tables import markdown_table, number_cell
from ge3d_jax.metrics.likeness import Views, object_views
from ge3d_jax.metrics.object_edits import measure_kept, measure_reached, measure_truth
from ge3d_jax.metrics.recognition import Gallery, load_gallery
from ge3d_jax.runs.asked import model_by_preset
from ge3d_jax.runs.evaluate import likeness_cameras, measure_object
from ge3d_jax.runs.figures.base import FIRST_LOOK, Figure, Made, Record, Work, remember
from ge3d_jax.runs.judged import see_truths
from ge3d_jax.runs.made_objects import make_object, model_fingerprint, object_folder
from ge3d_jax.runs.request import check_prompt
from ge3d_jax.training.presets import configured
from ge3d_jax.viewer.sheet import image_grid, to_uint8

SOURCE, RESTYLED, TRUTH = "source", "start", "truth"
# Names of the ways in tables and images.
LABELS = {
    SOURCE: "(the source)",
    "delta": "compared with the source",
    "direct": "direct inversion",
    "npi": "NPI",
    RESTYLED: "restyled by --start",
    TRUTH: "(the true edited object)",
}
_COLUMNS = {
    "outline": ("outline as the source's, IoU", 3),
    "moved": ("surface moved, of the size", 3),
    "rest_psnr": ("rest, PSNR to the source", 1),
    "recognized": ("views recognized as the target", 2),
    "reached": ("views nearer to the target", 2),
    "way_left": ("way left", 2),
    "psnr": ("PSNR to the truth", 1),
    "overlap": ("IoU with the truth", 3),
    "chamfer": ("Chamfer to the truth", 3),
}


@dataclass(frozen=True)
class Edit:
    """An edit of an object.

    Attributes:
        name: what is edited; also used in file names.
        source: prompt of the source object.
        target: prompt of the edited object.
    """

    name: str
    source: str
    target: str


@dataclass(frozen=True)
class Settings:
    """Settings of the figure.

    Attributes:
        edits: edits, of one object each.
        ways: values of `guidance.inversion`, or "start", which does not use the source prompt.
        seed: random seed of all runs.
        preset: the preset that the settings of all runs are based on.
        overrides: settings to change in all runs.
        source_overrides, edit_overrides: settings to change only for the sources or only for the edits.
        has_truth: whether the prompts are sentences of the Toybox world, whose truth is known.
    """

    edits: tuple[Edit, ...] = (
        Edit("color", "a red mushroom", "a blue mushroom"),
        Edit("part", "a green robot", "a green robot with a yellow head"),
        Edit("kind", "a purple cat", "a purple pig"),
    )
    ways: tuple[str, ...] = ("delta", "direct", "npi", RESTYLED)
    seed: int = 0
    preset: str = "toybox_ball"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    source_overrides: Mapping[str, Any] = field(default_factory=dict)
    edit_overrides: Mapping[str, Any] = field(default_factory=dict)
    has_truth: bool = True


SIZES: Mapping[str, Settings] = {
    "small": Settings(
        edits=Settings().edits[:1],
        ways=("delta", RESTYLED),
        preset="toybox64",
        overrides=FIRST_LOOK,
    ),
    "full": Settings(),
    "paper": Settings(
        edits=(
            Edit("color", "a red fox, photorealistic, 8K, HDR", "a blue fox, photorealistic, 8K, HDR"),
            Edit("part", "A giraffe, realistic, 8K, HDR.", "A giraffe with a scarf, realistic, 8K, HDR."),
            Edit("kind", "a stuffed toy bunny", "a stuffed toy bear"),
        ),
        preset="paper",
        has_truth=False,
    ),
}


@dataclass(frozen=True)
class Row:
    """An object of the figure.

    Attributes:
        edit: its edit.
        way: one of the settings' ways, SOURCE, or TRUTH.
        numbers: column name → value.
        pictures: uint8 (8, H, W, 3), a full turn from the front.
    """

    edit: Edit
    way: str
    numbers: Mapping[str, float | None]
    pictures: np.ndarray


def way_overrides(settings: Settings, way: str) -> dict[str, Any]:
    """The overrides of the preset's settings for the runs of a way, or for the sources."""
    if way == SOURCE:
        return {**settings.overrides, **settings.source_overrides}
    inversion = {} if way == RESTYLED else {"guidance.inversion": way}
    return {**settings.overrides, **settings.edit_overrides, **inversion}


def edited_rows(settings: Settings, work: Work, judges: Callable[[], Gallery]) -> list[Row]:
    """Make the sources, edit them in every way, and measure all of them.

    Args:
        settings: settings of the figure.
        work: where results are kept.
        judges: loads the recognizer's gallery; not called if nothing has to be recognized.

    Returns:
        For each edit, a row for the source, for each way, and for the truth if it is known.

    Raises:
        UserError: a prompt or the model cannot be used, or there are records of other settings.
    """
    place = model_by_preset(settings.preset, work.model).check()
    for edit in settings.edits:
        check_prompt(edit.source, place)
        check_prompt(edit.target, place)
    model = model_fingerprint(place)
    asked = {**dataclasses.asdict(settings), "model": model}
    del asked["edits"]
    # The preset's settings may change, too.
    asked["settings"] = {
        way: to_tree(configured(settings.preset, overrides=way_overrides(settings, way)))
        for way in (SOURCE, *settings.ways)
    }
    rows = []
    for edit in settings.edits:
        record = remember(
            work.folder / edit.name,
            {**asked, **dataclasses.asdict(edit)},
            partial(_edited, edit, settings, work, work.folder / f"{edit.name}-{model}", judges),
        )
        rows += [
            Row(edit, way, numbers, record.arrays[way]) for way, numbers in record.numbers["ways"].items()
        ]
    return rows


def _edited(
    edit: Edit,
    settings: Settings,
    work: Work,
    folder: Path,
    judges: Callable[[], Gallery],
) -> Record:
    """Perform one edit in every way: numbers and images of each; objects are kept in `folder`."""

    def made(way: str, prompt: str, **given: Any) -> Views:
        work.report(f"{edit.name}: {prompt}, {LABELS[way]}")
        gaussians, _ = make_object(
            prompt,
            seed=settings.seed,
            folder=folder / way,
            preset=settings.preset,
            model=work.model,
            overrides=way_overrides(settings, way),
            **given,
        )
        return object_views(gaussians, likeness_cameras())

    source = made(SOURCE, edit.source)
    start = object_folder(
        edit.source,
        seed=settings.seed,
        folder=folder / SOURCE,
        preset=settings.preset,
        overrides=way_overrides(settings, SOURCE),
    )
    views = {SOURCE: source}
    for way in settings.ways:
        edit_from = None if way == RESTYLED else edit.source
        views[way] = made(way, edit.target, start=start / "object.ply", edit_from=edit_from)
    numbers: dict[str, dict[str, float | None]] = {
        way: dict(measure_kept(seen, source)) for way, seen in views.items()
    }
    if settings.has_truth:
        truths = see_truths([edit.source, edit.target])
        views[TRUTH] = truths[edit.target]
        numbers[TRUTH] = dict(measure_kept(views[TRUTH], source))
        gallery = judges()
        for way, seen in views.items():
            numbers[way] |= _of_truth(edit, seen, source, truths, gallery)
    return Record({"ways": numbers}, {way: to_uint8(seen.pictures) for way, seen in views.items()})


def _of_truth(
    edit: Edit, seen: Views, source: Views, truths: Mapping[str, Views], gallery: Gallery
) -> dict[str, float | None]:
    """The metrics that need the truth."""
    pictures = to_uint8(seen.pictures).astype(np.float32) / 255.0
    target = truths[edit.target]
    return {
        **measure_reached(seen, source, target, truths[edit.source]),
        "recognized": measure_object(gallery, edit.target, pictures)["right_kind_and_color"],
        **measure_truth(seen, target),
    }


def rows_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Convert the rows for a file."""
    return [
        {
            "edit": row.edit.name,
            "source": row.edit.source,
            "target": row.edit.target,
            "way": row.way,
            **row.numbers,
        }
        for row in rows
    ]


def tables(rows: Sequence[Row]) -> str:
    """A Markdown table for each edit; columns without a value are left out."""
    shown = [name for name in _COLUMNS if any(row.numbers.get(name) is not None for row in rows)]
    parts = []
    for edit in dict.fromkeys(row.edit for row in rows):
        lines = [
            {
                edit.name: LABELS[row.way],
                **{
                    label: number_cell(row.numbers.get(name), digits)
                    for name, (label, digits) in _COLUMNS.items()
                    if name in shown
                },
            }
            for row in rows
            if row.edit == edit
        ]
        parts.append(f'From "{edit.source}" to "{edit.target}":\n\n{markdown_table(lines)}')
    return "\n".join(parts)


def pictures(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Edit name → image with a row of eight sides for the source, each way, and the truth."""
    sheets = {}
    for edit in dict.fromkeys(row.edit for row in rows):
        own = [row for row in rows if row.edit == edit]
        images = [picture for row in own for picture in row.pictures]
        count = len(own[0].pictures)
        labels = [
            f"{360 * side // count}°" if side else LABELS[row.way] for row in own for side in range(count)
        ]
        sheets[edit.name] = image_grid(images, labels, columns=count)
    return sheets


def make(work: Work) -> Made:
    """Make the figure."""
    rows = edited_rows(SIZES[work.size], work, load_gallery)
    return Made(rows_of(rows), tables(rows), pictures(rows))


FIGURE = Figure(
    title="Objects edited by a sentence",
    source="Beyond the paper: its future work, more advanced editing inside the loop",
    expected=(
        "With each iteration compared with the views of the untouched source, the shape and whatever the "
        "edit does not name stay closer to the source than with restyling, and the target is still "
        "reached. Direct inversion and NPI, which ask about views that have already been edited, never "
        "come to an end and break the shape."
    ),
    seconds={"small": 120.0, "full": 2100.0},
    make=make,
)
