"""Figure 9: the nodes of each grid cell, the tables and the picture."""

import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.guidance.trajectories import Nodes
from ge3d_jax.runs.figures.ablate_timesteps import (
    SIZES,
    Settings,
    arm_name,
    arms,
    cells,
    draw,
    grid_table,
    scaled_nodes,
)
from ge3d_jax.training.presets import configured
from tests.runs.figures.tiny_sweep import PROMPT, grays_of, numbered, tiny_plan

USUAL = Nodes(count=5, jump_max=(120, 60), jump_min=(90, 40), max_step=(600, 300))
GRID = Settings(tiny_plan(), (300, 600), (60, 120, 240))


@pytest.mark.parametrize(
    ("farthest", "jump", "expected"),
    [
        (600, 120, Nodes(7, (120, 60), (90, 40), (600, 300))),
        (300, 60, Nodes(7, (60, 30), (45, 20), (300, 150))),
        # There is room for 3 at the start of the run, and for one more at the end.
        (500, 150, Nodes(4, (150, 75), (112, 50), (500, 250))),
        (300, 240, Nodes(1, (240, 120), (180, 80), (300, 150))),
    ],
)
def test_nodes_are_scaled_from_the_presets(farthest, jump, expected):
    assert scaled_nodes(USUAL, farthest, jump) == expected


def test_there_are_as_many_nodes_as_lie_below_the_bound():
    usual = Nodes(3, (60, 60), (50, 50), (200, 200))
    assert scaled_nodes(usual, 200, 60).count == 3
    assert scaled_nodes(usual, 201, 60).count == 4
    # There may be room for more nodes at the end of the run than at its start.
    assert scaled_nodes(Nodes(3, (60, 30), (50, 10), (200, 200)), 200, 60).count == 19


def test_jumps_that_would_pass_the_bound_are_refused():
    with pytest.raises(UserError, match="leaves no room"):
        scaled_nodes(USUAL, 300, 480)


def test_cells_are_an_arm_each_without_balancing():
    made = arms(GRID)
    assert [arm.name for arm in made] == list(cells(GRID)) and len(made) == 6
    assert cells(GRID)["to 600 by 60"] == (600, 60)
    settings = configured("toybox64", overrides={**GRID.plan.overrides, **made[3].overrides})
    assert not settings.guidance.dbc and settings.guidance.nodes == scaled_nodes(USUAL, 600, 60)


@pytest.mark.parametrize("size", SIZES)
def test_the_settings_of_every_size_can_be(size):
    settings = SIZES[size]
    plan = settings.plan
    for arm in arms(settings):
        configured(plan.preset, overrides={**plan.overrides, **arm.overrides})
    assert plan.is_known == (size != "paper") and 0 < settings.shown


def test_a_metric_has_a_line_for_each_farthest_time():
    rows = [
        {"nodes": arm_name(farthest, jump), "prompt": PROMPT, "psnr": farthest / 100 + jump / 1000}
        for farthest, jump in cells(GRID).values()
    ]
    assert grid_table(rows, GRID, "psnr").splitlines()[2:] == [
        "| to 300 | 3.1 | 3.1 | 3.2 |",
        "| to 600 | 6.1 | 6.1 | 6.2 |",
    ]
    assert "| jumps below 60 | jumps below 120 |" in grid_table(rows, GRID, "psnr")
    assert "–" in grid_table([{**row, "psnr": None} for row in rows], GRID, "psnr")


def test_the_picture_is_the_grid_prompt_by_prompt():
    settings = Settings(tiny_plan(prompts=("a", "b", "c")), (300, 600), (60, 120), shown=2)
    swept = {name: numbered(50 * index, prompts=3, seeds=2) for index, name in enumerate(cells(settings), 1)}
    assert grays_of(draw(settings, swept), 4) == [[50, 100, 60, 110], [150, 200, 160, 210]]
