"""Conversion between parameter trees and the tensors of diffusers' files: names and axes on both sides.

A parameter's path in the tree determines its tensor's name, e.g. `down_blocks_0/resnets_1/conv1/kernel` is
`down_blocks.0.resnets.1.conv1.weight`. Axes: convolutions are (height, width, in, out) here and (out, in,
height, width) in files; linear layers are (in, out) here and (out, in) in files.
"""

import functools
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from ge3d_jax.core.errors import UserError, shown
from ge3d_jax.core.files import atomic_path
from ge3d_jax.diffusion.networks.unet import UNet2DConditionModel
from ge3d_jax.diffusion.networks.vae import AutoencoderKL
from ge3d_jax.diffusion.weights.tensor_files import StoredTensor

# Module names that end in a list index: "resnets_1" is "resnets.1", but "linear_1" stays.
_LIST_ITEM = re.compile(
    r"(down_blocks|up_blocks|resnets|attentions|downsamplers|upsamplers|transformer_blocks|to_out|net|layers|"
    r"resblocks|clip_embed)_(\d+)"
)
_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
# Parameters with the same names here and in files: one outside any layer, and the statistics of training.
_LEAF_NAMES |= {name: name for name in ("class_embedding", "running_mean", "running_var")}

# How many names an error message lists before counting the rest.
_LISTED = 3
_REMEDY = "use weights that match the config.json next to it."
_LONGEST_NAME = 200

ParameterPath = tuple[str, ...]
# A modification of a tensor as it is read: float32 with the file's axes, in and out.
Edit = Callable[[np.ndarray], np.ndarray]
# A parameter, before it is rounded to the dtype given → the parameter as it is to be stored.
Arrange = Callable[[np.ndarray, DTypeLike], Any]


def tensor_name(path: ParameterPath) -> str:
    """Return the name in diffusers' files of the parameter at `path` in the tree."""
    modules = [_LIST_ITEM.sub(r"\1.\2", name) if _LIST_ITEM.fullmatch(name) else name for name in path[:-1]]
    return ".".join([*modules, _LEAF_NAMES[path[-1]]])


def tensor_names(expected: Mapping[str, Any]) -> list[str]:
    """Return the names in diffusers' files of all parameters of a tree."""
    return [tensor_name(path) for path in flatten_dict(expected)]


def some_names(names: Collection[str]) -> str:
    """List the first few names and count the rest, for messages."""
    ordered = sorted(names)
    listed = ", ".join(_in_one_line(name) for name in ordered[:_LISTED])
    return listed if len(ordered) <= _LISTED else f"{listed} and {len(ordered) - _LISTED} more"


def _in_one_line(name: str) -> str:
    return name if name.isprintable() and len(name) <= _LONGEST_NAME else shown(name)


def _tensor_shape(path: ParameterPath, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape, in the file, of a parameter with shape `shape`."""
    if path[-1] == "kernel":
        return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
    return shape


def to_tensor(path: ParameterPath, value: np.ndarray) -> np.ndarray:
    """Give the parameter at `path` the file's axes; contiguous, as the writer requires."""
    if path[-1] == "kernel":
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return np.ascontiguousarray(value)


def _from_tensor(path: ParameterPath, value: np.ndarray) -> np.ndarray:
    """Give a tensor of a file the tree's axes."""
    if path[-1] == "kernel":
        return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return value


def read_parameters(
    tensors: Mapping[str, StoredTensor],
    expected: Mapping[str, Any],
    source: str | os.PathLike[str],
    *,
    dtype: DTypeLike = jnp.float32,
    edits: Mapping[str, Edit] | None = None,
    arrange: Arrange | None = None,
    remedy: str = _REMEDY,
) -> dict[str, Any]:
    """Read a parameter tree, one tensor at a time, each directly to the device.

    Args:
        tensors: the files' tensors by diffusers' names.
        expected: tree of the expected parameters, whose leaves have a `shape`.
        source: the file to name if a tensor is missing.
        dtype: dtype of the parameters.
        edits: edits to some tensors, by diffusers' names, applied before rounding to `dtype`.
        arrange: how to store each parameter, given `dtype`; None stores all as they are.
        remedy: what to do if the tensors do not fit, as the end of a sentence.

    Returns:
        The tree, with the shapes of `expected` except where an edit changed them.

    Raises:
        UserError: a tensor is missing, unexpected, or has the wrong shape; the message names it.
    """
    wanted = {tensor_name(path): (path, leaf) for path, leaf in flatten_dict(expected).items()}
    missing = wanted.keys() - tensors.keys()
    if missing:
        path, leaf = wanted[min(missing)]
        raise UserError(
            f"{source} lacks the tensor {some_names(missing)}, of shape {_tensor_shape(path, leaf.shape)}; "
            f"{remedy}"
        )
    surplus = tensors.keys() - wanted.keys()
    if surplus:
        first = tensors[min(surplus)]
        raise UserError(
            f"{first.file} holds the unexpected tensor {some_names(surplus)}, of shape {first.shape}; "
            f"{remedy}"
        )
    parameters = {}
    for name, (path, leaf) in wanted.items():
        tensor, shape = tensors[name], _tensor_shape(path, leaf.shape)
        # Linear layers used to be written as 1×1 convolutions.
        if tensor.shape not in (shape, (*shape, 1, 1)):
            raise UserError(
                f"{tensor.file}: the tensor {tensor.name} has the shape {tensor.shape}, but the model needs "
                f"{shape}; {remedy}"
            )
        value = tensor.read().reshape(shape)
        if edits and name in edits:
            value = edits[name](value.astype(np.float32))
        value = _from_tensor(path, value)
        # One pass over the tensor: transposed, rounded and contiguous, as the device requires.
        parameters[path] = jax.tree.map(
            lambda array: jnp.asarray(array.astype(dtype, order="C", copy=False)),
            value if arrange is None else arrange(value, dtype),
        )
    return unflatten_dict(parameters)


def write_parameters(
    file: str | os.PathLike[str],
    parameters: Mapping[str, Any],
    prefix: str = "",
    *,
    dtype: DTypeLike = np.float32,
) -> None:
    """Write a parameter tree to a safetensors file in the given dtype, with `prefix` before each name."""
    tensors = {
        prefix + tensor_name(path): to_tensor(path, np.asarray(value, dtype))
        for path, value in flatten_dict(parameters).items()
    }
    with atomic_path(Path(file)) as temporary:
        # diffusers and transformers reject files without this metadata.
        save_file(tensors, temporary, metadata={"format": "pt"})


@functools.lru_cache(maxsize=8)
def parameter_shapes(module: nn.Module) -> dict[str, Any]:
    """Return the tree of a network's parameter shapes without computing the parameters; do not modify it."""
    key = jax.random.key(0)
    if isinstance(module, UNet2DConditionModel):
        size = 2 ** (len(module.config.block_out_channels) - 1)
        inputs: tuple[jax.Array, ...] = (
            jnp.zeros((1, size, size, module.config.in_channels)),
            jnp.zeros((1,)),
            jnp.zeros((1, 1, module.config.cross_attention_dim)),
        )
    elif isinstance(module, AutoencoderKL):
        size = module.config.downscale
        inputs = (jnp.zeros((1, size, size, module.config.in_channels)),)
    else:
        inputs = (jnp.zeros((1, 1), jnp.int32),)
    return jax.eval_shape(module.init, key, *inputs)["params"]
