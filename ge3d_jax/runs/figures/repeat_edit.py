"""Figure 2: one image edited repeatedly, each time all the way to a loss's target."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ge3d_jax.core.settings import to_tree
from ge3d_jax.core.tables import counted, markdown_table, number_cell
from ge3d_jax.metrics.bootstrap import mean_and_error
from ge3d_jax.metrics.recognition import Gallery, load_gallery
from ge3d_jax.runs.asked import bundled_model, model_by_preset
from ge3d_jax.runs.figures.base import Figure, Made, Record, Work, remember
from ge3d_jax.runs.figures.repeated_edits import (
    Pictures,
    Settings,
    Task,
    draw_pictures,
    edit_and_measure,
    ways,
)
from ge3d_jax.runs.folder import slug
from ge3d_jax.runs.made_objects import model_fingerprint
from ge3d_jax.runs.request import check_prompt, knows_overhead
from ge3d_jax.training.presets import preset
from ge3d_jax.viewer.plot import Line, Panel, check_plotting, draw_plot
from ge3d_jax.viewer.sheet import enlarge, image_grid, to_uint8

_SHOWN_EDGE = 128
# Measures and their names in tables; each is a mean over the images.
MEASURES: Mapping[str, str] = {
    "psnr": "PSNR to the truth, dB",
    "recognized": "recognized",
    "saturation": "saturation, of the truth's",
    "contrast": "contrast, of the truth's",
}


_TASKS = (
    Task("a red mushroom", "a blue mushroom", 30.0),
    Task("a yellow duck", "a green duck", 30.0),
    Task("a blue robot", "a blue house", 30.0),
    Task("a green house", "a red car", -30.0),
    Task("a pink pig", "a purple pig", -45.0),
    Task("a white cat", "an orange cat", 45.0),
    Task("a cyan rocket", "a cyan tree", 0.0),
    Task("a purple gift", "a yellow cupcake", 20.0),
)
SIZES: Mapping[str, Settings] = {
    "small": Settings(preset="toybox64", tasks=_TASKS[:4], seeds=(0,)),
    "full": Settings(preset="toybox", tasks=_TASKS, seeds=(0, 1, 2, 3), node_counts=(1, 3, 5, 10)),
    "paper": Settings(
        preset="paper",
        tasks=(
            Task("a photo of a wooden chair", "a photo of a golden chair"),
            Task("a photo of a cat", "a photo of a lion"),
            Task("a photo of a radio", "A vintage radio, wooden case, retro design, 8K, HDR"),
        ),
        seeds=(0, 1, 2, 3),
        node_counts=(1, 6),
        farthest=(480, 300),
    ),
}


def mean_rows(name: str, records: Sequence[Record], tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """A row for each number of edits: means over images and seeds, and standard errors over images."""
    measures = list(records[0].numbers)
    rows = []
    for edits in range(len(records[0].numbers[measures[0]])):
        row: dict[str, Any] = {"way": name, "edits": edits}
        for measure in measures:
            by_picture = {
                f"{task.source}, {task.target}": [record.numbers[measure][edits][index] for record in records]
                for index, task in enumerate(tasks)
            }
            mean, error = mean_and_error(by_picture)
            row |= {measure: mean, f"{measure}_error": error}
        rows.append(row)
    return rows


def _cell(row: Mapping[str, Any], measure: str) -> str:
    mean, error = row[measure], row[f"{measure}_error"]
    return number_cell(mean, 1 if measure == "psnr" else 2, error)


def table(rows: Sequence[Mapping[str, Any]], shown: Sequence[int]) -> str:
    """A Markdown table of the ways after the first and the last of the shown numbers of edits."""
    labels = _labels(rows)

    def line(name: str, row: Mapping[str, Any]) -> dict[str, str]:
        return {"way": name} | {label: _cell(row, measure) for measure, label in labels.items()}

    lines = [line("the picture as it was", rows[0])]
    for edits in (shown[0], shown[-1]):
        lines += [
            line(f"{row['way']}, after {counted(edits, 'edit')}", row)
            for row in rows
            if row["edits"] == edits
        ]
    return markdown_table(lines)


def _labels(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Names of the available measures; if no truth is known, ratios are relative to the sources."""
    labels = {measure: label for measure, label in MEASURES.items() if measure in rows[0]}
    if "psnr" in labels:
        return labels
    return {measure: label.replace("the truth's", "the source's") for measure, label in labels.items()}


def sheet(pictures: Pictures, records: Mapping[str, Record], settings: Settings) -> np.ndarray:
    """Draw the first image: a row for each way, a column for each of the shown numbers of edits."""
    source = to_uint8(pictures.sources[0])
    truth = None if pictures.truths is None else to_uint8(pictures.truths[0])
    shown, labels = [], []
    for name, record in records.items():
        shown += [source, *record.arrays["pictures"][:, 0]]
        labels.append(name)
        for edits in settings.shown:
            decibels = record.numbers["psnr"][edits][0] if "psnr" in record.numbers else None
            quality = "" if decibels is None else f", {decibels:.1f} dB"
            labels.append(counted(edits, "edit") + quality)
        if truth is not None:
            shown.append(truth)
            labels.append("truth")
    columns = len(shown) // len(records)
    return image_grid([enlarge(one, minimum=_SHOWN_EDGE) for one in shown], labels, columns=columns)


def curves(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Plot every measure against the number of edits."""
    names = list(dict.fromkeys(row["way"] for row in rows))
    panels = []
    for measure, label in _labels(rows).items():
        lines = []
        for name in names:
            own = [row for row in rows if row["way"] == name]
            errors = [row[f"{measure}_error"] for row in own]
            lines.append(
                Line(
                    name,
                    [row["edits"] for row in own],
                    [row[measure] for row in own],
                    () if None in errors else errors,
                )
            )
        level = None if measure == "psnr" else 1.0
        panels.append(Panel(label, "edits", "", lines, level))
    return draw_plot(panels, columns=2)


def make(work: Work) -> Made:
    """Make the figure."""
    return make_of(SIZES[work.size], work)


def make_of(settings: Settings, work: Work, *, gallery: Gallery | None = None) -> Made:
    """Make the figure with any settings.

    Args:
        settings: settings of the figure.
        work: where results are kept; its size is ignored.
        gallery: the gallery for recognizing images; None for the one of `load_gallery`.

    Raises:
        UserError: the model does not know a prompt; see also `ModelChoice`.
    """
    check_plotting()
    choice = model_by_preset(settings.preset, work.model)
    place = choice.check()
    for task in settings.tasks:
        check_prompt(task.source, place)
        check_prompt(task.target, place)
    is_toybox = bundled_model(settings.preset) is not None
    model = choice.load(place)
    pictures = draw_pictures(model, settings, use_overhead=knows_overhead(place), is_toybox=is_toybox)
    if is_toybox and gallery is None:
        gallery = load_gallery()
    fingerprint = model_fingerprint(place)
    records: dict[str, list[Record]] = {}
    for way in ways(settings):
        for seed in settings.seeds:
            asked = {
                "tasks": [dataclasses.asdict(task) for task in settings.tasks],
                "edits": settings.edits,
                "shown": settings.shown,
                # Affects the sources if the model draws them.
                "scale": settings.scale,
                "negative_prompt": preset(settings.preset).prompts.negative_prompt,
                "loss": to_tree(way.loss),
                "steps": way.steps,
                "seed": seed,
                "model": fingerprint,
            }
            work.report(f"{way.name}, seed {seed}: {counted(settings.edits, 'edit')}")
            record = remember(
                work.folder / f"{slug(way.name)}-{seed}",
                asked,
                partial(edit_and_measure, model, pictures, way, settings, seed=seed, gallery=gallery),
            )
            records.setdefault(way.name, []).append(record)
    rows = [row for name, own in records.items() for row in mean_rows(name, own, settings.tasks)]
    return Made(
        rows=rows,
        text=table(rows, settings.shown),
        pictures={
            "": sheet(pictures, {name: own[0] for name, own in records.items()}, settings),
            "curves": curves(rows),
        },
    )


FIGURE = Figure(
    title="One picture edited again and again",
    source="Figure 2",
    expected="SDS oversaturates the colors, at once with its own scale and soon with 7.5, and so does GE3D "
    "with a single node. With several nodes, the picture stays near the true edit however often it is "
    "edited.",
    seconds={"small": 60, "full": 900},
    make=make,
)
