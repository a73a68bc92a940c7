"""Adam without learning rates: those are the scene's."""

import optax

# That of 3D Gaussian Splatting: gradients of single splats are far below optax's default of 1e-8.
EPSILON = 1e-15


def adam() -> optax.GradientTransformation:
    """Directions of about 1 in size; its moments have the names and shapes of the parameters."""
    return optax.scale_by_adam(eps=EPSILON)
