"""Inception v3 as FID uses it: features of images that are compared by `frechet_distance`.

This is the network of 2015 (Szegedy et al., arXiv 1512.00567) that the published FIDs are computed with. It
differs from later ones in two pools: averages leave the padding out, and the last block takes a maximum where
the one before takes an average. Names follow the tensors of the published file.

| name | meaning | shape |
|---|---|---|
| pictures | images as the network gets them | (B, 299, 299, 3) |
| features | means over the last block's positions | (B, 2048) |
"""

import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.weights.parameters import read_parameters
from ge3d_jax.diffusion.weights.tensor_files import StoredTensor
from ge3d_jax.diffusion.weights.torch_files import open_any_tensors

SIZE = 299
FEATURES = 2048
_DOWNLOAD = (
    "download pt_inception-2015-12-05-6726825d.pth (91 MB) from "
    "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights, and give its path."
)
HOW_TO_GET = f"FID needs the Inception of 2015; {_DOWNLOAD}"
_NORM_EPSILON = 1e-3
# The classifier's classes: a number that later Inceptions do not share.
_CLASSES = 1008


class _Unit(NamedTuple):
    """A convolution without bias, a fixed normalization, and a ReLU."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


# Units in sequence; a tuple of units in parallel, whose results are concatenated, may be among them.
_Branch = tuple["_Unit | tuple[_Unit, ...]", ...]


class _Block(NamedTuple):
    """Branches in parallel, whose results are concatenated, and a pool of 3×3 as the last one.

    `pooled` is how many channels a convolution makes of the pool; None if the block halves the size and its
    pool, a maximum, has no convolution.
    """

    name: str
    branches: tuple[_Branch, ...]
    pooled: int | None
    averages: bool = True


def _fine(name: str, pooled: int) -> _Block:
    return _Block(
        name,
        (
            (_Unit("branch1x1", 64),),
            (_Unit("branch5x5_1", 48), _Unit("branch5x5_2", 64, (5, 5))),
            (
                _Unit("branch3x3dbl_1", 64),
                _Unit("branch3x3dbl_2", 96, (3, 3)),
                _Unit("branch3x3dbl_3", 96, (3, 3)),
            ),
        ),
        pooled,
    )


def _middle(name: str, width: int) -> _Block:
    return _Block(
        name,
        (
            (_Unit("branch1x1", 192),),
            (
                _Unit("branch7x7_1", width),
                _Unit("branch7x7_2", width, (1, 7)),
                _Unit("branch7x7_3", 192, (7, 1)),
            ),
            (
                _Unit("branch7x7dbl_1", width),
                _Unit("branch7x7dbl_2", width, (7, 1)),
                _Unit("branch7x7dbl_3", width, (1, 7)),
                _Unit("branch7x7dbl_4", width, (7, 1)),
                _Unit("branch7x7dbl_5", 192, (1, 7)),
            ),
        ),
        192,
    )


def _coarse(name: str, *, averages: bool) -> _Block:
    return _Block(
        name,
        (
            (_Unit("branch1x1", 320),),
            (
                _Unit("branch3x3_1", 384),
                (_Unit("branch3x3_2a", 384, (1, 3)), _Unit("branch3x3_2b", 384, (3, 1))),
            ),
            (
                _Unit("branch3x3dbl_1", 448),
                _Unit("branch3x3dbl_2", 384, (3, 3)),
                (_Unit("branch3x3dbl_3a", 384, (1, 3)), _Unit("branch3x3dbl_3b", 384, (3, 1))),
            ),
        ),
        192,
        averages,
    )


_BLOCKS = (
    _fine("Mixed_5b", 32),
    _fine("Mixed_5c", 64),
    _fine("Mixed_5d", 64),
    _Block(
        "Mixed_6a",
        (
            (_Unit("branch3x3", 384, (3, 3), 2),),
            (
                _Unit("branch3x3dbl_1", 64),
                _Unit("branch3x3dbl_2", 96, (3, 3)),
                _Unit("branch3x3dbl_3", 96, (3, 3), 2),
            ),
        ),
        None,
    ),
    _middle("Mixed_6b", 128),
    _middle("Mixed_6c", 160),
    _middle("Mixed_6d", 160),
    _middle("Mixed_6e", 192),
    _Block(
        "Mixed_7a",
        (
            (_Unit("branch3x3_1", 192), _Unit("branch3x3_2", 320, (3, 3), 2)),
            (
                _Unit("branch7x7x3_1", 192),
                _Unit("branch7x7x3_2", 192, (1, 7)),
                _Unit("branch7x7x3_3", 192, (7, 1)),
                _Unit("branch7x7x3_4", 192, (3, 3), 2),
            ),
        ),
        None,
    ),
    _coarse("Mixed_7b", averages=True),
    _coarse("Mixed_7c", averages=False),
)


class _FixedNorm(nn.Module):
    """Batch normalization with the statistics of training."""

    @nn.compact
    def __call__(self, values: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H, W, C)."""
        ones, zeros, shape = nn.initializers.ones, nn.initializers.zeros, values.shape[-1:]
        scale = self.param("scale", ones, shape)
        bias = self.param("bias", zeros, shape)
        mean = self.param("running_mean", zeros, shape)
        variance = self.param("running_var", ones, shape)
        return (values - mean) * (scale * jax.lax.rsqrt(variance + _NORM_EPSILON)) + bias


class _ConvolutionUnit(nn.Module):
    """A `_Unit` with its parameters."""

    unit: _Unit
    padding: str

    @nn.compact
    def __call__(self, values: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H', W', channels)."""
        unit = self.unit
        strides = (unit.stride, unit.stride)
        convolved = nn.Conv(unit.channels, unit.kernel, strides, self.padding, use_bias=False, name="conv")(
            values
        )
        return nn.relu(_FixedNorm(name="bn")(convolved))


def _applied(unit: _Unit, values: jax.Array) -> jax.Array:
    """Apply a unit of a block; only those that halve the size do without padding."""
    padding = "VALID" if unit.stride > 1 else "SAME"
    return _ConvolutionUnit(unit, padding, name=unit.name)(values)


class _MixedBlock(nn.Module):
    """A `_Block` with its parameters."""

    block: _Block

    @nn.compact
    def __call__(self, values: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H', W', the sum of the branches' channels)."""
        made = []
        for branch in self.block.branches:
            result = values
            for step in branch:
                if isinstance(step, _Unit):
                    result = _applied(step, result)
                else:
                    result = jnp.concatenate([_applied(unit, result) for unit in step], axis=-1)
            made.append(result)
        made.append(self._pool(values))
        return jnp.concatenate(made, axis=-1)

    def _pool(self, values: jax.Array) -> jax.Array:
        if self.block.pooled is None:
            return nn.max_pool(values, (3, 3), (2, 2))
        if self.block.averages:
            pooled = nn.avg_pool(values, (3, 3), (1, 1), "SAME", count_include_pad=False)
        else:
            pooled = nn.max_pool(values, (3, 3), (1, 1), "SAME")
        return _applied(_Unit("branch_pool", self.block.pooled), pooled)


class Inception(nn.Module):
    """The network up to its last pool."""

    @nn.compact
    def __call__(self, pictures: jax.Array) -> jax.Array:
        """Compute features (B, 2048) of images (B, S, S, 3) in [−1, 1], S ≥ 75; FID's S is 299."""

        def stem(values: jax.Array, unit: _Unit, padding: str = "VALID") -> jax.Array:
            return _ConvolutionUnit(unit, padding, name=unit.name)(values)

        values = stem(pictures, _Unit("Conv2d_1a_3x3", 32, (3, 3), 2))
        values = stem(values, _Unit("Conv2d_2a_3x3", 32, (3, 3)))
        values = stem(values, _Unit("Conv2d_2b_3x3", 64, (3, 3)), "SAME")
        values = nn.max_pool(values, (3, 3), (2, 2))
        values = stem(values, _Unit("Conv2d_3b_1x1", 80))
        values = stem(values, _Unit("Conv2d_4a_3x3", 192, (3, 3)))
        values = nn.max_pool(values, (3, 3), (2, 2))
        for block in _BLOCKS:
            values = _MixedBlock(block, name=block.name)(values)
        return values.mean(axis=(1, 2))


def prepare_picture(picture: np.ndarray) -> np.ndarray:
    """Resize an image as clean-fid does, and scale it to [−1, 1).

    Each channel is resized by PIL in floating point, bicubic and antialiased, so that nothing is rounded.

    Args:
        picture: uint8 (H, W, 3).

    Returns:
        (299, 299, 3) float32.

    Source: Parmar et al., "On Aliased Resizing and Surprising Subtleties in GAN Evaluation", arXiv
    2104.11222.
    """
    channels = [
        Image.fromarray(np.ascontiguousarray(picture[..., channel], np.float32)).resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC
        )
        for channel in range(3)
    ]
    resized = np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0.0, 255.0)
    return (resized - 128.0) / 128.0


@dataclasses.dataclass(frozen=True)
class InceptionFeatures:
    """Maps images to features.

    Attributes:
        parameters: the parameters of `Inception`.
        batch: number of images at a time.
    """

    parameters: Any
    batch: int = 16

    def __call__(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Compute features (N, 2048) float32 of N uint8 images (H, W, 3) of any sizes."""
        found = []
        for first in range(0, len(pictures), self.batch):
            prepared = np.stack([prepare_picture(each) for each in pictures[first : first + self.batch]])
            # Batches of one size share a program.
            filled = np.pad(prepared, [(0, self.batch - len(prepared)), (0, 0), (0, 0), (0, 0)])
            found.append(np.asarray(_features(self.parameters, filled))[: len(prepared)])
        return np.concatenate(found)


@jax.jit
def _features(parameters: Any, pictures: jax.Array) -> jax.Array:
    features: Any = Inception().apply({"params": parameters}, pictures)
    return features


def inception_shapes() -> dict[str, Any]:
    """Return the tree of the network's parameter shapes."""
    pictures = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    return jax.eval_shape(partial(Inception().init, jax.random.key(0)), pictures)["params"]


def load_inception(file: str | os.PathLike[str]) -> InceptionFeatures:
    """Load the network that FID uses.

    Args:
        file: the published file, or its tensors in the safetensors format.

    Raises:
        UserError: the file is missing or damaged, or holds another network.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"There is no file {path}; {_DOWNLOAD}")
    tensors = open_any_tensors(path)
    _check_kind(tensors, path)
    own = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith("fc.") and not name.endswith(".num_batches_tracked")
    }
    return InceptionFeatures(read_parameters(own, inception_shapes(), path, remedy=_DOWNLOAD))


def _check_kind(tensors: dict[str, StoredTensor], file: Path) -> None:
    """Reject an Inception that has the same names but other weights."""
    if any(name.startswith("AuxLogits.") for name in tensors) or (
        "fc.weight" in tensors and tensors["fc.weight"].shape[0] != _CLASSES
    ):
        raise UserError(
            f"{file} is a later Inception, e.g. torchvision's, and gives other distances; {_DOWNLOAD}"
        )
