"""Adam without learning rates, which are the scene's responsibility."""

import optax

# As in 3D Gaussian Splatting: gradients of single splats are far below optax's default of 1e-8.
EPSILON = 1e-15


def adam() -> optax.GradientTransformation:
    """Return update directions of magnitude about 1; the moments have the parameters' names and shapes."""
    return optax.scale_by_adam(eps=EPSILON)
