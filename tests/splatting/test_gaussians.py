"""Creation of splats at the limits of what can be stored."""

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.splatting.gaussians import make_gaussians


def test_splats_without_extent_and_with_the_extreme_opacities_are_finite():
    splats = make_gaussians(
        jnp.zeros((2, 3)), jnp.ones((2, 3)), jnp.zeros(2), jnp.array([0.0, 1.0]), capacity=2
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(splats))
    np.testing.assert_allclose(jax.nn.sigmoid(splats.opacity_logits), [0.0, 1.0], atol=2e-6)
    assert float(jnp.exp(splats.log_scales).max()) < 1e-7
