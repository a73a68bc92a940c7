"""The whole training step with the weights that come with the package."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
from ge3d_jax.training.loop import begin, prompt_embeddings

from ge3d_jax.diffusion.weights.checkpoint import load_model
from ge3d_jax.toybox import model_folder
from ge3d_jax.training.cameras import sample_inputs
from ge3d_jax.training.config import PRESETS, with_overrides
from ge3d_jax.training.step import ge3d_step, latent_shape


def test_thirty_iterations_with_fixed_randomness_are_finite_and_lower_the_loss():
    settings = {"views": 1, "nodes.count": 3, "start.count": 400, "start.scale": 0.07}
    config = with_overrides(PRESETS["toybox"], settings)
    model = load_model(model_folder())
    embeddings = prompt_embeddings(config, model, "a red mushroom")
    state = begin(config, jax.random.key(0))
    inputs = sample_inputs(
        jax.random.key(1),
        config,
        0,
        latent_shape=latent_shape(model, config.image_size),
        capacity=state.gaussians.capacity,
    )
    learn = jax.jit(partial(ge3d_step, config=config, buffer_capacity=2**14))
    losses = []
    # With some draws the loss rises for the first ten.
    for _ in range(30):
        state, metrics = learn(state, model, embeddings, inputs)
        assert metrics.overflow == 0
        losses.append(float(metrics.loss))
        # The weights of the nodes depend on the iteration: held fixed like the rest.
        state = state.replace(iteration=jnp.int32(0))
    chex.assert_tree_all_finite(state.gaussians)
    assert np.isfinite(losses).all() and losses[-1] < 0.8 * losses[0], losses
