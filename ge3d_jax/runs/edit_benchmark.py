"""How well methods edit pictures: does the rest stay, is the target reached, and the truth where it is known?

Symbols: P pictures of a batch; the rest of a picture is where its edit changes nothing.
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
from ge3d_jax.diffusion.pipeline import StableDiffusion, decode_latents, encode_images
from ge3d_jax.editing.base import Method, edit_times
from ge3d_jax.metrics.edits import masked_mse, masked_psnr, masked_ssim
from ge3d_jax.metrics.pictures import LOUDEST
from ge3d_jax.metrics.recognition import Gallery, estimate_background, recognize
from ge3d_jax.runs.edit_by_method import make_task
from ge3d_jax.runs.edit_cases import Case
from ge3d_jax.runs.folder import prepare_folder, slug, write_json
from ge3d_jax.toybox.world.objects import COLORS
from ge3d_jax.viewer.sheet import enlarge, image_grid, save_png, to_uint8

# Makes pictures (P, H, W, 3) in [0, 1] of P cases; the second argument is the batch's number.
Editor = Callable[[Sequence[Case], int], np.ndarray]
# Numbers of one edited picture; None for what is not known of it.
Row = dict[str, float | None]
# Rows of one method: name, kind and numbers of each case.
Rows = list[dict[str, Any]]

# The numbers, and how a table names them.
COLUMNS: Mapping[str, str] = {
    "kept_psnr": "rest, PSNR",
    "kept_ssim": "rest, SSIM",
    "recognized": "recognized",
    "reached": "reached",
    "way_left": "way left",
    "truth_psnr": "truth, PSNR",
    "clip": "CLIP",
    "clip_edited": "CLIP, edited part",
    "seconds": "seconds",
}
_SHARES = ("recognized", "reached", "way_left")
_DECIMALS = {"kept_psnr": 1, "truth_psnr": 1, "kept_ssim": 3, "clip": 2, "clip_edited": 2, "seconds": 1}
_SHOWN_EDGE = 128


def editor_of(method: Method, model: StableDiffusion, seed: int) -> Editor:
    """A method on a model; batches have noise of their own.

    Args:
        method: with its settings.
        model: the model.
        seed: of the methods that draw noise.
    """
    edit_times(model.schedule.steps, method.steps, method.first_time)

    def edit(cases: Sequence[Case], batch: int) -> np.ndarray:
        # A batch is of one sort; see `_batches`.
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
        return np.asarray(_decode(model, edited.latents))

    return edit


_decode = jax.jit(decode_latents)


@jax.jit
def _encode_and_decode(model: StableDiffusion, pictures: jax.Array) -> jax.Array:
    return decode_latents(model, encode_images(model, pictures, None))


def bounds(model: StableDiffusion) -> dict[str, Editor]:
    """What methods cannot surpass: the pictures, and their true edits, through the autoencoder alone."""

    def source(cases: Sequence[Case], batch: int) -> np.ndarray:
        pictures = np.stack([case.picture for case in cases])
        return np.asarray(_encode_and_decode(model, jnp.asarray(pictures, jnp.float32) / 255.0))

    def truth(cases: Sequence[Case], batch: int) -> np.ndarray:
        pictures = np.stack([case.picture if case.truth is None else case.truth for case in cases])
        return np.asarray(_encode_and_decode(model, jnp.asarray(pictures, jnp.float32) / 255.0))

    return {"(nothing)": source, "(the truth)": truth}


def measure(case: Case, edited: np.ndarray) -> Row:
    """The numbers of one edited picture that need no network.

    Args:
        case: what was asked for.
        edited: uint8 (H, W, 3).

    Returns:
        kept_psnr, kept_ssim: the rest against the source, PIE-Bench's way, black elsewhere.
        truth_psnr: against the truth. way_left: RMS distance to the truth over that of the source, where they
        differ; 0 is there, 1 as far as before. reached: 1 if nearer to the truth than to the source there.
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
    """Whether each picture is recognized as the kind and color that it is to show.

    Args:
        gallery: of the Toybox world.
        cases: with targets.
        edited: uint8 (N, H, W, 3).
    """
    pictures = edited.astype(np.float32) / 255.0
    found = recognize(gallery, pictures, estimate_background(pictures))
    colors = list(COLORS)
    return [
        {"recognized": float((gallery.kinds[kind], colors[color]) == (case.target.kind, case.target.color))}
        for case, kind, color in zip(cases, found.kinds, found.colors, strict=True)
        if case.target is not None
    ]


def _batches(cases: Sequence[Case], size: int) -> list[list[int]]:
    """Indices of batches of one sort each, with blended words or without; the last of a sort may be short."""
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
        editor: what edits.
        cases: what.
        batch: P, pictures at a time; a short batch is filled up with its last picture, so that all are one
            program.
        report: is told how far it is.

    Returns:
        uint8 (N, H, W, 3), and seconds of each batch.

    Raises:
        UserError: numbers that are not finite.
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
            raise UserError("There are numbers that are not finite; compute in float32, or lower the scale.")
        edited[indices] = to_uint8(pictures[: len(indices)])
        report(f"{sum(map(len, batches[: number + 1]))}/{len(cases)} pictures")
    return edited, seconds


def warm_seconds(seconds: Sequence[float], batch: int) -> float | None:
    """Seconds for a picture once compiled: of all batches but the first; None where there is only that."""
    return float(np.mean(seconds[1:])) / batch if len(seconds) > 1 else None


def benchmark(
    cases: Sequence[Case],
    editors: Mapping[str, Callable[[], Editor]],
    settings: Mapping[str, Any],
    folder: Path,
    *,
    batch: int,
    measures: Callable[[Sequence[Case], np.ndarray], list[Row]] | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Rows]:
    """Edit all cases by all methods and measure; what `folder` holds already is not made again.

    Args:
        cases: what to edit.
        editors: each method by name, made when it is needed.
        settings: of each method, for telling whether what there is was made with them.
        folder: for the pictures and numbers of each method.
        batch: pictures at a time.
        measures: numbers beside those of `measure`, a row for each case; None for none.
        report: is told how far it is.

    Returns:
        rows of each method.
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
        more = measures(cases, edited) if measures is not None else [{} for _ in cases]
        warm = warm_seconds(stored["seconds_of_batches"], stored["batch"])
        results[name] = [
            {"name": case.name, "kind": case.kind, **measure(case, picture), **extra, "seconds": warm}
            for case, picture, extra in zip(cases, edited, more, strict=True)
        ]
    return results


def _fingerprint(cases: Sequence[Case], settings: Any, batch: int) -> str:
    digest = hashlib.sha256(json.dumps([settings, batch], sort_keys=True).encode())
    for case in cases:
        told = (case.prompts, case.blend, case.words.form, case.words.cross, case.words.self_attention)
        digest.update(json.dumps([told, dict(case.words.factors)]).encode())
        digest.update(case.picture.tobytes())
    return digest.hexdigest()[:16]


def settings_of(method: Method, seed: int, weights: str) -> dict[str, Any]:
    """What decides on a method's pictures beside the cases."""
    return {"method": to_tree(method), "seed": seed, "weights": weights}


def mean_rows(rows: Rows, kind: str | None = None) -> dict[str, float | None]:
    """Means of the columns over the rows, or those of a kind; None where no row has a number."""
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
    """Two tables in Markdown: all columns of each method, and how much of the way is left by kind of edit.

    Where no truth is known, the second is the rest's PSNR.
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
    """The first case of each kind in a row: the source, the truth where it is known, and all methods.

    Args:
        cases: the cases.
        pictures: uint8 (N, H, W, 3) of each method.
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
