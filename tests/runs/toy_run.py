"""A complete run of the toy task, for testing observers without a renderer."""

import jax.numpy as jnp

from ge3d_jax.runs.attempts import Attempts
from ge3d_jax.runs.run import Part, Run
from tests.training.toy_task import ToyTask, begin_toy


def toy_part(folder, observers, *, iterations=6, history=(), state=None, attempts=None):
    """A run that is new unless it has a state to resume from."""
    task = ToyTask(iterations=iterations)
    begun = begin_toy(task, [0.5, 0.0, 0.0], 0)
    run = Run(
        folder=folder,
        description={"prompt": "a toy", "seed": 0},
        task=task,
        context=jnp.zeros(()),
        parts=1,
        history=list(history),
        is_new=state is None,
    )
    return Part(
        run,
        begun if state is None else state,
        observers,
        lambda folder: None,
        lambda result, attempts: result.object,
        attempts=attempts or Attempts(),
    )


def run_toy(folder, observers, **options):
    """Run the toy task and return its outcome."""
    return toy_part(folder, observers, **options).perform(doing="toying", progress=False, save_seconds=None)
