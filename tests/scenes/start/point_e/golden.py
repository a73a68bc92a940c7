"""Golden data of Point-E, computed with its authors' code (tests/golden/point_e/README.md)."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from ge3d_jax.diffusion.weights.tensor_files import StoredTensor

FOLDER = Path(__file__).parents[3] / "golden" / "point_e"


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"point_e_{name}.npz") as file:
        return dict(file)


def settings(name: str) -> dict[str, Any]:
    return json.loads(str(arrays(name)["config_json"]))


def full_names() -> dict[str, Any]:
    return json.loads((FOLDER / "point_e_full_names.json").read_text())


@dataclasses.dataclass(frozen=True)
class _Arrays:
    by_name: dict[str, np.ndarray]

    def get_tensor(self, name):
        return self.by_name[name]


def stored(by_name):
    """Arrays in the form of stored tensors."""
    opened = _Arrays(by_name)
    return {name: StoredTensor(FOLDER, name, value.shape, opened) for name, value in by_name.items()}


def weights(name: str, prefix: str = "weights/") -> dict[str, np.ndarray]:
    found = arrays(name)
    return {key.removeprefix(prefix): found[key] for key in found if key.startswith(prefix)}


def rows(array):
    """Transpose (B, 6, N) to (B, N, 6)."""
    return np.moveaxis(array, -2, -1)
