"""Objects that a figure compares: those of each arm by one sweep, judged, and kept with their pictures.

Objects of the same settings and the same model are in one folder for all figures, so that none makes again
what another one has.
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
from ge3d_jax.metrics.recognition import Gallery
from ge3d_jax.runs.asked import Asked, asked_by_preset
from ge3d_jax.runs.evaluate import likeness_cameras, model_fingerprint
from ge3d_jax.runs.evaluation_prompts import check_prompts
from ge3d_jax.runs.figures.base import Record, Work, remember
from ge3d_jax.runs.folder import slug
from ge3d_jax.runs.judged import see, see_truths
from ge3d_jax.runs.judging import judge_group, judge_object, load_judges
from ge3d_jax.runs.request import check_prompt, check_seed
from ge3d_jax.runs.sweep import SweepResult, sweep
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.training.config import Config
from ge3d_jax.viewer.sheet import image_grid, to_uint8

_Row = dict[str, Any]
# A sweep's seconds are those of the seeds that were computed together, and not the same a second time.
_NOT_OF_A_SWEEP = "seconds"


@dataclass(frozen=True)
class Arm:
    """One of the ways to make objects that a figure compares.

    Attributes:
        name: of its folder, and in tables.
        overrides: settings, by dotted name, in which it differs from the others.
        guidance: a loss by name, with its settings for the preset; None for the preset's.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    guidance: str | None = None


@dataclass(frozen=True)
class Plan:
    """What all arms of a figure have in common.

    Attributes:
        preset: what the settings begin with.
        prompts, seeds: an object of each prompt with each seed.
        overrides: settings to change, by dotted name.
        is_known: whether the prompts are sentences of the Toybox world, so that their truth is known.
    """

    preset: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    is_known: bool = True


@dataclass(frozen=True)
class Swept:
    """What came of an arm.

    Attributes:
        rows: the numbers of each object, with "prompt" and "seed"; of each prompt's objects together, with
            "prompt"; and of all of them.
        pictures: uint8 (P, S, 8, H, W, 3): each object on white, once around, the front first.
    """

    rows: list[_Row]
    pictures: np.ndarray


def sweep_arms(
    arms: Sequence[Arm], plan: Plan, work: Work, gallery: Gallery | None = None
) -> dict[str, Swept]:
    """Make the objects of all arms, or take those that were made.

    Args:
        arms: with different names.
        plan: what they have in common.
        work: where objects and records are kept.
        gallery: to recognize objects with; None for that of `load_judges`, as soon as it is needed.

    Returns:
        By name of the arm.

    Raises:
        UserError: settings, a prompt or a seed that cannot be, before anything is made; or an object that
            could not be made.
        KeyboardInterrupt: the user stopped it; what is done is kept.
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
            return _judged(objects, gallery or load_judges(work.report))

        record = remember(work.folder / "arms" / slug(arm.name), wanted[arm.name], make)
        swept[arm.name] = Swept(list(record.numbers["rows"]), record.arrays["pictures"])
    return swept


def _all_overrides(arm: Arm, plan: Plan) -> dict[str, Any]:
    return {**plan.overrides, **arm.overrides}


def _asked(arm: Arm, plan: Plan, work: Work) -> dict[str, Any]:
    """All that the objects of an arm depend on. Raises UserError for what cannot be."""
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
    """The objects of an arm by prompt and seed; those that are in the folder are not made again."""
    # Another figure may be making the same ones.
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
            # Bars of several processes would overwrite each other.
            progress=multiprocessing.parent_process() is None,
        )
    _check(result)
    return {
        (outcome.prompt, outcome.seed): load_ply(result.folder / outcome.folder / "object.ply")
        for outcome in result.outcomes
    }


def load_objects(arm: Arm, plan: Plan, work: Work, seed: int) -> dict[str, Gaussians]:
    """The objects that `sweep_arms` made with this seed, by prompt. Raises UserError for a damaged file."""
    folder = _folder_of(_asked(arm, plan, work), plan, work)
    return {prompt: load_ply(folder / f"{slug(prompt)}-{seed}" / "object.ply") for prompt in plan.prompts}


def _folder_of(asked: Mapping[str, Any], plan: Plan, work: Work) -> Path:
    """The folder of the sweep with these settings and this model."""
    told = json.dumps({name: asked[name] for name in ("settings", "model")}, sort_keys=True)
    return work.objects / f"{slug(plan.preset)}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def _check(result: SweepResult) -> None:
    """Raises KeyboardInterrupt or UserError where there are not all objects; diverged ones are there."""
    if result.interrupted:
        raise KeyboardInterrupt
    for outcome in result.outcomes:
        if outcome.status not in ("finished", "diverged"):
            raise UserError(
                f'No object for "{outcome.prompt}" with seed {outcome.seed}: '
                f"{outcome.reason or 'it was not made'} The same command tries it again."
            )


def _record(rows: list[_Row], views: Mapping[tuple[str, int], Views]) -> Record:
    """Rows of objects with those of each prompt's objects together; and all pictures."""
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
    """The objects against the truth."""
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
    """The objects by what needs no truth."""
    cameras = likeness_cameras()
    views = {key: object_views(gaussians, cameras) for key, gaussians in objects.items()}
    rows: list[_Row] = [{"prompt": prompt, "seed": seed} for prompt, seed in objects]
    return _record(rows, views)


def ge3d_of(config: Config) -> GE3D:
    """The loss of settings, which is GE3D. Raises TypeError where it is another."""
    if not isinstance(config.guidance, GE3D):
        raise TypeError(f"The loss is {type(config.guidance).__name__}, but these figures vary GE3D.")
    return config.guidance


def told_rows(swept: Mapping[str, Swept], by: str, told: Mapping[str, _Row] | None = None) -> list[_Row]:
    """The rows of all arms.

    Args:
        swept: from `sweep_arms`.
        by: the column with the arm's name.
        told: more columns of an arm, by its name.
    """
    return [
        {by: name, **(told or {}).get(name, {}), **row} for name, one in swept.items() for row in one.rows
    ]


def view_grid(
    plan: Plan, swept: Mapping[str, Swept], views: Sequence[int], label: Callable[[str, str, int], str]
) -> np.ndarray:
    """Views of the objects with the first seed: a row for each prompt, the views of each arm side by side.

    Args:
        plan: of the arms.
        swept: from `sweep_arms`.
        views: of the eight once around, from the front.
        label: what stands under a picture, from the prompt, the arm's name and the view.

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
