"""ISM compared with LucidDreamer's public code: times, path and gradients (golden/losses)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import Draws
from ge3d_jax.guidance.base import DrawKeys, Progress
from ge3d_jax.guidance.ism import ISM
from tests.guidance import golden, smooth, stepwise

CASES = ("perp_neg_early", "plain_middle", "perp_neg_late")


def _as_run(name):
    """The case, the loss with its settings, the random draws, and the progress."""
    case = golden.load_case("ism", name)
    settings = case.settings
    loss = ISM(delta_end=settings["delta_range"][1])
    assert settings["warmup_iterations"] == loss.warm_up_iterations
    drawn = Draws(
        shared={"index": jnp.int32(settings["index_drawn"])},
        per_view={"noise": jnp.asarray(case.noise, jnp.result_type(float))},
    )
    return case, loss, drawn, Progress(jnp.int32(settings["iteration"]), 5000)


@pytest.mark.parametrize("name", CASES)
def test_times_are_those_of_the_authors(name):
    case, loss, drawn, progress = _as_run(name)
    settings = case.settings
    assert [loss.lowest, int(loss.index_bound(progress))] == settings["index_range"]
    delta = loss.delta(progress, has_perp_neg="weights" in settings)
    assert int(delta) == settings["delta"]
    index = drawn.shared["index"]
    times, steps = loss.times(index, jnp.maximum(index - delta, 0))
    assert times[: int(steps) + 1].tolist() == settings["times"]
    assert np.all(times[int(steps) + 1 :] == index + 1) and len(times) == loss.inversion_steps + 2


def test_delta_is_rounded_down_and_with_perp_neg_up():
    loss, progress = ISM(delta_end=80), Progress(jnp.int32(700), 5000)
    assert int(loss.delta(progress, has_perp_neg=False)) == 90
    assert int(loss.delta(progress, has_perp_neg=True)) == 91
    after = Progress(jnp.int32(1500), 5000)
    assert {int(loss.delta(after, has_perp_neg=kind)) for kind in (False, True)} == {80}


@pytest.mark.parametrize("name", CASES)
def test_gradient_through_the_network(name):
    case, loss, drawn, progress = _as_run(name)
    text = stepwise.mixed_texts(case)
    gradient, numbers = stepwise.gradient_of(loss, case.latents, text, drawn, progress)
    assert golden.largest_difference(gradient, case["gradient"]) < 5e-5
    assert numbers["time"] == case.settings["times"][-1]
    assert numbers["active_nodes"] == len(case.settings["times"]) - 1
    losses = np.sum((case["gradient"] / loss.strength) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(numbers["loss"], losses, rtol=1e-4)


@pytest.mark.parametrize("name", CASES[1:])
def test_gradient_from_stored_predictions_in_float64(name):
    with jax.enable_x64(True):
        case, loss, drawn, progress = _as_run(name)
        text = stepwise.mixed_texts(case)
        times, states = case.settings["times"], case["states"]
        answers = [
            golden.Answer(epsilon, time, text.empty, state)
            for epsilon, time, state in zip(case["epsilon_inversion"], times, states, strict=False)
        ]
        texts = [text.negative, text.positive, *jnp.moveaxis(text.avoided, 1, 0)]
        answers += [
            golden.Answer(epsilon, times[-1], asked, states[-1])
            for epsilon, asked in zip(case["epsilon_branches"], texts, strict=True)
        ]
        denoiser = golden.stored_denoiser(answers)
        path = jax.jit(lambda z: loss.path(z, text, drawn, denoiser, progress))(
            golden.see(case.latents).latents
        )
        assert golden.largest_difference(path.states[: len(states)], states) < 1e-5
        gradient, _ = golden.gradient_of(loss, case.latents, text, drawn, denoiser, progress)
    assert golden.largest_difference(gradient, case["gradient"]) < 1e-5


def test_an_index_below_delta_starts_at_the_first_time():
    loss = ISM()
    times, steps = loss.times(jnp.int32(20), jnp.int32(0))
    assert int(steps) == 1 and times[:2].tolist() == [1, 21]


def test_the_path_to_an_index_below_delta_has_no_time_before_the_first():
    world, loss = smooth.world(has_perp_neg=False), ISM()
    drawn = Draws(shared={"index": jnp.int32(20)}, per_view=world.drawn(loss, 5000).per_view)
    path = loss.path(world.latents, world.text, drawn, world.denoiser, world.progress(5000))
    assert int(path.active) == 1 and path.times[:2].tolist() == [1, 21]


def test_too_few_steps_begin_above_the_first_time():
    loss = ISM(inversion_steps=2, inversion_step=100)
    times, steps = loss.times(jnp.int32(500), jnp.int32(450))
    assert times.tolist() == [251, 351, 451, 501] and int(steps) == 3


def test_draws_keep_their_range():
    loss = ISM(lowest=20, highest=24, warm_up_range=2, delta_end=3, delta_start=5)

    def draw(seed, iteration):
        keys = DrawKeys(*jax.random.split(jax.random.key(seed), 3))
        drawn = loss.draw(keys, Progress(iteration, 3000), (2, 4, 4, 4))
        return drawn.shared["index"], drawn.per_view["noise"]

    draw = jax.jit(jax.vmap(draw, in_axes=(0, None)))
    for iteration, above in ((0, 26), (1500, 24)):
        indices, noise = draw(jnp.arange(400), jnp.int32(iteration))
        assert sorted(set(np.asarray(indices).tolist())) == list(range(20, above))
    assert loss.latest_time == 26
    # The views share the per-channel noise offset.
    assert noise.shape == (400, 2, 4, 4, 4)
    means = jnp.mean(noise, axis=(2, 3))
    assert float(jnp.mean(means[:, 0] * means[:, 1])) == pytest.approx(0.01, abs=0.005)


@pytest.mark.parametrize(
    "changes", [{"lowest": 0}, {"highest": 20}, {"delta_end": 0}, {"warm_up_iterations": 0}, {"highest": 521}]
)
def test_settings_that_cannot_be(changes):
    (name,) = changes
    with pytest.raises(UserError, match=name):
        dataclasses.replace(ISM(), **changes)
