"""FPS compared with DreamScene's public code: nodes and gradients (golden/losses)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import Draws
from ge3d_jax.diffusion.denoiser import ViewTexts
from ge3d_jax.guidance.base import DrawKeys, Progress
from ge3d_jax.guidance.fps import FPS
from ge3d_jax.guidance.trajectories import offset_noise
from tests.guidance import golden, stepwise

CASES = ("start", "middle", "end")
ITERATIONS = 1500


def _as_run(name):
    """The case, its text embeddings, random draws, and progress."""
    case = golden.load_case("fps", name)
    settings = case.settings
    progress = Progress(jnp.int32(round(settings["stage_step_rate"] * ITERATIONS)), ITERATIONS)
    # A path that stopped early has fewer jumps; the padding exceeds any bound.
    jumps = (settings["jumps_drawn"] + [224] * 3)[:4]
    node_times, active = FPS().nodes(jnp.asarray(jumps, jnp.int32), FPS().bound_at(progress))
    drawn = Draws(
        shared={"node_times": node_times, "active": active},
        per_view={"noise": jnp.asarray(case.noise, jnp.result_type(float))},
    )
    positive = jnp.stack([golden.embedding(prompt) for prompt in settings["prompts"]])
    text = ViewTexts(
        positive=positive,
        avoided=jnp.zeros((len(positive), 0, *positive.shape[1:])),
        weights=jnp.zeros((len(positive), 0)),
        negative=jnp.asarray(golden.embedding(golden.NEGATIVE)),
        empty=jnp.asarray(golden.embedding("")),
        plain=positive[0],
    )
    return case, text, drawn, progress


@pytest.mark.parametrize("name", CASES)
def test_nodes_are_those_of_the_authors(name):
    case, _, drawn, progress = _as_run(name)
    assert int(FPS().bound_at(progress)) == case.settings["bound"]
    active, times = int(drawn.shared["active"]), drawn.shared["node_times"]
    assert times[: active + 1].tolist() == case.settings["times"]
    assert np.all(times[active:] == times[active]) and len(times) == 5


@pytest.mark.parametrize(
    ("jumps", "bound", "times"),
    [
        ([200, 200, 200, 200], 800, [1, 201, 401, 601]),  # The bound itself is excluded.
        ([200, 200, 200, 200], 801, [1, 201, 401, 601, 801]),
        ([200, 200, 200, 200], 100, [1, 201]),  # The first jump is always made.
    ],
)
def test_the_bound_stops_later_jumps(jumps, bound, times):
    found, active = FPS().nodes(jnp.asarray(jumps), jnp.int32(bound))
    assert found[: int(active) + 1].tolist() == times


@pytest.mark.parametrize("name", CASES)
def test_gradient_through_the_network(name):
    case, text, drawn, progress = _as_run(name)
    gradient, numbers = stepwise.gradient_of(FPS(), case.latents, text, drawn, progress)
    assert golden.largest_difference(gradient, case["gradient"]) < 5e-5
    assert numbers["active_nodes"] == len(case.settings["times"]) - 1
    assert numbers["loss"].shape == (len(case.latents),) and np.all(numbers["loss"] > 0)


def test_gradient_from_stored_predictions_in_float64():
    with jax.enable_x64(True):
        case, text, drawn, progress = _as_run("end")
        times, states = case.settings["times"], case["states"]
        answers = [golden.Answer(case["epsilon_first"], times[0], text.empty, states[0])]
        texts = [text.positive, text.negative, text.empty]
        for node, predictions in enumerate(case["epsilon_branches"], start=1):
            answers += [
                golden.Answer(epsilon, times[node], asked, states[node])
                for epsilon, asked in zip(predictions, texts, strict=True)
            ]
        denoiser = golden.stored_denoiser(answers)
        edits = jax.jit(lambda z: FPS().edits(z, text, drawn, denoiser))(golden.see(case.latents).latents)
        assert golden.largest_difference(edits.states[:2], states[1:]) < 1e-5
        np.testing.assert_array_equal(edits.differences[2:], 0)
        gradient, numbers = golden.gradient_of(FPS(), case.latents, text, drawn, denoiser, progress)
    assert golden.largest_difference(gradient, case["gradient"]) < 1e-5
    squares = np.sum(np.asarray(edits.differences) ** 2, axis=(0, 2, 3, 4))
    np.testing.assert_allclose(numbers["loss"], squares / 2, rtol=1e-6)


def test_draws_keep_their_range():
    loss = FPS(jump_min=10, jump_max=13, bound=(35, 25))

    def draw(seed, iteration):
        keys = DrawKeys(*jax.random.split(jax.random.key(seed), 3))
        return loss.draw(keys, Progress(iteration, 100), (1, 2, 2, 4)).shared

    draw = jax.jit(jax.vmap(draw, in_axes=(0, None)))
    for iteration, bound, counts in ((0, 35, {2, 3}), (100, 25, {2})):
        shared = draw(jnp.arange(400), jnp.int32(iteration))
        times, active = (np.asarray(shared[name]) for name in ("node_times", "active"))
        assert set(times[:, 1] - times[:, 0]) == {10, 11, 12} and set(active) == counts
        assert times.max() == bound <= loss.latest_time


def test_each_view_has_noise_of_its_own():
    keys = DrawKeys(*jax.random.split(jax.random.key(0), 3))
    drawn = FPS(offset_noise=0.4).draw(keys, Progress(3, 100), (2, 3, 3, 4))
    np.testing.assert_array_equal(drawn.per_view["noise"], offset_noise(keys.noise, (2, 3, 3, 4), 0.4))


def test_no_time_is_above_the_latest():
    assert FPS().latest_time == 850 and FPS(bound=(100, 100)).latest_time == 225


@pytest.mark.parametrize(
    "changes", [{"count": 0}, {"jump_min": 0}, {"jump_max": 175}, {"bound": (1000, 400)}]
)
def test_settings_that_cannot_be(changes):
    (name,) = changes
    with pytest.raises(UserError, match=name):
        dataclasses.replace(FPS(), **changes)
