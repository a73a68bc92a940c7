"""Additional flags for the scripts in experiments/figures that compare losses."""

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from ge3d_jax.cli import figure_flags

if TYPE_CHECKING:
    from ge3d_jax.runs.figures.making import Changed

_LOSSES = flags.DEFINE_list("losses", None, "Losses, separated by commas, instead of the size's own.")
_TRIALS = flags.DEFINE_string("trials", None, "A file with a loss and its settings on each line, instead.")
_PROMPTS = flags.DEFINE_string(
    "prompts", None, "A file with a prompt on each line, instead of the size's own."
)
_SEEDS = flags.DEFINE_string("seeds", None, "Seeds, e.g. 0-3 or 0,5, instead of the size's own.")
_SECONDS = flags.DEFINE_float("seconds", None, "Seconds that the iterations of an object may take.")
_METRICS = flags.DEFINE_list("metrics", None, "Metrics, separated by commas, instead of the size's own.")
_CLIP = flags.DEFINE_string(
    "clip",
    None,
    "A CLIP for the metrics that need one (clip_similarity, r_precision, cmmd): the folder or file of a "
    "download, or its id on the hub. Published ones were never tried here.",
)
_INCEPTION = flags.DEFINE_string(
    "inception",
    None,
    "The file of the Inception that fid needs, pt_inception-2015-12-05-6726825d.pth. The published one was "
    "never tried here.",
)
_PROCESSES = flags.DEFINE_integer(
    "processes", None, "Number of processes at work at a time, each on one CPU core.", lower_bound=1
)
_ONLY_DONE = flags.DEFINE_bool("only_done", False, "Make no objects; show those that are done.")


def _given() -> list[str]:
    """The flags as typed on the command line."""
    found = [_LOSSES, _TRIALS, _PROMPTS, _SEEDS, _SECONDS, _METRICS, _CLIP, _INCEPTION, _PROCESSES]
    texts = {flag.name: flag.value for flag in found if flag.present}
    typed = [
        f"--{name}={','.join(value) if isinstance(value, list) else value}" for name, value in texts.items()
    ]
    return [*typed, *(["--only_done"] if _ONLY_DONE.value else [])]


def _changed(name: str, size: str) -> "Changed | None":
    """The changes that these flags make to a figure that compares losses; None if no flag was given."""
    from ge3d_jax.runs.figures.loss_settings import Flags
    from ge3d_jax.runs.figures.making import Changed, model_of
    from ge3d_jax.runs.sweep_plan import parse_seeds

    given = _given()
    if not given:
        return None
    asked = Flags(
        losses=_LOSSES.value,
        trials=None if _TRIALS.value is None else Path(_TRIALS.value),
        prompts=None if _PROMPTS.value is None else Path(_PROMPTS.value),
        seeds=None if _SEEDS.value is None else parse_seeds(_SEEDS.value),
        seconds=_SECONDS.value,
        metrics=_METRICS.value,
        clip=_CLIP.value,
        inception=_INCEPTION.value,
        processes=_PROCESSES.value,
    )
    module = importlib.import_module(f"ge3d_jax.runs.figures.{name}")
    settings = asked.applied(module.SIZES[size], model_of(size, figure_flags.MODEL.value))
    make = partial(module.make, settings=settings, only_done=_ONLY_DONE.value)
    return Changed(make, given, only_reads=_ONLY_DONE.value)


def run_loss_figure(name: str) -> None:
    """Run the script of a figure that compares losses, experiments/figures/NAME.py.

    Args:
        name: name of the figure, a key of FIGURES; its module has SIZES and a `make` that takes settings.
    """
    for flag in flags.FLAGS.get_key_flags_for_module(__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    figure_flags.run_figure(name, partial(_changed, name))
