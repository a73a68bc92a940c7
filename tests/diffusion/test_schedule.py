"""The schedule and the DDIM step: round trips, closed forms, order of convergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion import schedule as ddim
from ge3d_jax.diffusion.weights.config_files import BETA_SCHEDULES

STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
SCHEDULE = ddim.noise_schedule_from_config(STABLE_DIFFUSION)
V_SCHEDULE = ddim.noise_schedule_from_config({**STABLE_DIFFUSION, "prediction_type": "v_prediction"})
times = st.integers(0, 999)
seeds = st.integers(0, 2**31 - 1)


def _normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def test_alphas_follow_the_betas_of_stable_diffusion():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    product, expected = 1.0, []
    for beta in betas:
        product *= 1 - beta
        expected.append(product)
    np.testing.assert_allclose(SCHEDULE.alphas_cumprod, expected, rtol=1e-6)
    assert SCHEDULE.steps == 1000


def test_alphas_of_the_cosine_schedule():
    config = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100}
    alphas = np.asarray(ddim.noise_schedule_from_config(config).alphas_cumprod)
    share = (np.arange(101) / 100 + 0.008) / 1.008
    expected = np.cos(0.5 * np.pi * share) ** 2
    # The last beta is capped.
    np.testing.assert_allclose(alphas[:-1], expected[1:-1] / expected[0], rtol=1e-4)
    assert alphas[-1] == pytest.approx(0.001 * alphas[-2], rel=1e-3)


def test_what_a_config_does_not_say_is_as_in_diffusers():
    expected = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(ddim.noise_schedule_from_config({}).alphas_cumprod, expected, rtol=1e-4)


@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_alphas_decrease_between_one_and_zero(name):
    alphas = np.asarray(ddim.noise_schedule_from_config({"beta_schedule": name}).alphas_cumprod)
    assert alphas[0] < 1 and alphas[-1] > 0 and np.all(np.diff(alphas) < 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("beta_schedule", "sigmoid"),
        ("prediction_type", "sample"),
        ("rescale_betas_zero_snr", True),
        ("rescale_betas_zero_snr", 1),
        ("trained_betas", []),
        ("trained_betas", [0.1, 1.0]),
        ("trained_betas", [0.1, "0.1"]),
        ("trained_betas", 0.1),
        ("beta_start", 0),
        ("beta_start", float("nan")),
        ("beta_end", 1.0),
        ("beta_end", "0.012"),
        ("num_train_timesteps", 10**9),
        ("num_train_timesteps", 1),
        ("num_train_timesteps", 1000.5),
        ("num_train_timesteps", True),
        ("num_train_timesteps", float("inf")),
        ("beta_schedule", ["linear"]),
        ("timestep_spacing", "trialing"),
    ],
)
def test_unsupported_settings_are_named(key, value):
    with pytest.raises(UserError, match=key):
        ddim.noise_schedule_from_config({**STABLE_DIFFUSION, key: value})


def test_trained_betas_are_taken_as_they_are():
    betas = [0.1, 0.2, 0.3]
    schedule = ddim.noise_schedule_from_config({"trained_betas": betas, "num_train_timesteps": 1000})
    np.testing.assert_allclose(schedule.alphas_cumprod, [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7], rtol=1e-6)


def test_zero_terminal_snr():
    """Algorithm 1 of arXiv 2305.08891, number by number; the last value stays above zero."""
    config = {**STABLE_DIFFUSION, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    schedule = ddim.noise_schedule_from_config(config)
    signal = np.sqrt(np.asarray(SCHEDULE.alphas_cumprod, np.float64))
    expected = [((value - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2 for value in signal]
    np.testing.assert_allclose(schedule.alphas_cumprod[:-1], expected[:-1], rtol=1e-4)
    assert 0 < schedule.alphas_cumprod[-1] < 1e-6
    # A step from pure noise keeps the network's prediction of the picture: x0 = −v if no signal is left.
    x, v = _normal(0, 1, 4, 4, 1), _normal(1, 1, 4, 4, 1)
    epsilon = ddim.epsilon_from_output(schedule, v, x, 999)
    np.testing.assert_allclose(ddim.predict_x0(schedule, x, epsilon, 999), -v, atol=3e-3)


def test_schedules_that_leave_nothing_of_a_picture_are_refused():
    with pytest.raises(UserError, match="betas up to 0.5 leave .* of an image after 1000 steps"):
        ddim.noise_schedule_from_config({"beta_end": 0.5})


def test_schedulers_of_other_models_and_switches_that_do_nothing_are_said():
    with pytest.raises(
        UserError, match="FlowMatchEulerDiscreteScheduler, which belongs to models like Stable Diffusion 3"
    ):
        ddim.noise_schedule_from_config({"_class_name": "FlowMatchEulerDiscreteScheduler"})
    with pytest.warns(UserWarning, match="thresholding is not applied"):
        ddim.noise_schedule_from_config({**STABLE_DIFFUSION, "thresholding": True})
    for kind in ("LCMScheduler", "TCDScheduler"):
        with pytest.warns(UserWarning, match=f"made for {kind}"):
            ddim.noise_schedule_from_config({**STABLE_DIFFUSION, "_class_name": kind})


@settings(max_examples=30, deadline=None)
@given(seeds, st.lists(times, min_size=2, max_size=6))
def test_with_constant_epsilon_every_closed_path_returns(seed, path):
    x, epsilon = _normal(seed, 2, 2, 3, 3, 4)
    state = x
    for s, t in zip(path, path[1:] + path[:1], strict=True):
        state = ddim.ddim_step(SCHEDULE, state, epsilon, s, t)
    # 1/√ᾱ reaches 15 and amplifies rounding errors.
    np.testing.assert_allclose(state, x, atol=2e-4)


@settings(max_examples=30, deadline=None)
@given(seeds, times, times)
def test_the_true_epsilon_of_one_data_point_steps_exactly(seed, s, t):
    data, noise = _normal(seed, 2, 2, 3, 3, 4)
    x_s = ddim.add_noise(SCHEDULE, data, noise, s)
    alpha = SCHEDULE.alphas_cumprod[s]
    epsilon = (x_s - jnp.sqrt(alpha) * data) / jnp.sqrt(1 - alpha)
    moved = ddim.ddim_step(SCHEDULE, x_s, epsilon, s, t)
    # 1 − ᾱ_0 ≈ 1e-3, and dividing by its square root costs two digits.
    np.testing.assert_allclose(moved, ddim.add_noise(SCHEDULE, data, noise, t), atol=2e-3)
    np.testing.assert_allclose(ddim.predict_x0(SCHEDULE, x_s, epsilon, s), data, atol=2e-3)


def test_the_error_on_a_gaussian_falls_as_one_over_the_steps():
    # x_0 ~ N(m, d²): ε is linear in x and the ODE carries each quantile to the same quantile.
    mean, deviation = 0.7, 0.4
    # More times than steps, so that the nodes are placed accurately; float64, to avoid rounding errors.
    with jax.enable_x64():
        betas = np.linspace((0.00085 / 64) ** 0.5, (0.012 / 64) ** 0.5, 64_000) ** 2
        schedule = ddim.NoiseSchedule(jnp.asarray(np.cumprod(1 - betas)))

        def moments(t):
            alpha = schedule.alphas_cumprod[t]
            return jnp.sqrt(alpha) * mean, jnp.sqrt(alpha * deviation**2 + 1 - alpha)

        def exact_epsilon(x, t):
            center, spread = moments(t)
            return jnp.sqrt(1 - schedule.alphas_cumprod[t]) * (x - center) / spread**2

        def error(steps, first, last):
            nodes = np.linspace(first, last, steps + 1).round().astype(int)
            quantiles = jnp.linspace(-2.0, 2.0, 9)
            center, spread = moments(nodes[0])
            x = center + spread * quantiles
            for s, t in zip(nodes[:-1], nodes[1:], strict=True):
                x = ddim.ddim_step(schedule, x, exact_epsilon(x, s), s, t)
            center, spread = moments(nodes[-1])
            return float(jnp.max(jnp.abs(x - (center + spread * quantiles))))

        for first, last in ((6_400, 57_600), (57_600, 6_400)):
            errors = [error(steps, first, last) for steps in (16, 32, 64, 128)]
            orders = np.log2(np.asarray(errors[:-1]) / np.asarray(errors[1:]))
            assert np.all(np.abs(orders[1:] - 1.0) < 0.1), (errors, orders)


@settings(max_examples=30, deadline=None)
@given(seeds, times)
def test_velocity_and_epsilon_agree(seed, t):
    data, noise = _normal(seed, 2, 2, 3, 3, 4)
    x_t = ddim.add_noise(V_SCHEDULE, data, noise, t)
    output = ddim.velocity(V_SCHEDULE, data, noise, t)
    epsilon = ddim.epsilon_from_output(V_SCHEDULE, output, x_t, t)
    np.testing.assert_allclose(epsilon, noise, atol=1e-5)
    assert ddim.epsilon_from_output(SCHEDULE, noise, x_t, t) is noise


@settings(max_examples=10, deadline=None)
@given(seeds, st.tuples(times, times, times), st.tuples(times, times, times))
def test_one_time_per_sample_equals_sample_by_sample(seed, starts, ends):
    x, epsilon = _normal(seed, 2, 3, 2, 2, 4)
    together = ddim.ddim_step(SCHEDULE, x, epsilon, jnp.array(starts), jnp.array(ends))
    apart = [
        ddim.ddim_step(SCHEDULE, x[i], epsilon[i], s, t)
        for i, (s, t) in enumerate(zip(starts, ends, strict=True))
    ]
    np.testing.assert_allclose(together, jnp.stack(apart), rtol=1e-6)
