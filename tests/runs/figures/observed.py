"""A run small enough for figures to observe in tests."""

from tests.tiny_model import IMAGE_SIZE

PROMPT = "a red mushroom"
SMALL = {
    "iterations": 4,
    "views": 2,
    "image_size": IMAGE_SIZE,
    "start.kind": "ball",
    "start.count": 50,
    "nodes.count": 2,
    "nodes.jump_max": [90, 90],
    "nodes.jump_min": [89, 89],
    "nodes.max_step": [300, 100],
    "reconstruction.rings": [[80, 2], [60, 2]],
    "reconstruction.held_out": 2,
    "reconstruction.passes": 2,
    "reconstruction.views_per_step": 2,
}


class Stopped(Exception):
    """Raised to stop a figure in the middle."""


def stopping(after):
    """A `report` that stops the figure at a given line."""
    lines = []

    def report(line):
        lines.append(line)
        if len(lines) == after:
            raise Stopped

    return report


def files_of(folder):
    """The contents of all files in a folder, by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}
