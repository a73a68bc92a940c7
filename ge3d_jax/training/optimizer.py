"""Adam on the splats: one learning rate per field, annealed log-linearly over the run."""

import jax
import jax.numpy as jnp
import optax

from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.training.config import OptimizerConfig

# The fields that are trained, and the name of each one's learning rate among the settings.
LEARNING_RATE_OF = {
    "positions": "position",
    "log_scales": "scale",
    "quaternions": "rotation",
    "opacity_logits": "opacity",
    "sh": "color",
}
Parameters = dict[str, jax.Array]


def parameters_of(gaussians: Gaussians) -> Parameters:
    """The trained arrays of the splats, by field; all with a leading axis of N."""
    return {field: getattr(gaussians, field) for field in LEARNING_RATE_OF}


def learning_rates(config: OptimizerConfig, progress: jax.Array | float) -> dict[str, jax.Array]:
    """By field, from its first to its last value, log-linear in `progress` = k/T."""

    def annealed(bounds: tuple[float, float]) -> jax.Array:
        first, last = bounds
        return first * jnp.power(last / first, jnp.asarray(progress, jnp.float32))

    return {field: annealed(getattr(config, name)) for field, name in LEARNING_RATE_OF.items()}


def adam(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """Adam without its learning rates; its state holds (N, …) moments that density control carries along."""
    return optax.with_extra_args_support(optax.scale_by_adam(eps=config.epsilon))


def apply_gradients(
    config: OptimizerConfig,
    parameters: Parameters,
    gradients: Parameters,
    optimizer_state: optax.OptState,
    progress: jax.Array | float,
) -> tuple[Parameters, optax.OptState]:
    """One descent step.

    Args:
        progress: k/T, scalar.

    Returns:
        the moved parameters and the optimizer's new state.
    """
    directions, optimizer_state = adam(config).update(gradients, optimizer_state)
    rates = learning_rates(config, progress)
    updates = {field: -rates[field] * direction for field, direction in directions.items()}
    updates["sh"] = updates["sh"].at[:, 1:].multiply(config.higher_bands)
    return optax.apply_updates(parameters, updates), optimizer_state
