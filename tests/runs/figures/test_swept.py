"""Objects of a figure's arms: evaluated in order, reported by prompt and by arm, and rejected inputs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.runs.figures.swept import Arm, Swept, _check, _judged, _seen, sweep_arms, told_rows
from ge3d_jax.runs.sweep import SweepResult
from ge3d_jax.runs.sweep_folder import SweepOutcome
from ge3d_jax.splatting.gaussians import make_gaussians
from tests.runs.figures.tiny_sweep import PROMPT, tiny_plan, work_in

OTHER = "a blue mushroom"


def blob(color, scale=0.2):
    """A spherical splat at the origin."""
    return make_gaussians(
        np.zeros((1, 3)), np.asarray([color]), np.full((1, 3), scale), np.full(1, 0.99), capacity=4
    )


@pytest.fixture(scope="module")
def objects():
    return {
        (PROMPT, 0): blob((1.0, 0.0, 0.0)),
        (PROMPT, 7): blob((0.0, 1.0, 0.0)),
        (OTHER, 0): blob((0.0, 0.0, 1.0)),
        (OTHER, 7): blob((0.0, 0.0, 1.0), scale=0.1),
    }


@pytest.fixture(scope="module")
def judged(objects, tiny_gallery):
    return _judged(objects, tiny_gallery)


def assert_pictures_are_in_order(pictures):
    assert pictures.shape == (2, 2, 8, 128, 128, 3) and pictures.dtype == np.uint8
    middle = pictures[:, :, :, 64, 64].astype(int)
    # The brightest of the channels red, green and blue.
    assert (np.argmax(middle, axis=-1) == np.asarray([[0, 1], [2, 2]])[..., None]).all()
    covered = (pictures < 128).any(axis=-1).sum(axis=(-1, -2))
    assert (covered[1, 0] > 2 * covered[1, 1]).all()


def test_objects_are_judged_each_by_prompt_and_all_together(judged):
    rows = judged.numbers["rows"]
    of_objects, of_prompts, (of_all,) = rows[:4], rows[4:6], rows[6:]
    assert [(row["prompt"], row["seed"]) for row in of_objects] == [
        (PROMPT, 0),
        (PROMPT, 7),
        (OTHER, 0),
        (OTHER, 7),
    ]
    assert all("psnr" in row and "views_right" in row and "seconds" not in row for row in of_objects)
    assert [row["prompt"] for row in of_prompts] == [PROMPT, OTHER]
    one_shape, one_texture = of_prompts
    assert one_shape["shape_diversity"] == pytest.approx(0.0, abs=0.02)
    assert one_texture["shape_diversity"] > 0.5 and one_shape["texture_diversity"] > 0.4
    # A smaller splat has different colors only at its boundary.
    assert one_texture["texture_diversity"] < 0.5 * one_shape["texture_diversity"]
    assert of_all["shrunken_fid"] > 0 and "prompt" not in of_all
    assert_pictures_are_in_order(judged.arrays["pictures"])


def test_without_a_truth_there_is_diversity_alone(objects, judged):
    seen = _seen(objects)
    assert seen.numbers["rows"][:4] == [{"prompt": prompt, "seed": seed} for prompt, seed in objects]
    assert seen.numbers["rows"][4:] == judged.numbers["rows"][4:6]
    assert_pictures_are_in_order(seen.arrays["pictures"])


def test_rows_tell_their_arm():
    swept = {
        name: Swept([{"prompt": PROMPT, "psnr": psnr}], np.empty(0)) for name, psnr in (("a", 1), ("b", 2))
    }
    assert told_rows(swept, "loss", {"b": {"jump": 60}}) == [
        {"loss": "a", "prompt": PROMPT, "psnr": 1},
        {"loss": "b", "jump": 60, "prompt": PROMPT, "psnr": 2},
    ]


@pytest.mark.parametrize(
    ("plan", "arm", "says"),
    [
        (tiny_plan(prompts=("a red dragon",)), Arm("b"), "dragon"),
        (tiny_plan(prompts=("a red mushroom with a blue stem",)), Arm("b"), "second color"),
        (tiny_plan(seeds=(0, -1)), Arm("b"), "The seed is -1"),
        (tiny_plan(), Arm("b", {"guidance.scael": 3}), "guidance.scael"),
        (tiny_plan(), Arm("b", guidance="none"), "'none' does not exist"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(tiny_place, tmp_path, plan, arm, says):
    told = []
    with pytest.raises(UserError, match=says):
        sweep_arms([Arm("a"), arm], plan, work_in(tmp_path, tiny_place, told.append))
    assert not told and not list(tmp_path.iterdir())


def test_figures_have_objects_in_common(tiny_place, tiny_gallery, tmp_path):
    def make(figure, plan, *arms):
        work = replace(work_in(tmp_path / figure, tiny_place), common=tmp_path / "common")
        sweep_arms(arms, plan, work, tiny_gallery)
        return {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("object.ply"))}

    first = make("one", tiny_plan(), Arm("plain"))
    assert {path.parent.name for path in first} == {"a-red-mushroom-0", "a-red-mushroom-1"}
    assert len({path.parents[1] for path in first}) == 1
    # With a different name, one of the seeds, and equivalent settings.
    again = make("two", tiny_plan(seeds=(1,)), Arm("as it is", {"views": 1}))
    assert again == first
    others = make("three", tiny_plan(seeds=(0,)), Arm("plain", {"flip_probability": 0.25}))
    assert len(others) == 3 and {path: others[path] for path in first} == first


def result_of(*outcomes, interrupted=False):
    return SweepResult(Path("there"), list(outcomes), interrupted, [])


def test_objects_that_are_not_there_end_the_figure():
    finished = SweepOutcome(PROMPT, 0, "", "a", status="finished")
    diverged = SweepOutcome(PROMPT, 1, "", "b", status="diverged", reason="Gradients were not finite.")
    _check(result_of(finished, diverged))
    failed = SweepOutcome(PROMPT, 2, "", "c", status="failed", reason="The disk is full.")
    with pytest.raises(
        UserError, match='"a red mushroom" with seed 2: The disk is full. Run the same command'
    ):
        _check(result_of(finished, failed))
    with pytest.raises(UserError, match="with seed 3: it was not made"):
        _check(result_of(SweepOutcome(PROMPT, 3, "", "d")))
    with pytest.raises(KeyboardInterrupt):
        _check(result_of(finished, failed, interrupted=True))
