"""What every loss hands over: a scalar with a given gradient, and its norm over all devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.guidance.base import Loss, Progress, SeenViews, hand_over
from tests.guidance import fakes, golden


def test_the_residual_is_the_gradient_even_if_it_follows_from_the_latents():
    seen = golden.see(fakes.latents(2))

    def scalar(z):
        return hand_over(dataclasses.replace(seen, latents=z), jnp.sin(z), time=jnp.arange(2))

    gradient, numbers = jax.grad(scalar, has_aux=True)(seen.latents)
    np.testing.assert_allclose(gradient, jnp.sin(seen.latents), rtol=1e-6)
    assert numbers["time"].tolist() == [0, 1]


def test_the_norm_of_the_residual_counts_the_views_of_every_device():
    z = jnp.asarray(fakes.latents(4))
    whole = golden.see(fakes.latents(4))

    def norm(latents):
        seen = SeenViews(latents, whole.cameras, count=4, axis="devices")
        return hand_over(seen, 2.0 * latents)[1]["gradient_norm"]

    norms = jax.vmap(norm, axis_name="devices")(z.reshape(2, 2, *z.shape[1:]))
    np.testing.assert_allclose(norms, np.full(2, 2.0 * np.linalg.norm(z)), rtol=1e-6)
    alone = hand_over(whole, 2.0 * z)[1]["gradient_norm"]
    assert float(alone) == pytest.approx(2.0 * np.linalg.norm(z), rel=1e-6)


def test_a_run_goes_from_none_to_all_of_its_iterations():
    assert [float(Progress(k, 40).share) for k in (0, 10, 40)] == [0.0, 0.25, 1.0]


def test_a_loss_that_says_nothing_learns_nothing_and_has_no_target():
    loss = Loss()
    assert loss.begin(jax.random.key(0), None) == () and loss.steps_to_target is None
    assert not (loss.needs_source_views or loss.shares_learned or loss.uses_source)
    assert loss.views_together == 1 and loss.may_mirror
