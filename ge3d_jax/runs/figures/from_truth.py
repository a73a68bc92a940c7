"""Where does a loss converge if it starts from the ground truth?

What an object lacks at the end of a run may be due to a lack of time or to the loss itself. To tell these
apart, splats are fitted to true views of the object, and each loss continues from there for as many
iterations as in a run from scratch: what it removes then, more time would not have added.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.ply import load_ply
from ge3d_jax.runs.asked import model_by_preset
from ge3d_jax.runs.figures.base import Figure, Made, Record, Work, remember
from ge3d_jax.runs.figures.convergence import curves
from ge3d_jax.runs.figures.loss_series import SIDES, Done, Judges, Series, make_all, read_series
from ge3d_jax.runs.fit import fit_images
from ge3d_jax.runs.folder import slug
from ge3d_jax.runs.judged import see
from ge3d_jax.runs.judging import METRICS, judge_object
from ge3d_jax.runs.judging_table import table
from ge3d_jax.runs.made_objects import model_fingerprint
from ge3d_jax.runs.trials import Trial
from ge3d_jax.toybox.world.captions import parse
from ge3d_jax.toybox.world.posed_images import write_posed_images
from ge3d_jax.training.presets import configured
from ge3d_jax.viewer.picture_table import picture_table
from ge3d_jax.viewer.plot import Panel, check_plotting, draw_plot
from ge3d_jax.viewer.sheet import to_uint8

_METRICS = ("psnr", "overlap", "chamfer", "sharpness", "saturation", "views_right")
_DRAWN = ("psnr", "overlap", "sharpness")
_FIT = "(the fit that all start from)"
_SEED = 0


@dataclass(frozen=True)
class Settings:
    """Settings of the figure.

    Attributes:
        preset: the preset that all settings are based on.
        losses: names of the losses.
        prompts: sentences of the Toybox world.
        shares: fractions of a run after which an object is judged, in addition to its end.
        budget: time limit for the iterations of an object, seconds; None for each loss's own number of
            iterations.
        fit_views, fit_size, fit_iterations: number of true views to fit splats to, their edge length in
            pixels, and the number of iterations of the fit.
        fit_splats: maximum number of splats, at most the preset's capacity.
        processes: number of parallel processes, each on one processor core.
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
        "toybox_ball",
        ("ge3d", "x0", "sds", "csd", "ism", "mvdream"),
        ("a green robot", "a pink house"),
        (0.05, 0.1, 0.2, 0.4, 0.6, 0.8),
    ),
}


def fit_truth(prompt: str, settings: Settings, work: Work) -> Path:
    """Fit splats to true views of what the prompt describes, and return their file.

    Raises:
        KeyboardInterrupt: the user stopped it; the fit continues the next time.
    """
    folder = work.folder / "fits" / slug(prompt)
    overrides = {
        "iterations": settings.fit_iterations,
        "scene.capacity": settings.fit_splats,
        "start.count": settings.fit_splats // 2,
        # As the runs that continue from it, with a color that is the same from all sides.
        "start.sh_degree": 0,
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
    """The runs of each loss from the fit of each prompt. Raises UserError if a loss does not exist."""
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
    """A row for each object at each moment, the first of which is its start.

    Args:
        all_done: the runs.
        begun: prompt → numbers of its fit.
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
    """The final row of each object, preceded by the initial row of each prompt."""
    begins = {row["prompt"]: {**row, "loss": _FIT} for row in rows if row["moment"] == 0}
    return [*begins.values(), *(row for row in rows if row["share"] == 1.0)]


def draw_curves(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Draw a panel for each of some metrics, over the fraction of the run."""
    panels = [
        Panel("", "share of the run", METRICS[name].label, curves(rows, name, "share")) for name in _DRAWN
    ]
    return draw_plot(panels, columns=len(panels))


def draw_objects(all_done: Sequence[Done], fronts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Draw the front views of all objects, with a row for each: its start, then all moments.

    Args:
        all_done: the runs.
        fronts: prompt → front view of its fit, uint8 (H, W, 3).
    """
    rows, names = [], []
    for done in all_done:
        for one in done.objects:
            rows.append([[fronts[one.prompt]], *([sides[0]] for sides in one.sides)])
            names.append(f"{done.series.trial.guidance}: {one.prompt}")
    headings = [f"{share:.0%}" for share in (0.0, *all_done[0].series.shares, 1.0)]
    longest = max(len(row) for row in rows)
    # Short runs may reach several of the fractions at once.
    padded = [[row[0], *([[None]] * (longest - len(row))), *row[1:]] for row in rows]
    return picture_table(padded, names, [headings[0], *headings[len(headings) - longest + 1 :]])


def make_of(settings: Settings, work: Work, judges: Judges | None = None) -> Made:
    """Fit the truths, continue from them with each loss, and judge the results.

    Args:
        settings: settings of the figure.
        work: where results are kept.
        judges: what to judge objects by; None for the judges of the Toybox world.

    Raises:
        UserError: an input is invalid, which is reported before anything runs; see also `make_all`.
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
    judges = judges or Judges.of(settings.prompts)
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
    """Make the figure. Raises UserError at the paper's scale, where the truth is unknown."""
    if work.size not in SIZES:
        raise UserError(
            f"At size {work.size!r} there is no truth to begin with; give --size={' or '.join(SIZES)}."
        )
    return make_of(SIZES[work.size], work)


FIGURE = Figure(
    title="Where each loss settles when it starts from the truth",
    source="Beyond the paper: what keeps a loss from the truth",
    expected=(
        "A loss whose optimum is the truth stays there. The quality that another loss gives up from there "
        "cannot be gained by longer runs or a better start."
    ),
    seconds={"small": 150.0, "full": 1500.0},
    make=make,
    is_timed=True,
)
