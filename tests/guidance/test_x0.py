"""The loss that uses only the end of GE3D's path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import Draws
from ge3d_jax.guidance.ge3d import GE3D
from ge3d_jax.guidance.trajectories import Nodes
from ge3d_jax.guidance.x0 import X0
from tests.guidance import golden, smooth, stepwise


def test_the_end_of_the_authors_path():
    case = golden.load_case("ge3d", "k1")
    drawn = Draws(
        shared={"node_times": jnp.asarray(case.settings["node_times"], jnp.int32), "active": jnp.int32(6)},
        per_view={"noise": jnp.asarray(case.noise)},
    )
    text = stepwise.mixed_texts(case, "perp_neg/weights")
    gradient, numbers = stepwise.gradient_of(X0(), case.latents, text, drawn, smooth.World.progress(0))
    end = case["perp_neg/denoising_states"][0]
    assert golden.largest_difference(gradient, 0.1 * (case.latents - end)) < 5e-5
    np.testing.assert_allclose(numbers["loss"], case.settings["perp_neg/node_losses"][0], rtol=1e-4)
    assert numbers["active_nodes"] == 6


def test_settings_reach_the_trajectories():
    nodes = Nodes(count=3, jump_max=(150, 150), jump_min=(100, 100), max_step=(400, 400))
    loss = X0(scale=3.0, strength=0.5, noising_prompt="empty", offset_noise=0.4, nodes=nodes)
    with jax.enable_x64(True):
        world = smooth.world(has_perp_neg=True)
        progress = world.progress(5_000)
        same = GE3D(scale=3.0, noising_prompt="empty", offset_noise=0.4, nodes=nodes)
        drawn = world.drawn(loss, 5_000)
        for found, expected in zip(
            jax.tree.leaves(drawn), jax.tree.leaves(world.drawn(same, 5_000)), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
        gradient, _ = world.gradient_of(loss, drawn, progress)
        _, denoised = same.trajectories(world.latents, world.text, drawn, world.denoiser)
        expected = 0.5 * np.asarray(world.latents - denoised[0])
    assert golden.largest_difference(gradient, expected) < 1e-10
    assert loss.latest_time == same.latest_time


def test_settings_that_cannot_be():
    with pytest.raises(UserError, match="noising_prompt"):
        X0(noising_prompt="none")
