"""Shared parts of the swept figures' tests: a plan of tiny objects, and pictures that encode their place."""

import numpy as np

from ge3d_jax.runs.figures.base import Work
from ge3d_jax.runs.figures.swept import Plan, Swept
from tests.tiny_model import IMAGE_SIZE

PROMPT = "a red mushroom"


def tiny_plan(*, seeds=(0, 1), prompts=(PROMPT,), **changes):
    settings = {
        "iterations": 3,
        "views": 1,
        "image_size": IMAGE_SIZE,
        "start.count": 50,
        "buffer_capacity": 4096,
    }
    return Plan("toybox64", prompts, seeds, settings | changes)


def work_in(folder, model, report=lambda line: None):
    return Work("small", folder, str(model), report)


def numbered(first, *, prompts, seeds):
    """An arm with uniformly gray pictures: first + 10 per prompt + 3 per seed + 1 per view."""
    places = np.add.outer(np.add.outer(10 * np.arange(prompts), 3 * np.arange(seeds)), np.arange(8) % 3)
    grays = (first + places).astype(np.uint8)
    return Swept([], np.broadcast_to(grays[..., None, None, None], (*grays.shape, 16, 16, 3)))


def grays_of(sheet, columns):
    """The grays of a grid of such pictures, in grid order."""
    cell_height, cell_width = 16 + 10 + 8 + 6, 16 + 6
    rows = (sheet.shape[0] - 6) // cell_height
    return [
        [int(sheet[6 + row * cell_height, 6 + column * cell_width, 0]) for column in range(columns)]
        for row in range(rows)
    ]
