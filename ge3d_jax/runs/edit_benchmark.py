"""Benchmark of image-editing methods: preservation of the rest, progress to the target, error to the truth.

Symbols: P images in a batch. "The rest" of an image is where its edit should change nothing.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import atomic_path
from ge3d_jax.core.settings import to_tree
from ge3d_jax.diffusion.denoiser import Denoiser
from ge3d_jax.diffusion.pipeline import StableDiffusion, compiled_decode, decode_latents, encode_images
from ge3d_jax.editing.base import Method, edit_times
from ge3d_jax.metrics.edits import masked_mse, masked_psnr, masked_ssim
from ge3d_jax.metrics.lpips import LpipsDistance
from ge3d_jax.metrics.pictures import LOUDEST
from ge3d_jax.metrics.recognition import Gallery, estimate_background, recognize
from ge3d_jax.runs.edit_by_method import make_task
from ge3d_jax.runs.edit_cases import Case
from ge3d_jax.runs.folder import prepare_folder, slug, write_json
from ge3d_jax.toybox.world.objects import COLORS
from ge3d_jax.viewer.sheet import enlarge, image_grid, save_png, to_uint8

# Edits P cases to images (P, H, W, 3) in [0, 1]; the second argument is the index of the batch.
Editor = Callable[[Sequence[Case], int], np.ndarray]
# Numbers of one edited image; None if unknown.
Row = dict[str, float | None]
# Computes a row for each case from the edited images, uint8 (N, H, W, 3).
Measure = Callable[[Sequence[Case], np.ndarray], list[Row]]
# Rows of one method: name, kind, and numbers of each case.
Rows = list[dict[str, Any]]

# The numbers, and their names in tables.
COLUMNS: Mapping[str, str] = {
    "kept_psnr": "rest, PSNR",
    "kept_ssim": "rest, SSIM",
    "kept_lpips": "rest, LPIPS",
    "recognized": "recognized",
    "reached": "reached",
    "way_left": "way left",
    "truth_psnr": "truth, PSNR",
    "clip": "CLIP",
    "clip_edited": "CLIP, edited part",
    "seconds": "seconds",
    "compiling": "compiling",
}
_SHARES = ("recognized", "reached", "way_left")
_DECIMALS = {
    "kept_psnr": 1,
    "truth_psnr": 1,
    "kept_ssim": 3,
    "kept_lpips": 3,
    "clip": 2,
    "clip_edited": 2,
    "seconds": 1,
    "compiling": 0,
}
_SHOWN_EDGE = 128


def editor_of(method: Method, model: StableDiffusion, seed: int) -> Editor:
    """The editor that applies a method to a model; each batch has its own noise.

    Args:
        method: the method with its settings.
        model: the model.
        seed: random seed for methods that draw noise.
    """
    edit_times(model.schedule.steps, method.steps, method.first_time)

    def edit(cases: Sequence[Case], batch: int) -> np.ndarray:
        # All cases of a batch are of the same sort; see `_batches`.
        blends = [(case.blend, ()) for case in cases] if cases[0].blend and method.blends else None
        task = make_task(
            model,
            jnp.stack([jnp.asarray(case.picture, jnp.float32) / 255.0 for case in cases]),
            [case.prompts for case in cases],
            steps=method.steps,
            edits=[case.words for case in cases] if method.controls_attention else None,
            blends=blends,
        )
        key = jax.random.fold_in(jax.random.key(seed), batch)
        edited = method(task, Denoiser(model, model.schedule, len(cases)), key)
        return np.asarray(compiled_decode(model, edited.latents))

    return edit


@jax.jit
def _encode_and_decode(model: StableDiffusion, pictures: jax.Array) -> jax.Array:
    return decode_latents(model, encode_images(model, pictures, None))


def bounds(model: StableDiffusion) -> dict[str, Editor]:
    """Upper bounds for the methods, as editors: source images and true edits, only encoded and decoded."""

    def source(cases: Sequence[Case], batch: int) -> np.ndarray:
        pictures = np.stack([case.picture for case in cases])
        return np.asarray(_encode_and_decode(model, jnp.asarray(pictures, jnp.float32) / 255.0))

    def truth(cases: Sequence[Case], batch: int) -> np.ndarray:
        pictures = np.stack([case.picture if case.truth is None else case.truth for case in cases])
        return np.asarray(_encode_and_decode(model, jnp.asarray(pictures, jnp.float32) / 255.0))

    return {"(nothing)": source, "(the truth)": truth}


def measure(case: Case, edited: np.ndarray) -> Row:
    """Compute the numbers of one edited image that need no network.

    Args:
        case: the case.
        edited: the edited image, uint8 (H, W, 3).

    Returns:
        kept_psnr, kept_ssim: the rest compared with the source, PIE-Bench's way, black elsewhere.
        truth_psnr: compared with the truth. way_left: RMS distance to the truth relative to the source's,
        where source and truth differ; 0 means reached, 1 no progress. reached: 1 if closer to the truth than
        to the source there.
    """
    source, made = (picture.astype(np.float64) / 255.0 for picture in (case.picture, edited))
    row: Row = {
        "kept_psnr": min(masked_psnr(source, made, case.kept), LOUDEST),
        "kept_ssim": masked_ssim(source, made, case.kept),
    }
    if case.truth is not None:
        truth, changed = case.truth.astype(np.float64) / 255.0, ~case.kept
        to_truth, to_source = (masked_mse(other, made, changed) for other in (truth, source))
        row["truth_psnr"] = min(masked_psnr(truth, made), LOUDEST)
        row["way_left"] = math.sqrt(to_truth / masked_mse(source, truth, changed))
        row["reached"] = float(to_truth < to_source)
    return row


def measure_recognized(gallery: Gallery, cases: Sequence[Case], edited: np.ndarray) -> list[Row]:
    """Check whether each edited image is recognized as the target's kind and color.

    Args:
        gallery: the gallery of the Toybox world.
        cases: cases with targets.
        edited: the edited images, uint8 (N, H, W, 3).
    """
    pictures = edited.astype(np.float32) / 255.0
    found = recognize(gallery, pictures, estimate_background(pictures))
    colors = list(COLORS)
    return [
        {"recognized": float((gallery.kinds[kind], colors[color]) == (case.target.kind, case.target.color))}
        for case, kind, color in zip(cases, found.kinds, found.colors, strict=True)
        if case.target is not None
    ]


def measure_kept_lpips(distance: LpipsDistance, cases: Sequence[Case], edited: np.ndarray) -> list[Row]:
    """Compare the rest with the source by LPIPS, both black elsewhere, as PIE-Bench does.

    PIE-Bench's own numbers are by SqueezeNet, not by VGG16: compare only methods.

    Args:
        distance: from `lpips.load_lpips`.
        cases: the cases.
        edited: the edited images, uint8 (N, H, W, 3).
    """
    kept = np.stack([case.kept[..., None] for case in cases]) / 255.0
    sources = np.stack([case.picture for case in cases])
    return [{"kept_lpips": float(value)} for value in distance(sources * kept, edited * kept)]


def _batches(cases: Sequence[Case], size: int) -> list[list[int]]:
    """Split case indices into batches, with or without blended words; the last batch of each may be short."""
    batches = []
    for blended in (False, True):
        own = [index for index, case in enumerate(cases) if bool(case.blend) == blended]
        batches += [own[first : first + size] for first in range(0, len(own), size)]
    return batches


def run_editor(
    editor: Editor, cases: Sequence[Case], batch: int, report: Callable[[str], None]
) -> tuple[np.ndarray, list[float]]:
    """Edit all cases.

    Args:
        editor: the editor to run.
        cases: the cases to edit.
        batch: the batch size P; a short batch is padded with its last image, so that all batches share one
            program.
        report: called with progress messages.

    Returns:
        The edited images, uint8 (N, H, W, 3), and the seconds of each batch.

    Raises:
        UserError: the editor returned numbers that are not finite.
    """
    edited = np.zeros((len(cases), *cases[0].picture.shape), np.uint8)
    seconds: list[float] = []
    batches = _batches(cases, batch)
    for number, indices in enumerate(batches):
        filled = indices + indices[-1:] * (batch - len(indices))
        begun = time.monotonic()
        pictures = editor([cases[index] for index in filled], number)
        seconds.append(time.monotonic() - begun)
        if not np.isfinite(pictures).all():
            raise UserError("Edited pictures have non-finite values; compute in float32, or lower the scale.")
        edited[indices] = to_uint8(pictures[: len(indices)])
        report(f"{sum(map(len, batches[: number + 1]))}/{len(cases)} pictures")
    return edited, seconds


def timings(seconds: Sequence[float], batch: int) -> Row:
    """Split the seconds of a method's batches into those of its work and those of compiling.

    Args:
        seconds: of each batch; the first one compiles as well.
        batch: batch size.

    Returns:
        seconds: per image, once compiled. compiling: by how much the first batch took longer. Both None if
        there is only one batch.
    """
    if len(seconds) < 2:
        return {"seconds": None, "compiling": None}
    warm = float(np.mean(seconds[1:]))
    return {"seconds": warm / batch, "compiling": max(0.0, seconds[0] - warm)}


def benchmark(
    cases: Sequence[Case],
    editors: Mapping[str, Callable[[], Editor]],
    settings: Mapping[str, Any],
    folder: Path,
    *,
    batch: int,
    measures: Sequence[Measure] = (),
    report: Callable[[str], None] = print,
) -> dict[str, Rows]:
    """Edit all cases with all methods and measure the results, reusing those already in `folder`.

    Args:
        cases: the cases to edit.
        editors: method name → factory of its editor, called only when needed.
        settings: method name → settings, to tell whether existing results were made with the same ones.
        folder: folder for the images and numbers of each method.
        batch: batch size.
        measures: compute numbers in addition to those of `measure`.
        report: called with progress messages.

    Returns:
        Method name → rows.
    """
    results = {}
    for name, make in editors.items():
        own = prepare_folder(folder / slug(name))
        wanted = _fingerprint(cases, settings.get(name), batch)
        file, pictures = own / "numbers.json", own / "edited.npz"
        stored = json.loads(file.read_text()) if file.is_file() and pictures.is_file() else {}
        if stored.get("made_with") != wanted:

            def say(text: str, name: str = name) -> None:
                report(f"{name}: {text}")

            edited, seconds = run_editor(make(), cases, batch, say)
            with atomic_path(pictures) as path:
                np.savez_compressed(path, edited=edited)
            stored = {"made_with": wanted, "batch": batch, "seconds_of_batches": seconds}
            write_json(file, stored)
        with np.load(pictures) as saved:
            edited = saved["edited"]
        rows: Rows = [
            {"name": case.name, "kind": case.kind, **measure(case, picture)}
            for case, picture in zip(cases, edited, strict=True)
        ]
        for each in measures:
            for row, extra in zip(rows, each(cases, edited), strict=True):
                row |= extra
        timed = timings(stored["seconds_of_batches"], stored["batch"])
        results[name] = [row | timed for row in rows]
    return results


def _fingerprint(cases: Sequence[Case], settings: Any, batch: int) -> str:
    digest = hashlib.sha256(json.dumps([settings, batch], sort_keys=True).encode())
    for case in cases:
        digest.update(json.dumps([case.prompts, case.blend, to_tree(case.words)], sort_keys=True).encode())
        digest.update(case.picture.tobytes())
    return digest.hexdigest()[:16]


def settings_of(method: Method, seed: int, weights: str) -> dict[str, Any]:
    """Everything that determines a method's images, apart from the cases."""
    return {"method": to_tree(method), "seed": seed, "weights": weights}


def mean_rows(rows: Rows, kind: str | None = None) -> dict[str, float | None]:
    """Means of the columns over all rows, or over those of one kind; None if no row has a value."""
    chosen = [row for row in rows if kind is None or row["kind"] == kind]
    means = {}
    for column in COLUMNS:
        values = [row[column] for row in chosen if row.get(column) is not None]
        means[column] = float(np.mean(values)) if values else None
    return means


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.0f} %" if column in _SHARES else f"{value:.{_DECIMALS[column]}f}"


def _table(head: str, columns: Sequence[str], lines: Mapping[str, Sequence[str]]) -> list[str]:
    rows = [f"| {name} | {' | '.join(cells)} |" for name, cells in lines.items()]
    return [f"| {head} | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}", *rows]


def tables(results: Mapping[str, Rows]) -> str:
    """Two Markdown tables: all columns for each method, and `way_left` for each kind of edit.

    If no truth is known, the second table shows the PSNR of the rest.
    """
    means = {name: mean_rows(rows) for name, rows in results.items()}
    columns = [column for column in COLUMNS if any(mean[column] is not None for mean in means.values())]
    first = {name: [_cell(column, mean[column]) for column in columns] for name, mean in means.items()}
    lines = _table("method", [COLUMNS[column] for column in columns], first)
    shown = "way_left" if "way_left" in columns else "kept_psnr"
    kinds = list(dict.fromkeys(row["kind"] for rows in results.values() for row in rows))
    second = {
        name: [_cell(shown, mean_rows(rows, kind)[shown]) for kind in kinds] for name, rows in results.items()
    }
    lines += ["", f"{COLUMNS[shown].capitalize()}, by kind of edit:", "", *_table("method", kinds, second)]
    return "\n".join(lines) + "\n"


def sheet(cases: Sequence[Case], pictures: Mapping[str, np.ndarray]) -> np.ndarray:
    """A sheet with a row for the first case of each kind: the source, the truth if known, and all methods.

    Args:
        cases: the cases.
        pictures: method name → edited images, uint8 (N, H, W, 3).
    """
    firsts = [
        next(i for i, case in enumerate(cases) if case.kind == kind)
        for kind in dict.fromkeys(case.kind for case in cases)
    ]
    shown: list[np.ndarray] = []
    labels: list[str] = []
    columns = 0
    for index in firsts:
        case = cases[index]
        row = {case.kind: case.picture}
        if case.truth is not None:
            row["truth"] = case.truth
        row |= {name: edited[index] for name, edited in pictures.items()}
        shown += [enlarge(picture, minimum=_SHOWN_EDGE) for picture in row.values()]
        labels += list(row)
        columns = len(row)
    return image_grid(shown, labels, columns=columns)


def save_benchmark(
    folder: Path, cases: Sequence[Case], results: Mapping[str, Rows], about: Mapping[str, Any]
) -> None:
    """Write results.json, README.md with the tables, and edits.png."""
    pictures = {}
    for name in results:
        with np.load(folder / slug(name) / "edited.npz") as saved:
            pictures[name] = saved["edited"]
    save_png(folder / "edits.png", sheet(cases, pictures))
    write_json(folder / "results.json", {**about, "methods": dict(results)})
    with atomic_path(folder / "README.md") as path:
        path.write_text(f"{about['title']}\n\n{tables(results)}\n![edits](edits.png)\n", encoding="utf-8")
