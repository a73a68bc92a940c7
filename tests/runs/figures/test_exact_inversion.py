"""The figure of inversions: its arms, its table, and the cost and definition of each inversion."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from ge3d_jax.core.random import Draws
from ge3d_jax.guidance.ge3d import GE3D
from ge3d_jax.guidance.trajectories import Nodes
from ge3d_jax.runs.figures import exact_inversion
from ge3d_jax.runs.figures.base import Work
from ge3d_jax.runs.figures.exact_inversion import PASSES, SIZES, Settings, arms
from ge3d_jax.runs.figures.swept import Plan, Swept
from ge3d_jax.training.config import PUBLISHED_NEGATIVE_PROMPT
from ge3d_jax.training.presets import configured
from tests.guidance import fakes
from tests.runs.figures.tiny_sweep import grays_of, tiny_plan
from tests.tiny_model import IMAGE_SIZE

TINY = {
    "iterations": 2,
    "views": 1,
    "image_size": IMAGE_SIZE,
    "start.count": 50,
    "nodes.count": 2,
    "scene.capacity": 64,
    "scene.buffer_capacity": 4096,
}


@pytest.mark.parametrize("size", SIZES)
def test_the_arms_of_each_size_can_be(size):
    settings = SIZES[size]
    found = {}
    for arm in arms(settings):
        config = configured(settings.plan.preset, overrides={**settings.plan.overrides, **arm.overrides})
        told = (config.guidance.inversion, config.guidance.noising_prompt, config.prompts.negative_prompt)
        found[arm.name] = told
    usual = configured(settings.plan.preset).prompts.negative_prompt
    assert found["plain DDIM"] == ("plain", "negative", usual)
    assert found["direct inversion"] == ("direct", "negative", usual)
    assert "NPI" not in found
    if size != "small":
        negative = PUBLISHED_NEGATIVE_PROMPT if size == "paper" else "a grey gift"
        assert found["NPI, empty way up"] == ("npi", "empty", negative)
        assert found["direct inversion, empty way up"] == ("direct", "empty", negative)
        assert len(found) == 5


def trajectories(inversion, **changes):
    """Both trajectories of one view on a smooth model, and the network evaluations at each of two nodes."""
    known, passes = fakes.smooth_denoiser(1), []

    def counted(model, x, t, text, **options):
        passes.append(len(x))
        return known.predict(model, x, t, text, **options)

    loss = GE3D(inversion=inversion, nodes=Nodes(count=2), **changes)
    drawn = Draws(
        shared={"node_times": np.array([0, 80, 150]), "active": np.array(2)},
        per_view={"noise": fakes.latents(1)[..., ::-1]},
    )
    with jax.disable_jit():
        both = loss.trajectories(
            fakes.latents(1),
            fakes.texts(1, avoided=0),
            jax.tree.map(jax.numpy.asarray, drawn),
            dataclasses.replace(known, predict=counted),
        )
    return both, sum(passes) / 2


def test_what_an_inversion_costs():
    for name, expected in PASSES.items():
        assert trajectories(name)[1] == expected


def test_plain_is_npi_where_both_ways_have_one_text():
    def states(*options, **changes):
        return np.asarray(trajectories(*options, **changes)[0][1])

    np.testing.assert_array_equal(states("plain"), states("npi"))
    assert not np.allclose(
        states("plain", noising_prompt="empty"), states("npi", noising_prompt="empty"), atol=1e-3
    )
    assert not np.allclose(states("plain"), states("direct"), atol=1e-3)


def test_the_picture_has_two_sides_of_the_first_object_of_each_inversion():
    grays = np.add.outer([0, 100], 10 * np.arange(1, 9)).astype(np.uint8)[None, :, :, None, None, None]
    objects = Swept([], np.broadcast_to(grays, (1, 2, 8, 16, 16, 3)))
    drawn = exact_inversion.draw(tiny_plan(), {"plain DDIM": objects, "NPI, empty way up": objects})
    # The front, and a view towards the back.
    assert grays_of(drawn, 4) == [[10, 40, 10, 40]]


def test_the_figure_of_a_tiny_model(tiny_place, tiny_gallery, tmp_path):
    plan = Plan("toybox64", ("a red mushroom",), (0,), TINY)
    settings = Settings(plan, same=("plain",), apart=("direct",))
    told = []
    work = Work("small", tmp_path, str(tiny_place), told.append)
    made = exact_inversion.compare_inversions(settings, work, tiny_gallery)
    names = ["plain DDIM", "direct inversion, empty way up"]
    objects = [row for row in made.rows if "seed" in row]
    assert [row["inversion"] for row in objects] == names
    assert [row["passes"] for row in objects] == [3, 5]
    assert made.text.startswith("| inversion | views recognized")
    assert all(f"\n| {name} | " in made.text for name in names)
    assert 'away from "a grey gift" instead' in made.text
    assert made.text.endswith("each node: plain DDIM 3, NPI 3, direct inversion 5.\n")
    assert made.pictures[""].shape[1] == 4 * (128 + 6) + 6
    json.dumps([dict(row) for row in made.rows])
    # Finished steps are not repeated.
    again = exact_inversion.compare_inversions(settings, work, None)
    assert again.text == made.text and list(again.rows) == list(made.rows)
    np.testing.assert_array_equal(again.pictures[""], made.pictures[""])
