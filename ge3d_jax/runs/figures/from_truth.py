"""Where does a loss come to rest that begins with the truth?

What an object lacks in the end may be what its run had no time for, or what the loss does not want. So splats
are fitted to true views of the object, and each loss goes on from there for as many iterations as it has when
it begins with nothing: what it takes away then, more time would not bring.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.ply import load_ply
from ge3d_jax.runs.asked import model_by_preset
from ge3d_jax.runs.evaluate import model_fingerprint
from ge3d_jax.runs.figures.base import Figure, Made, Record, Work, remember
from ge3d_jax.runs.figures.convergence import curves
from ge3d_jax.runs.figures.loss_series import SIDES, Done, Judges, Series, make_all, read_series
from ge3d_jax.runs.fit import fit_images
from ge3d_jax.runs.folder import slug
from ge3d_jax.runs.judged import see
from ge3d_jax.runs.judging import METRICS, judge_object
from ge3d_jax.runs.judging_table import table
from ge3d_jax.runs.trials import Trial
from ge3d_jax.toybox.world.captions import parse
from ge3d_jax.toybox.world.posed_images import write_posed_images
from ge3d_jax.training.presets import configured
from ge3d_jax.viewer.picture_table import picture_table
from ge3d_jax.viewer.plot import Panel, check_plotting, draw_plot
from ge3d_jax.viewer.sheet import to_uint8

_METRICS = ("psnr", "overlap", "chamfer", "sharpness", "saturation", "views_right")
_DRAWN = ("psnr", "overlap", "sharpness")
_FIT = "(the fit, where all begin)"
_SEED = 0


@dataclass(frozen=True)
class Settings:
    """What is made.

    Attributes:
        preset: what all settings begin with.
        losses: names.
        prompts: sentences of the Toybox world.
        shares: of a run, after which an object is judged, beside its end.
        budget: seconds that the iterations of an object may take; None for each loss's own number of them.
        fit_views, fit_size, fit_iterations: true views that splats are fitted to, pixels of their edge, and
            how long.
        fit_splats: how many there may be; no more than the preset's capacity.
        processes: how many work at a time, each on a processor core.
        overrides: settings to change, by dotted name.
    """

    preset: str
    losses: tuple[str, ...]
    prompts: tuple[str, ...]
    shares: tuple[float, ...]
    budget: float | None = None
    fit_views: int = 64
    fit_size: int = 128
    fit_iterations: int = 2000
    fit_splats: int = 6000
    processes: int = 2
    overrides: Mapping[str, str] = field(default_factory=dict)


SIZES: Mapping[str, Settings] = {
    "small": Settings(
        "toybox64",
        ("ge3d", "sds"),
        ("a yellow duck",),
        (0.2, 0.5),
        budget=10.0,
        fit_views=24,
        fit_iterations=400,
        fit_splats=1600,
    ),
    "full": Settings(
        "toybox",
        ("ge3d", "x0", "sds", "csd", "ism", "mvdream"),
        ("a green robot", "a pink house"),
        (0.05, 0.1, 0.2, 0.4, 0.6, 0.8),
    ),
}


def fit_truth(prompt: str, settings: Settings, work: Work) -> Path:
    """The file of splats that are fitted to true views of what the sentence describes.

    Raises:
        KeyboardInterrupt: the user stopped it; the fit goes on the next time.
    """
    folder = work.folder / "fits" / slug(prompt)
    overrides = {
        "iterations": settings.fit_iterations,
        "scene.capacity": settings.fit_splats,
        "start.count": settings.fit_splats // 2,
    }

    def fit() -> Record:
        work.report(f'fitting the truth of "{prompt}"')
        write_posed_images(
            folder / "images",
            parse(prompt),
            views=settings.fit_views,
            test_views=1,
            size=settings.fit_size,
            seed=_SEED,
        )
        result = fit_images(
            folder / "images",
            out=folder,
            density="mcmc",
            overrides=overrides,
            resume=True,
            progress=False,
        )
        if result.interrupted:
            raise KeyboardInterrupt
        return Record({"psnr": result.psnr})

    asked = {"views": settings.fit_views, "size": settings.fit_size, "settings": overrides}
    remember(work.folder / "fits" / f"{slug(prompt)}-done", asked, fit)
    return folder / "object.ply"


def series_of(settings: Settings, fits: Mapping[str, Path], work: Work) -> list[Series]:
    """The runs: of each loss from the fit of each prompt. Raises UserError for a loss that does not exist."""
    weights = model_fingerprint(model_by_preset(settings.preset, work.model).check())
    return [
        Series(
            trial=Trial(loss, {"start.kind": "splats", "start.file": str(fit), **settings.overrides}),
            preset=settings.preset,
            budget=settings.budget,
            prompts=(prompt,),
            seeds=(_SEED,),
            processes=settings.processes,
            folder=work.folder / "runs" / slug(prompt) / loss,
            model=work.model,
            weights=weights,
            shares=settings.shares,
        )
        for loss in settings.losses
        for prompt, fit in fits.items()
    ]


def rows_of(all_done: Sequence[Done], begun: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line for each object at each moment, the first one of which is its beginning.

    Args:
        all_done: the runs.
        begun: the numbers of each prompt's fit.
    """
    rows = []
    for done in all_done:
        for one in done.objects:
            last = one.moments[-1]["iterations"]
            first = {**begun[one.prompt], "iterations": 0, "seconds": 0.0}
            for moment, numbers in enumerate([first, *one.moments]):
                told = {"loss": done.series.trial.guidance, "prompt": one.prompt, "seed": one.seed}
                share = numbers["iterations"] / last
                rows.append({**told, "moment": moment, "share": share, **numbers})
    return rows


def ends_of(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of each object the line of its end; and before them those of where each prompt begins."""
    begins = {row["prompt"]: {**row, "loss": _FIT} for row in rows if row["moment"] == 0}
    return [*begins.values(), *(row for row in rows if row["share"] == 1.0)]


def draw_curves(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """A panel for each of some metrics, over the share of the run."""
    panels = [
        Panel("", "share of the run", METRICS[name].label, curves(rows, name, "share")) for name in _DRAWN
    ]
    return draw_plot(panels, columns=len(panels))


def draw_objects(all_done: Sequence[Done], fronts: Mapping[str, np.ndarray]) -> np.ndarray:
    """The fronts of all objects, a row each: its beginning, then all moments.

    Args:
        all_done: the runs.
        fronts: uint8 (H, W, 3), of each prompt's fit.
    """
    rows, names = [], []
    for done in all_done:
        for one in done.objects:
            rows.append([[fronts[one.prompt]], *([sides[0]] for sides in one.sides)])
            names.append(f"{done.series.trial.guidance}: {one.prompt}")
    headings = [f"{share:.0%}" for share in (0.0, *all_done[0].series.shares, 1.0)]
    longest = max(len(row) for row in rows)
    # Short runs come to several shares at once.
    padded = [[row[0], *([[None]] * (longest - len(row))), *row[1:]] for row in rows]
    return picture_table(padded, names, [headings[0], *headings[len(headings) - longest + 1 :]])


def make_of(settings: Settings, work: Work, judges: Judges | None = None) -> Made:
    """Fit the truths, go on from them, and tell what became of them.

    Args:
        settings: what is made.
        work: where it is kept.
        judges: what objects are judged by; None for those of the Toybox world.

    Raises:
        UserError: what cannot be, before anything runs; see `make_all` for more.
    """
    check_plotting()
    for prompt in settings.prompts:
        parse(prompt)
    for loss in settings.losses:
        configured(settings.preset, guidance=loss, overrides=settings.overrides)
    fits = {prompt: fit_truth(prompt, settings, work) for prompt in settings.prompts}
    all_series = series_of(settings, fits, work)
    for series in all_series:
        series.check()
    judges = judges or Judges.of(settings.prompts, work.report)
    make_all(all_series, judges, work.report)
    found = [read_series(series, judges) for series in all_series]
    all_done = [done for done in found if done is not None]
    assert judges.gallery is not None
    seen = {
        prompt: see(prompt, _SEED, load_ply(fit), truth=judges.truths[prompt]) for prompt, fit in fits.items()
    }
    begun = {prompt: judge_object(one, judges.gallery) for prompt, one in seen.items()}
    rows = rows_of(all_done, begun)
    fronts = {prompt: to_uint8(one.pictures[SIDES][0]) for prompt, one in seen.items()}
    pictures = {"": draw_curves(rows), "objects": draw_objects(all_done, fronts)}
    return Made(rows, table(ends_of(rows), "loss", metrics=_METRICS), pictures)


def make(work: Work) -> Made:
    """The figure. Raises UserError for the paper's scale, where nobody knows the truth."""
    if work.size not in SIZES:
        raise UserError(
            f"At size {work.size!r} there is no truth to begin with; give --size={' or '.join(SIZES)}."
        )
    return make_of(SIZES[work.size], work)


FIGURE = Figure(
    title="Where each loss comes to rest that begins with the truth",
    source="Beyond the paper: why a loss is not the best",
    expected=(
        "A loss whose wish is the truth stays there. What it takes away from it, neither time nor a better "
        "beginning can give."
    ),
    seconds={"small": 150.0, "full": 1500.0},
    make=make,
    is_timed=True,
)
