"""Objects for figures that compare arms: one sweep per arm, with the evaluations and pictures on record.

Objects with the same settings and model share one folder across all figures, so that each is made only once.
"""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import in_turn
from ge3d_jax.core.settings import to_tree
from ge3d_jax.formats.ply import load_ply
from ge3d_jax.guidance.ge3d import GE3D
from ge3d_jax.metrics.diversity import shape_diversity, texture_diversity
from ge3d_jax.metrics.likeness import Views, object_views
from ge3d_jax.metrics.recognition import Gallery, load_gallery
from ge3d_jax.runs.asked import Asked, asked_by_preset
from ge3d_jax.runs.evaluate import likeness_cameras
from ge3d_jax.runs.evaluation_prompts import check_prompts
from ge3d_jax.runs.figures.base import Record, Work, remember
from ge3d_jax.runs.folder import slug
from ge3d_jax.runs.judged import see, see_truths
from ge3d_jax.runs.judging import judge_group, judge_object
from ge3d_jax.runs.made_objects import model_fingerprint
from ge3d_jax.runs.request import check_prompt, check_seed
from ge3d_jax.runs.sweep import SweepResult, sweep
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.training.config import Config
from ge3d_jax.viewer.sheet import image_grid, to_uint8

_Row = dict[str, Any]
# The seconds of a sweep cover all seeds computed together, and are not reproducible.
_NOT_OF_A_SWEEP = "seconds"


@dataclass(frozen=True)
class Arm:
    """One of the configurations that a figure compares.

    Attributes:
        name: name for its folder and in tables.
        overrides: settings specific to this arm, by dotted name.
        guidance: name of a loss, used with its settings for the preset; None uses the preset's loss.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    guidance: str | None = None


@dataclass(frozen=True)
class Plan:
    """The settings shared by all arms of a figure.

    Attributes:
        preset: base settings.
        prompts, seeds: one object is made for each combination.
        overrides: settings to change, by dotted name.
        is_known: whether the prompts are sentences of the Toybox world, whose ground truth is known.
    """

    preset: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    is_known: bool = True


@dataclass(frozen=True)
class Swept:
    """Results of an arm.

    Attributes:
        rows: metrics of each object, with "prompt" and "seed"; of all objects of each prompt, with "prompt";
            and of all objects together.
        pictures: uint8 (P, S, 8, H, W, 3): eight views around each object on white, starting at the front.
    """

    rows: list[_Row]
    pictures: np.ndarray


def sweep_arms(
    arms: Sequence[Arm], plan: Plan, work: Work, gallery: Gallery | None = None
) -> dict[str, Swept]:
    """Make the objects of all arms, reusing existing ones.

    Args:
        arms: the arms, with distinct names.
        plan: the settings shared by all arms.
        work: stores objects and records.
        gallery: reference pictures for recognition; None loads those of `load_gallery` when needed.

    Returns:
        The results by arm name.

    Raises:
        UserError: settings, a prompt or a seed are invalid (checked before anything is made), or an object
            could not be made.
        KeyboardInterrupt: the user stopped it; finished objects are kept.
    """
    wanted = {arm.name: _asked(arm, plan, work) for arm in arms}
    swept = {}
    for index, arm in enumerate(arms, 1):
        count = len(plan.prompts) * len(plan.seeds)
        work.report(f"{arm.name} ({index} of {len(arms)}): {count} objects")

        def make(arm: Arm = arm) -> Record:
            objects = _make_objects(arm, plan, work, _folder_of(wanted[arm.name], plan, work))
            if not plan.is_known:
                return _seen(objects)
            return _judged(objects, gallery or load_gallery())

        record = remember(work.folder / "arms" / slug(arm.name), wanted[arm.name], make)
        swept[arm.name] = Swept(list(record.numbers["rows"]), record.arrays["pictures"])
    return swept


def _all_overrides(arm: Arm, plan: Plan) -> dict[str, Any]:
    return {**plan.overrides, **arm.overrides}


def _asked(arm: Arm, plan: Plan, work: Work) -> dict[str, Any]:
    """Everything the objects of an arm depend on. Raises UserError for invalid settings, prompts or seeds."""
    asked: Asked = asked_by_preset(
        plan.preset, guidance=arm.guidance, density=None, overrides=_all_overrides(arm, plan)
    ).but(model=work.model)
    place = asked.model.check()
    for prompt in plan.prompts:
        check_prompt(prompt, place)
    for seed in plan.seeds:
        check_seed(seed)
    if plan.is_known:
        check_prompts(plan.prompts)
    return {
        "prompts": list(plan.prompts),
        "seeds": list(plan.seeds),
        "settings": to_tree(asked.settings),
        "model": model_fingerprint(place),
    }


def _make_objects(arm: Arm, plan: Plan, work: Work, folder: Path) -> dict[tuple[str, int], Gaussians]:
    """Make the objects of an arm, by prompt and seed, reusing those in the folder."""
    # Another figure may be making the same objects.
    with in_turn(folder):
        result = sweep(
            plan.prompts,
            seeds=plan.seeds,
            preset=plan.preset,
            guidance=arm.guidance,
            model=work.model,
            out=folder,
            overrides=_all_overrides(arm, plan),
            preview_every=0,
            resume=True,
            # Progress bars of several processes would overwrite each other.
            progress=multiprocessing.parent_process() is None,
        )
    _check(result)
    return {
        (outcome.prompt, outcome.seed): load_ply(result.folder / outcome.folder / "object.ply")
        for outcome in result.outcomes
    }


def load_objects(arm: Arm, plan: Plan, work: Work, seed: int) -> dict[str, Gaussians]:
    """Load the objects of this seed from `sweep_arms`, by prompt. Raises UserError for a damaged file."""
    folder = _folder_of(_asked(arm, plan, work), plan, work)
    return {prompt: load_ply(folder / f"{slug(prompt)}-{seed}" / "object.ply") for prompt in plan.prompts}


def _folder_of(asked: Mapping[str, Any], plan: Plan, work: Work) -> Path:
    """Folder of the sweep with these settings and this model."""
    told = json.dumps({name: asked[name] for name in ("settings", "model")}, sort_keys=True)
    return work.objects / f"{slug(plan.preset)}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def _check(result: SweepResult) -> None:
    """Raise KeyboardInterrupt or UserError unless the sweep has all objects, including diverged ones."""
    if result.interrupted:
        raise KeyboardInterrupt
    for outcome in result.outcomes:
        if outcome.status not in ("finished", "diverged"):
            raise UserError(
                f'No object for "{outcome.prompt}" with seed {outcome.seed}: '
                f"{outcome.reason or 'it was not made.'} Run the same command to retry it."
            )


def _record(rows: list[_Row], views: Mapping[tuple[str, int], Views]) -> Record:
    """Record the rows of the objects, the diversity of each prompt's objects, and all pictures."""
    prompts = list(dict.fromkeys(prompt for prompt, _ in views))
    by_prompt = {prompt: [views[key] for key in views if key[0] == prompt] for prompt in prompts}
    of_prompts = [
        {
            "prompt": prompt,
            "shape_diversity": shape_diversity(group),
            "texture_diversity": texture_diversity(group),
        }
        for prompt, group in by_prompt.items()
    ]
    pictures = [[to_uint8(one.pictures) for one in group] for group in by_prompt.values()]
    return Record({"rows": [*rows, *of_prompts]}, {"pictures": np.stack(pictures)})


def _judged(objects: Mapping[tuple[str, int], Gaussians], gallery: Gallery) -> Record:
    """Evaluate the objects against the ground truth."""
    truths = see_truths([prompt for prompt, _ in objects])
    seen = [
        see(prompt, seed, gaussians, truth=truths[prompt]) for (prompt, seed), gaussians in objects.items()
    ]
    rows: list[_Row] = []
    for one in seen:
        numbers = judge_object(one, gallery)
        del numbers[_NOT_OF_A_SWEEP]
        rows.append({"prompt": one.prompt, "seed": one.seed, **numbers})
    record = _record(rows, {(one.prompt, one.seed): one.views for one in seen})
    of_all = judge_group(seen, metrics=("shrunken_fid", "shrunken_kid"))
    return Record({"rows": [*record.numbers["rows"], of_all]}, record.arrays)


def _seen(objects: Mapping[tuple[str, int], Gaussians]) -> Record:
    """Evaluate the objects by metrics that need no ground truth."""
    cameras = likeness_cameras()
    views = {key: object_views(gaussians, cameras) for key, gaussians in objects.items()}
    rows: list[_Row] = [{"prompt": prompt, "seed": seed} for prompt, seed in objects]
    return _record(rows, views)


def ge3d_of(config: Config) -> GE3D:
    """The GE3D loss of the settings. Raises TypeError if they use another loss."""
    if not isinstance(config.guidance, GE3D):
        raise TypeError(f"The loss is {type(config.guidance).__name__}, but these figures vary GE3D.")
    return config.guidance


def told_rows(swept: Mapping[str, Swept], by: str, told: Mapping[str, _Row] | None = None) -> list[_Row]:
    """Combine the rows of all arms.

    Args:
        swept: result of `sweep_arms`.
        by: name of the column that holds the arm's name.
        told: additional columns of each arm, by arm name.
    """
    return [
        {by: name, **(told or {}).get(name, {}), **row} for name, one in swept.items() for row in one.rows
    ]


def view_grid(
    plan: Plan, swept: Mapping[str, Swept], views: Sequence[int], label: Callable[[str, str, int], str]
) -> np.ndarray:
    """Tile views of the first seed's objects: one row per prompt, with the arms' views side by side.

    Args:
        plan: the plan of the arms.
        swept: result of `sweep_arms`.
        views: indices of the views to show, of the eight around the object, starting at the front.
        label: makes the label below a picture from the prompt, the arm's name and the view.

    Returns:
        uint8 (H, W, 3).
    """
    pictures, labels = [], []
    for index, prompt in enumerate(plan.prompts):
        for name, one in swept.items():
            for view in views:
                pictures.append(one.pictures[index, 0, view])
                labels.append(label(prompt, name, view))
    return image_grid(pictures, labels, columns=len(swept) * len(views))
