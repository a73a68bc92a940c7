"""Random splats for the tests of splat files."""

import jax.numpy as jnp
import numpy as np

from ge3d_jax.splatting.gaussians import Gaussians


def random_gaussians(count: int, degree: int, seed: int = 0, dead: int = 0) -> Gaussians:
    """Splats of every kind, `dead` of them masked; quaternions of unit length."""
    rng = np.random.default_rng(seed)
    quaternions = rng.normal(size=(count, 4))
    mask = np.ones(count, bool)
    mask[rng.permutation(count)[:dead]] = False
    return Gaussians(
        positions=jnp.asarray(rng.normal(size=(count, 3)), jnp.float32),
        log_scales=jnp.asarray(rng.normal(size=(count, 3)) - 3, jnp.float32),
        quaternions=jnp.asarray(
            quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True), jnp.float32
        ),
        opacity_logits=jnp.asarray(rng.normal(size=count) * 3, jnp.float32),
        sh=jnp.asarray(rng.normal(size=(count, (degree + 1) ** 2, 3)) * 0.5, jnp.float32),
        mask=jnp.asarray(mask),
    )
