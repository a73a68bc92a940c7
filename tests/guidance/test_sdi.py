"""SDI compared with threestudio's public code: times, inversion and gradients (golden/losses)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import Draws
from ge3d_jax.diffusion.schedule import add_noise
from ge3d_jax.guidance.base import DrawKeys, Progress
from ge3d_jax.guidance.sdi import SDI
from tests.guidance import golden, stepwise

CASES = ("early", "middle", "late_plain")
ITERATIONS = 10_000
# The variant of the authors' code.
LITERAL = SDI(consistent=False)


def as_run(name):
    """The case, its text embeddings, random draws, and progress."""
    case = golden.load_case("sdi", name)
    settings, stored = case.settings, case["step_noises"]
    noises = np.zeros((1, SDI().inversion_steps, *stored.shape[2:]))
    noises[0, : len(stored)] = stored[:, 0]
    drawn = Draws(
        shared={"beyond": jnp.int32(int(100 * settings["uniform_draw"]))},
        per_view={"noises": jnp.asarray(noises, jnp.result_type(float))},
    )
    progress = Progress(jnp.int32(settings["step"]), ITERATIONS)
    return case, case.texts(golden.TAIL, negative=""), drawn, progress


def stored_inversion(case, text):
    """The answers along the inversion: both texts give the guided prediction, so guidance has no effect."""
    return [
        golden.Answer(epsilon, time, asked, state)
        for epsilon, time, state in zip(
            case["inversion_epsilon"], case.settings["times"], case["states"], strict=False
        )
        for asked in (text.positive, text.negative)
    ]


def test_times_of_the_run_are_those_of_the_authors():
    tables = golden.load_tables("schedules")
    time = jax.vmap(lambda step: SDI().time(Progress(step, ITERATIONS)))
    np.testing.assert_array_equal(time(jnp.asarray(tables["sdi/steps"])), tables["sdi/t"])


def test_the_time_stays_after_its_last_iteration():
    assert int(SDI(anneal_iterations=100).time(Progress(jnp.int32(150), 200))) == 250


@pytest.mark.parametrize("name", CASES)
def test_times_of_the_inversion_are_those_of_the_authors(name):
    case, _, drawn, progress = as_run(name)
    t = SDI().time(progress)
    assert int(t) == case.settings["t"]
    times, steps = SDI().times(t, drawn.shared["beyond"])
    assert times[: int(steps) + 1].tolist() == case.settings["times"]
    assert np.all(times[int(steps) :] == times[int(steps)])


def test_a_time_below_zero_has_the_noise_of_time_zero():
    z, noise = jax.random.normal(jax.random.key(0), (2, 1, 2, 2, 4))
    for t in (jnp.int32(-99), jnp.full(1, -99)):
        at_zero = add_noise(golden.schedule(), z, noise, 0)
        np.testing.assert_array_equal(add_noise(golden.schedule(), z, noise, t), at_zero)


@pytest.mark.parametrize(("t", "last"), [(101, [-99, 1, 200]), (102, [-99, 1, 101, 201]), (950, 999)])
def test_the_inversion_goes_through_times_below_t(t, last):
    times, steps = SDI().times(jnp.int32(t), jnp.int32(99))
    found = times[: int(steps) + 1].tolist()
    assert found == last or found[-1] == last


@pytest.mark.parametrize("name", CASES)
def test_gradient_through_the_network(name):
    case, text, drawn, progress = as_run(name)
    gradient, numbers = stepwise.gradient_of(LITERAL, case.latents, text, drawn, progress)
    assert golden.largest_difference(gradient, case["gradient"]) < 3e-4
    assert numbers["time"] == case.settings["t"]
    assert numbers["active_nodes"] == len(case.settings["times"]) - 1
    size = case.latents[0].size
    np.testing.assert_allclose(numbers["loss"], size / 2 * np.sum(case["gradient"] ** 2), rtol=1e-3)


def test_literal_form_from_stored_predictions_in_float64():
    with jax.enable_x64(True):
        case, text, drawn, progress = as_run("late_plain")
        answers = stored_inversion(case, text) + [
            golden.Answer(epsilon, case.settings["t"], asked, case["states"][-1])
            for epsilon, asked in zip(case["epsilon_branches"], (text.positive, text.negative), strict=True)
        ]
        denoiser = golden.stored_denoiser(answers)
        path = jax.jit(lambda z: LITERAL.path(z, text, drawn, denoiser, progress))
        states = path(golden.see(case.latents).latents).states[: len(case["states"])]
        assert golden.largest_difference(states, case["states"]) < 1e-5
        gradient, _ = golden.gradient_of(LITERAL, case.latents, text, drawn, denoiser, progress)
    assert golden.largest_difference(gradient, case["gradient"]) < 1e-4


def test_consistent_form_from_stored_predictions_in_float64():
    with jax.enable_x64(True):
        case, text, drawn, progress = as_run("late_plain")
        t, table = case.settings["t"], np.asarray(golden.schedule().alphas_cumprod)
        noised = np.sqrt(table[t]) * case.latents + np.sqrt(1 - table[t]) * case["inversion_noise"]
        with_text, without = case["epsilon_branches"]
        answers = stored_inversion(case, text) + [
            golden.Answer(with_text, t, text.positive, noised),
            golden.Answer(without, t, text.negative, noised),
        ]
        denoiser = golden.stored_denoiser(answers)
        gradient, _ = golden.gradient_of(SDI(), case.latents, text, drawn, denoiser, progress)
    guided = without + 8.5 * (with_text - without)
    ratio = np.sqrt((1 - table[t]) / table[t])
    expected = ratio * (guided - case["inversion_noise"]) / case.latents[0].size
    assert golden.largest_difference(gradient, expected) < 1e-4


def test_views_of_other_devices_count():
    case, text, drawn, progress = as_run("late_plain")

    def residual(count):
        seen = dataclasses.replace(golden.see(case.latents), count=count)
        scalar = lambda z: LITERAL(  # noqa: E731
            (), dataclasses.replace(seen, latents=z), text, drawn, stepwise.network(1), progress
        )
        with jax.disable_jit():
            return jax.grad(scalar, has_aux=True)(seen.latents)[0]

    np.testing.assert_allclose(residual(4), residual(1) / 4, rtol=1e-6)


def test_draws():
    loss = SDI(inversion_step=300)
    keys = DrawKeys(*jax.random.split(jax.random.key(0), 3))
    drawn = loss.draw(keys, Progress(0, 10), (2, 3, 3, 4))
    assert drawn.per_view["noises"].shape == (2, loss.inversion_steps, 3, 3, 4)
    draw = jax.vmap(
        lambda key: SDI(inversion_step=3).draw(DrawKeys(key, key, key), Progress(0, 10), (1, 1, 1, 1))
    )
    beyond = draw(jax.random.split(jax.random.key(1), 100)).shared["beyond"]
    assert set(np.asarray(beyond).tolist()) == {0, 1, 2}


@pytest.mark.parametrize("step", [1, 7, 100, 300, 2000])
def test_steps_suffice_for_every_time(step):
    loss = SDI(inversion_step=step)
    for t in (250, 979, loss.latest_time):
        times, steps = loss.times(jnp.int32(t), jnp.int32(0))
        assert int(steps) <= loss.inversion_steps and times[-1] == t and np.all(np.diff(times) >= 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"inversion_step": 0},
        {"inversion_noise": -0.1},
        {"anneal_iterations": 0},
        {"time_share": (1.0, 0.2)},
        {"time_share": (0.9, 0.001)},
    ],
)
def test_settings_that_cannot_be(changes):
    (name,) = changes
    with pytest.raises(UserError, match=name):
        SDI(**changes)
