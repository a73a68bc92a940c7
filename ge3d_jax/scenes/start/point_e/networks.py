"""Point-E's two networks: transformers without positional embeddings that predict the noise of points.

The base network takes one token for the text, one for the time, and one for each point. The upsampler takes
one token for the time, the tokens of an image's feature grid, one for each given point, and one for each new
point. Points are channels-last: x, y, z, red, green, blue in the diffusion's scale.

Names follow the published tensors: `backbone.resblocks.0.attn.c_qkv` is `backbone/resblocks_0/attn/c_qkv`.

| symbol | meaning |
|---|---|
| B, N, M | clouds, noisy points per cloud, points given to the upsampler |
| W, H | width of the tokens, attention heads |
| D | width of a text feature |
| L, C | tokens of an image's feature grid, channels of each |
| t | integer time, 0 … steps − 1 |
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.networks.attention import attention
from ge3d_jax.diffusion.networks.blocks import LAYER_NORM_EPSILON, layer_norm
from ge3d_jax.diffusion.weights.config_files import MOST_CHANNELS, MOST_LAYERS

# x, y, z, red, green, blue; the networks predict the noise of each, and a value for its variance.
POINT_CHANNELS = 6
_OUTPUT_CHANNELS = 2 * POINT_CHANNELS
_MLP_RATIO = 4
_LONGEST_PERIOD = 10_000.0
# Scale factor of the published initialization.
_INIT_SCALE = 0.25

# Bounds far beyond published sizes: a config.json can come from anywhere.
_MOST_NUMBERS = 2**20
_MOST = {
    "width": MOST_CHANNELS,
    "layers": MOST_LAYERS,
    "heads": MOST_CHANNELS,
    "points": _MOST_NUMBERS,
    "text_features": MOST_CHANNELS,
    "given_points": _MOST_NUMBERS,
    "grid_tokens": _MOST_NUMBERS,
    "grid_channels": MOST_CHANNELS,
}

Scale = tuple[float, float, float, float, float, float]
# Convert meters and colors of 0 … 255 to the diffusion's scale: factors, then offsets. The color factor is
# the published one, 1/127.5 to twelve digits.
CHANNEL_SCALES: Scale = (2.0, 2.0, 2.0, 0.007843137255, 0.007843137255, 0.007843137255)
CHANNEL_BIASES: Scale = (0.0, 0.0, 0.0, -1.0, -1.0, -1.0)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Size of a network.

    Attributes:
        width: W, width of the tokens.
        layers: number of blocks.
        heads: H, number of attention heads.
        points: N, number of points it was trained on.
    """

    width: int = 512
    layers: int = 12
    heads: int = 8
    points: int = 1024

    def __post_init__(self) -> None:
        """Check that the sizes are consistent and not absurdly large. Raises UserError."""
        for name in (field.name for field in dataclasses.fields(self) if field.name in _MOST):
            if not 1 <= getattr(self, name) <= _MOST[name]:
                raise UserError(
                    f"Point-E config: {name} is {getattr(self, name):g}; give 1 to {_MOST[name]}."
                )
        if self.width % (2 * self.heads):
            raise UserError(
                f"Point-E config: width {self.width} must be a multiple of twice the heads, {self.heads}."
            )


@dataclasses.dataclass(frozen=True)
class BaseConfig(TransformerConfig):
    """Size of the base network; the defaults are those of `base40M-textvec`.

    Attributes:
        text_features: D, width of a text feature.
    """

    text_features: int = 768


@dataclasses.dataclass(frozen=True)
class UpsamplerConfig(TransformerConfig):
    """Size of the upsampler; the defaults are those of the published `upsample`.

    Attributes:
        given_points: M, number of given points.
        grid_tokens: L, tokens of an image's feature grid.
        grid_channels: C, channels of each grid token.
        channel_scales, channel_biases: conversion from meters and 0 … 255 to the diffusion's scale.
    """

    points: int = 3072
    given_points: int = 1024
    grid_tokens: int = 256
    grid_channels: int = 1024
    channel_scales: Scale = CHANNEL_SCALES
    channel_biases: Scale = CHANNEL_BIASES


def _torch_linear(features: int, name: str) -> nn.Dense:
    """A layer with PyTorch's default initialization, except that the bias starts at 0."""
    init = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")
    return nn.Dense(features, kernel_init=init, name=name)


def _scaled_linear(features: int, width: int, name: str) -> nn.Dense:
    """A layer with Point-E's own initialization, a standard deviation of 0.25/√W."""
    return nn.Dense(features, kernel_init=nn.initializers.normal(_INIT_SCALE / math.sqrt(width)), name=name)


def time_sinusoid(times: jax.Array, width: int) -> jax.Array:
    """Embed integer times (B,) as W/2 cosines, then W/2 sines: (B, W).

    The frequencies run from 1 down to nearly 1/10000.
    """
    half = width // 2
    # Computed in float64 and rounded once: an error of one ulp here changes the network's output by 2e-5.
    frequencies = (_LONGEST_PERIOD ** (-np.arange(half) / half)).astype(np.float32)
    angles = times.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class _MLP(nn.Module):
    """Two layers with the exact GELU in between."""

    width: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        hidden = _scaled_linear(_MLP_RATIO * self.width, self.width, "c_fc")(tokens)
        return _scaled_linear(self.width, self.width, "c_proj")(nn.gelu(hidden, approximate=False))


class _SelfAttention(nn.Module):
    """Multi-head attention with one projection, in which each head's query, key and value are contiguous."""

    width: int
    heads: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        batch, length, _ = tokens.shape
        mixed = _scaled_linear(3 * self.width, self.width, "c_qkv")(tokens)
        query, key, value = jnp.split(mixed.reshape(batch, length, self.heads, -1), 3, axis=-1)
        attended = attention(query, key, value).reshape(tokens.shape)
        return _scaled_linear(self.width, self.width, "c_proj")(attended)


class _ResidualBlock(nn.Module):
    """Attention and MLP, each with a pre-norm and a residual connection."""

    width: int
    heads: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        normed = _norm("ln_1")(tokens)
        tokens = tokens + _SelfAttention(self.width, self.heads, name="attn")(normed)
        return tokens + _MLP(self.width, name="mlp")(_norm("ln_2")(tokens))


def _norm(name: str) -> nn.LayerNorm:
    return layer_norm(LAYER_NORM_EPSILON, jnp.float32, name)


class _Blocks(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        for index in range(self.config.layers):
            block = _ResidualBlock(self.config.width, self.config.heads, name=f"resblocks_{index}")
            tokens = block(tokens)
        return tokens


def _predict(config: TransformerConfig, conditions: jax.Array, points: jax.Array) -> jax.Array:
    """Make the prediction (B, N, 12) from condition tokens (B, K, W) and noisy points (B, N, 6)."""
    tokens = jnp.concatenate([conditions, _torch_linear(config.width, "input_proj")(points)], axis=1)
    tokens = _Blocks(config, name="backbone")(_norm("ln_pre")(tokens))
    tokens = _norm("ln_post")(tokens)[:, conditions.shape[1] :]
    zeros = nn.initializers.zeros_init()
    return nn.Dense(_OUTPUT_CHANNELS, kernel_init=zeros, name="output_proj")(tokens)


class BaseTransformer(nn.Module):
    """Predicts the noise of points from noisy points, a time and a text feature."""

    config: BaseConfig

    @nn.compact
    def __call__(self, points: jax.Array, times: jax.Array, text: jax.Array) -> jax.Array:
        """Predict.

        Args:
            points: (B, N, 6) in the diffusion's scale.
            times: (B,) integer times.
            text: (B, D) features of length 1; zeros for no text.

        Returns:
            (B, N, 12): the noise, then the values for its variance.
        """
        config = self.config
        time = _MLP(config.width, name="time_embed")(time_sinusoid(times, config.width))
        words = _torch_linear(config.width, "clip_embed")(math.sqrt(config.text_features) * text)
        return _predict(config, jnp.stack([words, time], axis=1), points)


class UpsamplerTransformer(nn.Module):
    """Predicts the noise of new points from these noisy points, a time and the given points."""

    config: UpsamplerConfig

    @nn.compact
    def __call__(
        self, points: jax.Array, times: jax.Array, given: jax.Array, grid: jax.Array | None = None
    ) -> jax.Array:
        """Predict.

        Args:
            points: (B, N, 6) in the diffusion's scale.
            times: (B,) integer times.
            given: (B, M, 6) points in meters and colors of 0 … 255, neither rounded nor clipped.
            grid: (B, L, C) features of an image; None uses zeros, for text without an image. The grid tokens
                are present in either case.

        Returns:
            (B, N, 12): the noise, then the values for its variance.
        """
        config = self.config
        if grid is None:
            grid = jnp.zeros((points.shape[0], config.grid_tokens, config.grid_channels))
        time = _MLP(config.width, name="time_embed")(time_sinusoid(times, config.width))
        picture = _torch_linear(config.width, "clip_embed_1")(_norm("clip_embed_0")(grid))
        scaled = given * jnp.asarray(config.channel_scales) + jnp.asarray(config.channel_biases)
        known = _torch_linear(config.width, "cond_point_proj")(scaled)
        return _predict(config, jnp.concatenate([time[:, None], picture, known], axis=1), points)


def example_inputs(config: TransformerConfig) -> tuple[jax.Array, ...]:
    """Minimal inputs of a network of this size, for initializing its parameters."""
    points, times = jnp.zeros((1, 1, POINT_CHANNELS)), jnp.zeros(1, jnp.int32)
    if isinstance(config, UpsamplerConfig):
        return points, times, points
    assert isinstance(config, BaseConfig)
    return points, times, jnp.zeros((1, config.text_features))


def network(config: TransformerConfig) -> BaseTransformer | UpsamplerTransformer:
    """The network of this size."""
    if isinstance(config, UpsamplerConfig):
        return UpsamplerTransformer(config)
    assert isinstance(config, BaseConfig)
    return BaseTransformer(config)


@functools.lru_cache(maxsize=8)
def parameter_shapes(config: TransformerConfig) -> dict[str, Any]:
    """Shapes of the network's parameters as a tree, without computing them; do not modify it."""
    return jax.eval_shape(network(config).init, jax.random.key(0), *example_inputs(config))["params"]
