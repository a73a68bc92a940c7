"""Reports on the results of `runs.evaluate`: confusion matrices and sheets as images, numbers as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ge3d_jax.metrics.recognition import AZIMUTHS, POLAR_DEGREES
from ge3d_jax.runs.evaluate import VIEWS, WHITE
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.toybox.model.recipe import SAMPLING_GUIDANCE, SAMPLING_STEPS
from ge3d_jax.toybox.world.captions import parse
from ge3d_jax.toybox.world.objects import COLORS, KINDS
from ge3d_jax.toybox.world.render import RADIUS
from ge3d_jax.viewer.sheet import enlarge, image_grid, to_uint8
from ge3d_jax.viewer.turntable import Viewpoint, render_around

# The measurements of `runs.evaluate`, by part.
Reports = Mapping[str, Mapping[str, Any]]
COMMAND = "python experiments/evaluate_toybox.py"
# Lower bounds to reach.
_WANTED = {"recognizer": 0.99, "model": 0.98, "objects": 0.99, "front": 0.95}
# Bounds for the objects: upper bounds for specks and Chamfer, lower bounds for the others.
_WANTED_LIKENESS = {"psnr": 22.0, "overlap": 0.92, "sharpness": 0.5, "chamfer": 0.03, "specks": 0.01}

_SHOWN_SIZE = 128
_SIDE_STRIDE = VIEWS // 4
_OBJECTS_PER_ROW = 2

_LIKENESS_NAMES = ("PSNR", "overlap", "sharpness", "tint", "Chamfer", "specks")

_CELL = 26
_TEXT_SIZE = 12
_MARGIN = 92
_PAPER, _INK, _FAINT = (255, 255, 255), (40, 40, 40), (225, 225, 225)
_RIGHT, _WRONG = np.asarray((70, 130, 180)), np.asarray((200, 60, 50))


def draw_confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> np.ndarray:
    """Draw a confusion matrix.

    A cell's shade shows its fraction of the row; correct classes are blue, wrong ones red.

    Args:
        matrix: (N, N) counts; rows are the truth, columns the recognized class.
        names: names of the N classes.

    Returns:
        The image, uint8 (H, W, 3).
    """
    counts = np.asarray(matrix)
    side = _MARGIN + _CELL * len(names) + 8
    image = Image.new("RGB", (side, side), _PAPER)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=_TEXT_SIZE)
    for index, name in enumerate(names):
        middle = _MARGIN + _CELL * (index + 0.5)
        draw.text((_MARGIN - 6, middle), name, fill=_INK, font=font, anchor="rm")
        strip = Image.new("RGB", (_MARGIN - 6, _CELL), _PAPER)
        ImageDraw.Draw(strip).text((2, _CELL / 2), name, fill=_INK, font=font, anchor="lm")
        image.paste(strip.rotate(90, expand=True), (_MARGIN + _CELL * index, 0))
    for row, column in np.ndindex(*counts.shape):
        left, top = _MARGIN + _CELL * column, _MARGIN + _CELL * row
        share = counts[row, column] / max(counts[row].sum(), 1)
        # The square root keeps a single error visible.
        paint = np.asarray(_PAPER) + np.sqrt(share) * (
            (_RIGHT if row == column else _WRONG) - np.asarray(_PAPER)
        )
        fill = tuple(int(value) for value in paint)
        draw.rectangle((left, top, left + _CELL, top + _CELL), fill=fill, outline=_FAINT)
        if counts[row, column]:
            ink = _PAPER if share > 0.3 else _INK
            center = (left + _CELL / 2, top + _CELL / 2)
            draw.text(center, str(counts[row, column]), fill=ink, font=font, anchor="mm")
    return np.asarray(image)


def sample_sheet(figures: Mapping[str, Any], pictures: np.ndarray) -> np.ndarray:
    """A sheet of all samples of `measure_model`, with a row for each kind; labels mark misrecognized ones."""
    labels = []
    for sample in figures["samples"]:
        sentence = parse(sample["prompt"])
        is_right = sample["right_kind"] and sample["right_color"]
        found = f"seen as {sample['named_color']} {sample['named_kind']}"
        labels.append(f"{sentence.color} {sentence.kind}" if is_right else found)
    shown = [enlarge(picture, minimum=_SHOWN_SIZE) for picture in to_uint8(pictures)]
    return image_grid(shown, labels, columns=len(COLORS))


def object_sides(gaussians: Gaussians, size: int = _SHOWN_SIZE) -> np.ndarray:
    """Render the front, left, back, and right of an object on white, uint8 (4, size, size, 3)."""
    azimuths = np.arange(4) * (np.pi / 2)
    return render_around(gaussians, azimuths, viewpoint=Viewpoint(size=size), background=WHITE)


def object_sheet(objects: Sequence[Mapping[str, Any]], sides: Sequence[np.ndarray]) -> np.ndarray:
    """A sheet of four sides of every object (`object_sides`), two per row; labels mark misrecognized ones."""
    labels = []
    for one in objects:
        sentence = parse(one["prompt"])
        for view in one["views"][::_SIDE_STRIDE]:
            degrees = view["azimuth_degrees"]
            is_right = (view["named_kind"], view["named_color"]) == (sentence.kind, sentence.color)
            if degrees == 0:
                label = one["prompt"] if is_right else f"{one['prompt']} (wrong)"
            else:
                label = (
                    f"{degrees}°" if is_right else f"{degrees}°: {view['named_color']} {view['named_kind']}"
                )
            labels.append(label)
    return image_grid(list(np.concatenate(sides)), labels, columns=4 * _OBJECTS_PER_ROW)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def _likeness_cells(numbers: Mapping[str, float | None]) -> list[str]:
    """Format the numbers of `metrics.likeness` as table cells, with a dash for missing ones."""

    def cell(name: str, text: str, factor: float = 1.0) -> str:
        value = numbers.get(name)
        return "–" if value is None else text.format(factor * value)

    return [
        cell("psnr", "{:.1f} dB"),
        cell("overlap", "{:.2f}"),
        cell("sharpness", "{:.2f}"),
        cell("tint", "{:.1f}%", 100.0),
        cell("chamfer", "{:.1f}%", 100.0),
        cell("specks", "{:.1f}%", 100.0),
    ]


def _likeness_section(reports: Reports, beside: Mapping[str, Reports]) -> list[str]:
    rows = {"model": "the samples", "objects": "the objects"}
    shown = [(name, reports[part]) for part, name in rows.items() if part in reports]
    for preset, others in beside.items():
        shown += [(f"{name} of `{preset}`", others[part]) for part, name in rows.items() if part in others]
    lines = [
        "## How close to the truth",
        "",
        "Samples are compared with the nearest ground-truth picture of their size; objects with the true "
        f"views from the same {VIEWS} cameras, on white at 128 pixels. PSNR: mean over pictures. Overlap: "
        "intersection over union of the silhouettes. Sharpness: squared differences of neighboring pixels, "
        "over the truth's. Tint: chroma where the truth is white, gray, or black. Chamfer: distance between "
        "the visible surfaces, over the object's size. Specks: share of the opacity that lies more than 5% "
        "of that size outside the true surface.",
        "",
        f"| what | {' | '.join(_LIKENESS_NAMES)} |",
        f"|---{'|---' * len(_LIKENESS_NAMES)}|",
    ]
    rows_of = [(name, figures["likeness"]) for name, figures in shown]
    if "objects" in reports:
        rows_of.append(("goal for the objects", _WANTED_LIKENESS))
    return lines + [f"| {' | '.join([name, *_likeness_cells(numbers)])} |" for name, numbers in rows_of]


def _summary(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [
        "| what | correct kind | correct color | both | goal |",
        "|---|---|---|---|---|",
    ]
    names = {
        "recognizer": "recognizer, on {pictures} ground-truth pictures",
        "model": "model, {pictures} samples",
        "objects": "objects, 8 views of each of {objects}",
    }
    for part, name in names.items():
        if part in reports:
            figures = reports[part]
            shares = [_percent(figures[key]) for key in ("right_kind", "right_color", "right_kind_and_color")]
            shares[-1] = f"**{shares[-1]}**"
            cells = [name.format(**figures), *shares, f"≥ {100 * _WANTED[part]:.0f}%"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _recognizer_section(figures: Mapping[str, Any]) -> list[str]:
    off = figures["azimuth_error_degrees"]
    turned = ", ".join(
        f"{one['prompt']} at {one['azimuth_degrees']}° ({one['named_azimuth_degrees']}°)"
        for one in figures["turned"]
    )
    polars = ", ".join(f"{degrees:g}°" for degrees in POLAR_DEGREES)
    return [
        "## The recognizer",
        "",
        "A picture is recognized as the nearest ground-truth picture in squared RGB error: "
        f"{len(KINDS)} kinds × {len(COLORS)} colors × {AZIMUTHS * len(POLAR_DEGREES)} cameras (every "
        f"{360 / AZIMUTHS:.0f}° around, {polars} from the vertical, {RADIUS:g} away), painted over "
        "the picture's background. Here it is tested on ground truth from random cameras off that grid: "
        f"{figures['cameras_per_kind_and_color']} for every kind and color, on white.",
        "",
        f"For the {off['pictures']} correctly recognized pictures of kinds with a front, the azimuth error "
        f"has a median of {off['median']:.1f}°, a 95th percentile of {off['percentile_95']:.1f}°, and a "
        f"maximum of {off['largest']:.0f}°. Mistaken for another side (an error above 45°): "
        f"{turned or 'none'}. Whether the camera is within 45° of the front is decided correctly for "
        f"{_percent(figures['right_front_decision'])}; the others are close to the limit or mistaken for "
        "another side.",
        "",
        "Rows are the truth, columns the recognized class:",
        "",
        "![confusion of kinds](confusion_kinds.png) ![confusion of colors](confusion_colors.png)",
    ]


def _model_section(figures: Mapping[str, Any]) -> list[str]:
    wrong = [row for row in figures["samples"] if not (row["right_kind"] and row["right_color"])]
    lines = [
        "## The model",
        "",
        f"One sample of {SAMPLING_STEPS} steps at guidance {SAMPLING_GUIDANCE:g} for every kind in every "
        f"color (seed {figures['seed']}), recognized over the background color at its edge.",
        "",
    ]
    if wrong:
        found = "; ".join(f"{row['prompt']} as {row['named_color']} {row['named_kind']}" for row in wrong)
        lines += [f"Misrecognized: {found}.", ""]
    return [*lines, "![all samples](samples.png)"]


def _objects_section(figures: Mapping[str, Any]) -> list[str]:
    lines = [
        "## The objects",
        "",
        f"{figures['objects']} prompts, one object each, made with the preset `{figures['preset']}` and the "
        f"loss `{figures['guidance']}` (seeds from {figures['seed']}), seen on white from 8 azimuths, 70° "
        "from the vertical.",
        "",
        f"A front on exactly one side, the one toward +x: **{_percent(figures['one_front'])}** of the "
        f"{figures['objects_with_front']} objects of kinds with a front (goal: ≥ "
        f"{100 * _WANTED['front']:.0f}%). Several fronts: **{_percent(figures['multi_faced'])}**. A side "
        "shows a front if the nearest ground truth is a kind with a front, seen from within 45° of +x.",
        "",
        f"An object takes {figures['mean_seconds']:.0f} s on average, including compilation, on "
        f"{figures['machine']}.",
    ]
    if figures["overrides"]:
        changed = ", ".join(f"`{name}={value}`" for name, value in figures["overrides"].items())
        lines += ["", f"Settings changed from the preset: {changed}."]
    columns = ["prompt", "correct kind and color", "one front", "fronts at", *_LIKENESS_NAMES, "seconds"]
    lines += [
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
    ]
    for one in figures["list"]:
        front = {None: "–", True: "yes", False: "no"}[one["one_front"]]
        places = ", ".join(f"{degrees}°" for degrees in one["fronts_at_degrees"]) or "–"
        right = _percent(one["right_kind_and_color"])
        likeness, seconds = _likeness_cells(one["likeness"]), f"{one['seconds']:.0f}"
        cells = [one["prompt"], right, front, places, *likeness, seconds]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", "![all objects](objects.png)"]


def markdown(reports: Reports, beside: Mapping[str, Reports] | None = None) -> str:
    """The page of all results, in Markdown.

    Args:
        reports: the reports of the parts "recognizer", "model", and "objects", as far as available.
        beside: the same for other presets, by name, to include in the table of likeness.
    """
    sections = {"recognizer": _recognizer_section, "model": _model_section, "objects": _objects_section}
    lines = [
        "# How good the bundled world is",
        "",
        f"Measured by `{COMMAND}`, which wrote this page.",
        "",
        *_summary(reports),
    ]
    if reports.keys() & {"model", "objects"}:
        lines += ["", *_likeness_section(reports, beside or {})]
    for part, section in sections.items():
        if part in reports:
            lines += ["", *section(reports[part])]
    return "\n".join(lines) + "\n"
