"""PFD compared with a plain loop and with SDI, its limit. The authors' code was not available."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.schedule import ddim_step, predict_x0
from ge3d_jax.guidance.pfd import PFD
from ge3d_jax.guidance.sdi import SDI
from tests.guidance import golden, smooth


# In the first iteration, every step of the path is taken.
@pytest.mark.parametrize(
    ("has_perp_neg", "iteration", "first"), [(False, 6_000, 542), (True, 6_000, 542), (False, 0, 980)]
)
def test_residual_equals_a_plain_loop(has_perp_neg, iteration, first):
    with jax.enable_x64(True):
        loss = PFD(path_step=130)
        world = smooth.world(has_perp_neg=has_perp_neg)
        drawn, progress = world.drawn(loss, iteration=iteration), world.progress(iteration)
        gradient, numbers = world.gradient_of(loss, drawn, progress)
        t = int(loss.time(progress))
        inversion = loss.path(world.latents, world.text, drawn, world.denoiser, progress)
        x = loss.noised(world.latents, inversion, jnp.int32(t), world.denoiser)
        for now in range(t, 0, -130):
            branches = world.denoiser.branches(x, now, world.text, world.text.negative)
            epsilon = branches.guided_from_text(7.5)
            clean = predict_x0(world.schedule, x, epsilon, now)
            x = ddim_step(world.schedule, x, epsilon, now, max(now - 130, 0))
        difference = np.asarray(world.latents - clean)
    assert t == first and golden.largest_difference(gradient, difference / difference.size) < 1e-10
    squares = np.sum(difference**2, axis=(1, 2, 3))
    np.testing.assert_allclose(numbers["loss"], squares / (2 * difference[0].size))


def test_one_time_is_sdi():
    with jax.enable_x64(True):
        world = smooth.world(has_perp_neg=False)
        progress = world.progress(3_000)
        drawn = world.drawn(SDI(), iteration=3_000)
        expected, _ = world.gradient_of(SDI(), drawn, progress)
        one, _ = world.gradient_of(PFD(path_step=1000), drawn, progress)
        many, _ = world.gradient_of(PFD(path_step=300), drawn, progress)
    # Two separate programs, which may round differently.
    assert golden.largest_difference(one, expected) < 1e-12
    assert golden.largest_difference(many, expected) > 1e-2


def test_the_way_down_has_no_idle_passes():
    world = smooth.world(has_perp_neg=False)
    loss, calls = PFD(path_step=100), []
    denoiser = world.counting(calls)
    jax.jit(lambda: loss.path_down(world.latents, jnp.int32(250), world.text, denoiser))()
    jax.effects_barrier()
    assert sorted(calls) == [50, 150, 250] and loss.path_steps == 10


def test_settings_that_cannot_be():
    with pytest.raises(UserError, match="path_step"):
        PFD(path_step=0)
