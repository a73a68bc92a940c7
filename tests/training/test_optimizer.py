"""The optimizer's directions."""

import jax.numpy as jnp
import numpy as np

from ge3d_jax.training.optimizer import adam


def test_splats_with_tiny_gradients_move_as_far_as_others():
    gradients = {"positions": jnp.asarray([1.0, -1e-4, 1e-8, -1e-11, 0.0])}
    state = adam().init(gradients)
    for _ in range(3):
        directions, state = adam().update(gradients, state)
        np.testing.assert_allclose(directions["positions"], [1, -1, 1, -1, 0], rtol=1e-3)
