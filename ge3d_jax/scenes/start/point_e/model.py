"""The complete Point-E model: reading its files, and sampling colored point clouds from text features."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import normal
from ge3d_jax.diffusion.weights.parameters import read_parameters
from ge3d_jax.diffusion.weights.tensor_files import StoredTensor
from ge3d_jax.diffusion.weights.torch_files import open_any_tensors
from ge3d_jax.formats.point_clouds import PointCloud
from ge3d_jax.scenes.start.point_e.networks import (
    CHANNEL_BIASES,
    CHANNEL_SCALES,
    POINT_CHANNELS,
    BaseConfig,
    TransformerConfig,
    UpsamplerConfig,
    network,
    parameter_shapes,
)
from ge3d_jax.scenes.start.point_e.sampler import UPSAMPLING, Plan, SampledWay, Stage, make_plan, sample

# Buffers in the published upsampler's file.
_BUFFERS = ("channel_scales", "channel_biases")
# The key under which Cap3D's fine-tuned files hold the network.
_CAP3D_KEY = "model_state_dict"
_FULL_COLOR = 255.0


@struct.dataclass
class PointE:
    """Both networks with their parameters, sizes and sampling parameters.

    Attributes:
        base, upsampler: parameters of the networks.
        base_config, upsampler_config: sizes of the networks.
        base_stage, upsampler_stage: sampling parameters of the networks.
    """

    base: Any
    upsampler: Any
    base_config: BaseConfig = struct.field(pytree_node=False)
    upsampler_config: UpsamplerConfig = struct.field(pytree_node=False)
    base_stage: Stage = struct.field(pytree_node=False, default=Stage())
    upsampler_stage: Stage = struct.field(pytree_node=False, default=UPSAMPLING)


def to_user_units(points: jax.Array) -> jax.Array:
    """Convert points (..., 6) from the diffusion's scale to meters and unclipped colors of 0 … 255."""
    return (points - jnp.asarray(CHANNEL_BIASES)) / jnp.asarray(CHANNEL_SCALES)


@struct.dataclass
class StageNoise:
    """Standard normal noise of a stage.

    Attributes:
        initial: (B, N, 6) initial noise.
        churn: (n, B, N, 6) churn noise of each step.
    """

    initial: jax.Array
    churn: jax.Array


def draw_noise(key: jax.Array, stage: Stage, clouds: int, points: int) -> StageNoise:
    """Draw the noise of a stage, with zeros for the churn if the stage has none."""
    first, later = jax.random.split(key)
    shape = (clouds, points, POINT_CHANNELS)
    every = (stage.steps, *shape)
    return StageNoise(normal(first, shape), normal(later, every) if stage.churn else jnp.zeros(every))


@partial(jax.jit, static_argnames=("config", "guided"))
def sample_base(
    parameters: Any, text: jax.Array, plan: Plan, noise: StageNoise, *, config: BaseConfig, guided: bool
) -> SampledWay:
    """Sample the clouds' first points.

    Args:
        parameters: parameters of the base network.
        text: (B, D) features of length 1.
        plan: plan of the stage.
        noise: noise of the stage.
        config: size of the network.
        guided: whether the stage uses guidance.

    Returns:
        The sampling trajectory, in the diffusion's scale.
    """
    condition = jnp.concatenate([text, jnp.zeros_like(text)]) if guided else text
    apply = network(config).apply

    def predict(points: jax.Array, times: jax.Array) -> jax.Array:
        output: Any = apply({"params": parameters}, points, times, condition)
        return output[..., :POINT_CHANNELS]

    return sample(predict, plan, noise.initial, noise.churn, guided=guided)


@partial(jax.jit, static_argnames="config")
def sample_upsampler(
    parameters: Any, given: jax.Array, plan: Plan, noise: StageNoise, *, config: UpsamplerConfig
) -> SampledWay:
    """Sample the clouds' additional points, without guidance.

    Args:
        parameters: parameters of the upsampler.
        given: (B, M, 6) the first points, in meters and colors of 0 … 255.
        plan: plan of the stage.
        noise: noise of the stage.
        config: size of the network.

    Returns:
        The sampling trajectory, in the diffusion's scale.
    """
    apply = network(config).apply

    def predict(points: jax.Array, times: jax.Array) -> jax.Array:
        output: Any = apply({"params": parameters}, points, times, given)
        return output[..., :POINT_CHANNELS]

    return sample(predict, plan, noise.initial, noise.churn, guided=False)


def unit_features(features: jax.Array) -> jax.Array:
    """Normalize features (B, D) to length 1."""
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def sample_points(
    model: PointE, text: jax.Array, base_noise: StageNoise, upsampler_noise: StageNoise
) -> np.ndarray:
    """Sample the points of a cloud for each text.

    Args:
        model: the networks.
        text: (B, D) features of length 1.
        base_noise, upsampler_noise: noise of the stages.

    Returns:
        (B, M + N, 6) float32 in meters and unclipped colors of 0 … 255, the base network's points first.
    """
    base, more = model.base_stage, model.upsampler_stage
    first = to_user_units(
        sample_base(
            model.base,
            text,
            make_plan(base),
            base_noise,
            config=model.base_config,
            guided=base.is_guided,
        ).clean[-1]
    )
    rest = sample_upsampler(
        model.upsampler, first, make_plan(more), upsampler_noise, config=model.upsampler_config
    ).clean[-1]
    return np.asarray(jnp.concatenate([first, to_user_units(rest)], axis=1))


def to_clouds(points: np.ndarray) -> list[PointCloud]:
    """Convert points (B, N, 6) to clouds, clipping and rounding colors to multiples of 1/255 as published."""
    return [
        PointCloud(
            positions=one[:, :3].astype(np.float32),
            colors=(np.rint(np.clip(one[:, 3:], 0.0, _FULL_COLOR)) / _FULL_COLOR).astype(np.float32),
        )
        for one in points
    ]


def sample_clouds(model: PointE, features: jax.Array, key: jax.Array) -> list[PointCloud]:
    """Sample a cloud for each text.

    Args:
        model: the networks.
        features: (B, D) features of the texts, of any length.
        key: PRNG key.

    Returns:
        B clouds, in Point-E's own axes: z up, facing -y.

    Raises:
        UserError: the features have the wrong width, or the sampled points are not finite.
    """
    if features.shape[-1] != model.base_config.text_features:
        raise UserError(
            f"The text encoder gives {features.shape[-1]} numbers for a text, but this Point-E takes "
            f"{model.base_config.text_features}; use the text encoder that it was trained with."
        )
    keys, clouds = jax.random.split(key), features.shape[0]
    points = sample_points(
        model,
        unit_features(features),
        draw_noise(keys[0], model.base_stage, clouds, model.base_config.points),
        draw_noise(keys[1], model.upsampler_stage, clouds, model.upsampler_config.points),
    )
    if not np.isfinite(points).all():
        raise UserError("Point-E's points are not finite, so its weights are damaged; download them again.")
    return to_clouds(points)


def open_weights(file: Path) -> dict[str, StoredTensor]:
    """Open the tensors in a network's file: .safetensors, the published .pt, or Cap3D's .pth.

    Raises:
        UserError: the file cannot be read.
    """
    return open_any_tensors(file, inside=_CAP3D_KEY)


def read_network(config: TransformerConfig, tensors: Mapping[str, StoredTensor], source: Path) -> Any:
    """Read the parameters of a network, float32.

    Args:
        config: size of the network.
        tensors: tensors by their published names.
        source: the file, for error messages.

    Raises:
        UserError: a tensor is missing, unexpected or of the wrong shape, or a buffer has unexpected values.
    """
    shapes = parameter_shapes(config)
    rest = dict(tensors)
    if isinstance(config, UpsamplerConfig):
        for name in _BUFFERS:
            wanted = np.asarray(getattr(config, name), np.float32)
            tensor = rest.pop(name, None)
            if tensor is not None and not np.array_equal(tensor.read().astype(np.float32), wanted):
                raise UserError(
                    f"{source}: the tensor {name} is not {wanted.tolist()}; use published weights."
                )
    return read_parameters(rest, shapes, source)
