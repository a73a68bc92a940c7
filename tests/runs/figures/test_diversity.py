"""Figure 8: its arms, its picture, and the same result no matter where it was stopped."""

import shutil
from dataclasses import replace

import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.runs.figures.base import write_made
from ge3d_jax.runs.figures.diversity import (
    SIZES,
    THROUGHOUT,
    Settings,
    arms,
    compare_seeds,
    draw,
    draw_differences,
    share_name,
)
from ge3d_jax.runs.figures.swept import Swept
from ge3d_jax.training.presets import configured
from tests.runs.figures.observed import Stopped, files_of
from tests.runs.figures.tiny_sweep import grays_of, numbered, tiny_plan, work_in

# A loss that compiles quickly.
SETTINGS = Settings(tiny_plan(**{"guidance.kind": "sds"}), (1.0,))


def write(made, folder):
    write_made(made, name="diversity", command="", out=folder)
    return files_of(folder)


@pytest.fixture(scope="module")
def whole(tiny_place, tiny_gallery, tmp_path_factory):
    """An uninterrupted figure: its results and its files."""
    made = compare_seeds(SETTINGS, work_in(tmp_path_factory.mktemp("work"), tiny_place), tiny_gallery)
    return made, write(made, tmp_path_factory.mktemp("out"))


def test_seeds_that_stay_together_have_one_object_and_others_have_not(whole):
    made, _ = whole
    found = {row["seeds"]: row for row in made.rows if "shape_diversity" in row}
    assert list(found) == [THROUGHOUT, "one seed for 100 %"]
    together = found["one seed for 100 %"]
    assert together["shape_diversity"] < 1e-3 and together["texture_diversity"] < 1e-3
    assert found[THROUGHOUT]["shape_diversity"] > 0.01
    assert "| one seed for 100 % | 0.000 | 0.000 |" in made.text


def test_a_stopped_figure_goes_on_and_ends_in_the_same_files(whole, tiny_place, tiny_gallery, tmp_path):
    _, files = whole

    def stop(line):
        if "2 of 2" in line:
            raise Stopped

    with pytest.raises(Stopped):
        compare_seeds(SETTINGS, work_in(tmp_path / "work", tiny_place, stop), tiny_gallery)
    (objects,) = (path for path in (tmp_path / "work" / "objects").iterdir() if path.is_dir())
    before = {path: path.stat().st_mtime_ns for path in objects.glob("*/object.ply")}
    assert len(before) == 2
    # As if stopped again, after making the objects and before evaluating them.
    for record in (tmp_path / "work" / "arms").glob("*"):
        record.unlink()
    told = []
    made = compare_seeds(SETTINGS, work_in(tmp_path / "work", tiny_place, told.append), tiny_gallery)
    assert write(made, tmp_path / "out") == files
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert told == [f"{THROUGHOUT} (1 of 2): 2 objects", "one seed for 100 % (2 of 2): 2 objects"]
    # It does not resume with different settings.
    others = replace(SETTINGS, plan=tiny_plan(**{"guidance.kind": "sds", "views": 2}))
    with pytest.raises(UserError, match="was made with another settings"):
        compare_seeds(others, work_in(tmp_path / "work", tiny_place), tiny_gallery)
    # Nor with a different model.
    shutil.copytree(tiny_place, tmp_path / "model")
    weights = next((tmp_path / "model").rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(UserError, match="was made with another model"):
        compare_seeds(SETTINGS, work_in(tmp_path / "work", tmp_path / "model"), tiny_gallery)


def test_seeds_part_from_the_first_of_them():
    throughout, quarter, half = arms(Settings(tiny_plan(seeds=(4, 2)), (0.25, 0.5)))
    assert (throughout.name, throughout.overrides) == (THROUGHOUT, {})
    assert quarter.overrides == {"first_seed": 4, "first_seed_share": 0.25}
    assert (half.name, half.overrides) == ("one seed for 50 %", {"first_seed": 4, "first_seed_share": 0.5})


@pytest.mark.parametrize("size", SIZES)
def test_the_settings_of_every_size_can_be(size):
    settings = SIZES[size]
    plan = settings.plan
    assert len(plan.seeds) > 1 and len(set(plan.prompts)) == len(plan.prompts)
    for arm in arms(settings):
        assert configured(plan.preset, overrides={**plan.overrides, **arm.overrides}).iterations
    assert plan.is_known == (size != "paper")


def test_the_picture_has_a_row_for_each_prompt_and_the_seeds_by_arm():
    plan = tiny_plan(prompts=("a", "b"))
    swept = {
        THROUGHOUT: numbered(100, prompts=2, seeds=2),
        share_name(0.5): numbered(200, prompts=2, seeds=2),
    }
    assert grays_of(draw(plan, swept), 4) == [[100, 103, 200, 203], [110, 113, 210, 213]]


def test_differences_are_from_the_first_seed_and_four_times_as_dark():
    plan = tiny_plan(prompts=("a", "b"), seeds=(0, 1, 2))
    swept = {
        name: numbered(first, prompts=2, seeds=3)
        for name, first in ((THROUGHOUT, 100), (share_name(0.5), 60))
    }
    # Consecutive seeds differ by 3.
    assert grays_of(draw_differences(plan, swept), 4) == [[255 - 12, 255 - 24] * 2] * 2
    dark = swept[THROUGHOUT].pictures.copy()
    dark[1, 1] = 255
    swept[THROUGHOUT] = Swept([], dark)
    assert grays_of(draw_differences(plan, swept), 4)[1][0] == 0
