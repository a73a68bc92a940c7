"""CDS compared with Consistent3D's code: whole iterations, stored predictions, and annealing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import Draws
from ge3d_jax.diffusion.schedule import add_noise
from ge3d_jax.guidance.base import Progress
from ge3d_jax.guidance.cds import CDS
from tests.guidance import golden, stepwise
from tests.guidance.golden import Answer

STAGES = {
    "coarse": CDS(),
    "refine": CDS(lower=(300, 20), scale=(100.0, 30.0)),
    "texture": CDS(lower=(500, 20), scale=(50.0, 50.0), anneal_iterations=5000),
}
# Case → the stage whose settings it uses.
CASES = {"start": "coarse", "middle": "coarse", "texture_rescaled": "texture"}
WEIGHTINGS = {"sds": "variance", "uniform": "uniform"}
ITERATIONS = 5000


def _texts(case):
    # As in the published configurations, the negative prompt is empty.
    return case.texts(negative="")


def _iteration(name, denoiser):
    case = golden.load_case("cds", name)
    settings = case.settings
    loss = dataclasses.replace(
        STAGES[CASES[name]],
        weighting=WEIGHTINGS[settings["weighting"]],
        recon_std_rescale=settings["recon_std_rescale"],
    )
    (lower,) = set(settings["t_lower"])
    shared = {"noise": jnp.asarray(case["noise"]), "lower": jnp.int32(lower)}
    drawn = Draws(shared=shared, per_view={"times": jnp.asarray(case.times)})
    progress = Progress(settings["step"], ITERATIONS)
    return golden.gradient_of(loss, case.latents, _texts(case), drawn, denoiser, progress)


@pytest.mark.parametrize("name", CASES)
def test_an_iteration_with_the_network_equals_the_authors(name):
    case = golden.load_case("cds", name)
    with jax.disable_jit():
        gradient, numbers = _iteration(name, stepwise.network(len(case.latents)))
    # Differences of nearby predictions lose digits.
    assert golden.largest_difference(gradient, case["gradient"]) < 3e-4
    np.testing.assert_array_equal(numbers["time"], case.times)
    assert np.mean(numbers["clipped"]) == pytest.approx(case.settings["clipped_share"], abs=2e-3)


@pytest.mark.parametrize("name", CASES)
def test_stored_predictions_give_the_gradient(name):
    case = golden.load_case("cds", name)
    texts = _texts(case)
    lower = case.settings["t_lower"]
    with jax.enable_x64(True):
        noised = add_noise(golden.schedule(), case.latents, case.noise, case.times)
        answers = [
            Answer(case["epsilon_text"], case.times, texts.positive, case["noised"]),
            Answer(case["epsilon_negative"], case.times, texts.negative, case["noised"]),
            # The loss has to reach x_t' by itself.
            Answer(case["epsilon_text_lower"], lower, texts.positive, case["noised_lower"]),
            Answer(case["epsilon_negative_lower"], lower, texts.negative, case["noised_lower"]),
        ]
        gradient, numbers = _iteration(name, golden.stored_denoiser(answers))
    assert gradient.dtype == np.float64
    assert golden.largest_difference(noised, case["noised"]) < 1e-6
    assert golden.largest_difference(gradient, case["gradient"]) < 2e-6
    assert np.mean(numbers["clipped"]) == pytest.approx(case.settings["clipped_share"], abs=1e-3)
    residual = case["gradient"].astype(float) * len(case.latents)
    np.testing.assert_allclose(numbers["loss"], 0.5 * np.sum(residual**2, axis=(1, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_the_annealing_equals_the_authors_tables(stage):
    tables = golden.load_tables("cds")
    steps, table = tables[f"{stage}/steps"], tables[f"{stage}/t_lower_guidance_clip"]
    lower, scale, clip = (each[steps] for each in STAGES[stage].schedule(ITERATIONS + 1))
    np.testing.assert_array_equal(lower, table[:, 0])
    np.testing.assert_allclose([scale, clip], table[:, 1:].T, rtol=1e-12)


def test_one_noise_serves_the_whole_run_and_times_stay_within_their_bounds():
    loss, shape = CDS(), (2000, 2, 2, 4)
    drawn = [loss.draw(golden.draw_keys(k), Progress(k, 3000), shape) for k in (0, 1400)]
    assert drawn[0].shared["noise"].shape == (1, 2, 2, 4)
    np.testing.assert_array_equal(drawn[0].shared["noise"], drawn[1].shared["noise"])
    assert [int(each.shared["lower"]) for each in drawn] == [700, 290]
    first, middle = (np.asarray(each.per_view["times"]) for each in drawn)
    assert first.min() == 800 and first.max() == 980 == loss.latest_time
    assert middle.min() == 390 and middle.max() == 290 + 299
    assert CDS(lower=(300, 20)).latest_time == 599


def test_nan_is_not_hidden():
    case = golden.load_case("cds", "start")
    answers = [Answer(case["epsilon_text"], 5, _texts(case).positive)]
    gradient, _ = _iteration("start", golden.stored_denoiser(answers))
    assert np.all(np.isnan(gradient))


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"weighting": "sds"}, "weighting"),
        ({"anneal_iterations": 0}, "anneal_iterations"),
        ({"recon_std_rescale": 1.5}, "recon_std_rescale"),
        ({"lower": (1000, 100)}, "lower"),
        ({"gap": (200, 100)}, "gap"),
        ({"gap": (0, 100)}, "gap"),
        ({"highest": 750}, "highest"),
        ({"highest": 1000}, "highest"),
        ({"clip": (0.0, 8.0)}, "clip"),
    ],
)
def test_bad_settings_are_named(settings, name):
    with pytest.raises(UserError, match=f"The setting {name} "):
        CDS(**settings)
