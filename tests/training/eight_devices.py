"""Four seeds of two views on eight devices and on one; prints by how much they differ, as JSON.

A program of its own, since JAX fixes the number of devices when it is first used.
"""

import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ge3d_jax.core.devices import BATCH_AXIS, SEEDS_AXIS, batch_mesh, replicated
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.diffusion.weights.checkpoint import load_model
from ge3d_jax.guidance.prompts import PromptEmbeddings
from ge3d_jax.training.distillation import Distillation, Prompted, begin
from ge3d_jax.training.presets import PRESETS
from ge3d_jax.training.step import make_step
from tests.errors import relative_error
from tests.tiny_model import IMAGE_SIZE, write_tiny_model

SETTINGS = {
    "shared_nodes": True,
    "views": 2,
    "image_size": IMAGE_SIZE,
    "start.count": 40,
    "scene.buffer_capacity": 512,
    "scene.capacity": 40,
    "guidance.kind": "sds",
}


def predict(model, x, t, text):
    """A smooth function of all that a network sees."""
    words = text[:, 0, :4][:, None, None]
    return jnp.tanh(x) + 0.3 * words * jnp.cos(3.0 * x + jnp.reshape(t, (-1, 1, 1, 1)) / 1000.0)


def main() -> None:
    """Step once on each mesh."""
    config = with_overrides(PRESETS["toybox"], SETTINGS)
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_model(Path(folder))
        model = load_model(folder)
    words = np.random.default_rng(0).normal(size=(6, 16, 16)).astype(np.float32)
    context = Prompted(model, PromptEmbeddings(*words))
    task = Distillation(config, predict)
    all_devices = batch_mesh(2, seeds=4)
    one_device = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), (SEEDS_AXIS, BATCH_AXIS))
    moments = []
    for mesh in (all_devices, one_device):
        states = tuple(begin(config, model, jax.random.key(seed)) for seed in range(4))
        placed = jax.device_put((states, np.ones(4, bool), context), replicated(mesh))
        after, _ = make_step(task, mesh, runs=4)(*placed)
        moments.append(
            [
                np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.optimizer_state.mu)])
                for state in after
            ]
        )
    errors = [float(relative_error(one, other)) for one, other in zip(*moments, strict=True)]
    print(json.dumps({"devices": dict(all_devices.shape), "errors": errors}))


if __name__ == "__main__":
    main()
