"""The sampler with networks whose predictions are known; test_golden.py uses the published networks."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.scenes.start.point_e import sampler
from ge3d_jax.scenes.start.point_e.sampler import EPSILON, VELOCITY, Stage, alphas_cumprod, make_plan

STAGE = Stage(steps=6, prediction=VELOCITY)
SIGNAL = jnp.asarray(alphas_cumprod(STAGE.schedule), jnp.float32)
CLOUD = 0.4 * jax.random.normal(jax.random.key(0), (2, 5, 6))


def predict_noise(seen, times, clean):
    """The noise in `seen`, given the clean cloud."""
    kept = SIGNAL[times][:, None, None]
    return (seen - jnp.sqrt(kept) * clean) / jnp.sqrt(1 - kept)


def predict_velocity(seen, times, clean):
    kept = SIGNAL[times][:, None, None]
    return jnp.sqrt(kept) * predict_noise(seen, times, clean) - jnp.sqrt(1 - kept) * clean


@pytest.mark.parametrize("step", [0, 3, 5])
def test_a_velocity_says_what_was_without_noise(step):
    level = jax.tree.map(lambda leaf: leaf[step], make_plan(STAGE).first)
    x = CLOUD + level.sigma * jax.random.normal(jax.random.key(1), CLOUD.shape)
    clean = sampler.denoise(partial(predict_velocity, clean=CLOUD), x, level, scale=1.0, guided=False)
    # At the highest noise level, x is a hundred times as large as the cloud in it.
    np.testing.assert_allclose(clean, CLOUD, atol=2e-4 if step else 2e-2)


def test_guidance_goes_on_from_without_the_condition_to_with_it():
    level = jax.tree.map(lambda leaf: leaf[4], make_plan(STAGE).first)
    x = CLOUD + level.sigma * jax.random.normal(jax.random.key(1), CLOUD.shape)
    both = jnp.concatenate([0.5 * CLOUD, 0.2 * CLOUD])
    clean = sampler.denoise(partial(predict_velocity, clean=both), x, level, scale=3.0, guided=True)
    np.testing.assert_allclose(clean, 1.1 * CLOUD, atol=2e-3)


@pytest.mark.parametrize(("predict", "prediction"), [(predict_noise, EPSILON), (predict_velocity, VELOCITY)])
def test_both_kinds_of_networks_lead_to_the_same_cloud(predict, prediction):
    way = sampler.sample(
        partial(predict, clean=CLOUD),
        make_plan(dataclasses.replace(STAGE, prediction=prediction)),
        jax.random.normal(jax.random.key(2), CLOUD.shape),
        jnp.zeros((STAGE.steps, *CLOUD.shape)),
        guided=False,
    )
    np.testing.assert_allclose(way.clean[-1], CLOUD, atol=1e-3)


def test_a_few_steps_add_no_more_noise_than_the_published_most():
    for steps, factor in ((2, np.sqrt(2)), (6, np.sqrt(2)), (8, 1 + 3 / 8)):
        stage = Stage(steps=steps)
        np.testing.assert_allclose(stage.churned(), factor * stage.sigmas()[:-1], rtol=1e-12)
