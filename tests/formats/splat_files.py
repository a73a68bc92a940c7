"""Random splats for tests of splat files."""

import numpy as np

from ge3d_jax.splatting.gaussians import Gaussians


def random_gaussians(count: int, degree: int, seed: int = 0, dead: int = 0) -> Gaussians:
    """Splats of every kind, `dead` of them masked, with unit quaternions.

    The arrays are NumPy's, so that tests can modify them without compilation.
    """
    rng = np.random.default_rng(seed)
    quaternions = rng.normal(size=(count, 4))
    mask = np.ones(count, bool)
    mask[rng.permutation(count)[:dead]] = False
    return Gaussians(
        positions=rng.normal(size=(count, 3)).astype(np.float32),
        log_scales=(rng.normal(size=(count, 3)) - 3).astype(np.float32),
        quaternions=(quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).astype(np.float32),
        opacity_logits=(rng.normal(size=count) * 3).astype(np.float32),
        sh=(rng.normal(size=(count, (degree + 1) ** 2, 3)) * 0.5).astype(np.float32),
        mask=mask,
    )


def with_values(gaussians: Gaussians, field: str, where: object, value: object) -> Gaussians:
    """The splats with some values of one field replaced."""
    changed = np.array(getattr(gaussians, field))
    changed[where] = value
    return gaussians.replace(**{field: changed})
