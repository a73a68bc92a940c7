"""Compare four runs of two views on eight devices and on one; prints the differences as JSON.

A separate program, because JAX fixes the number of devices when it is first used.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ge3d_jax.core.devices import BATCH_AXIS, SEEDS_AXIS, batch_mesh, replicated
from ge3d_jax.training.step import make_step
from tests.errors import relative_error
from tests.training.toy_task import ToyTask, begin_toy


def main() -> None:
    """Take two steps on each mesh."""
    task = ToyTask()
    all_devices = batch_mesh(task.views, seeds=4)
    one_device = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), (SEEDS_AXIS, BATCH_AXIS))
    moments = []
    for mesh in (all_devices, one_device):
        states = tuple(begin_toy(task, [0.1 * seed, 0.5, -0.7], seed) for seed in range(4))
        states, running, context = jax.device_put((states, np.ones(4, bool), jnp.ones(())), replicated(mesh))
        step = make_step(task, mesh, runs=4)
        for _ in range(2):
            states, _ = step(states, running, context)
        moments.append([np.asarray(state.optimizer_state.mu["x"]) for state in states])
    errors = [relative_error(one, other) for one, other in zip(*moments, strict=True)]
    print(json.dumps({"devices": dict(all_devices.shape), "errors": errors}))


if __name__ == "__main__":
    main()
