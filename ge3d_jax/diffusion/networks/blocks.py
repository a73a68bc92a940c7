"""Building blocks that the UNet and the VAE share, equal to diffusers' modules of the same names.

Module names follow diffusers' tensors: `resnets.1.conv1` is `resnets_1/conv1` here, so `checkpoint.py` can
map one to the other by rule. Arrays are (B, height, width, channels). The last layers of residual blocks and
spatial transformers are initialized to zero, so a fresh one is the identity, as in the original latent
diffusion code.
"""

from collections.abc import Callable, Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ge3d_jax.diffusion.networks.attention import QUERIES_AT_A_TIME, attention
from ge3d_jax.diffusion.networks.attention_control import Attend, BlockControl
from ge3d_jax.diffusion.networks.group_norm import GroupNorm

# diffusers' Transformer2DModel and the VAE normalize with this, regardless of norm_eps.
TRANSFORMER_NORM_EPSILON = 1e-6
LAYER_NORM_EPSILON = 1e-5

# (attend, query, key, value) → the edited result of `attend`, and a map of it or None: see `BlockControl`.
AttentionEdit = Callable[[Attend, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]]


def layer_norm(epsilon: float, dtype: DTypeLike, name: str) -> nn.LayerNorm:
    """Layer normalization with float32 statistics and the exact (two-pass) variance."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


def conv3x3(
    channels: int,
    dtype: DTypeLike,
    name: str,
    *,
    zero: bool = False,
    convolve: Callable[..., jax.Array] = jax.lax.conv_general_dilated,
) -> nn.Conv:
    """3×3 convolution that keeps the size; `zero` initializes its kernel to zero, `convolve` computes it."""
    kernel_init = nn.initializers.zeros_init() if zero else nn.initializers.lecun_normal()
    return nn.Conv(
        channels,
        (3, 3),
        padding=(1, 1),
        dtype=dtype,
        kernel_init=kernel_init,
        conv_general_dilated=convolve,
        name=name,
    )


class ResnetBlock2D(nn.Module):
    """norm, SiLU, conv, (+ time), norm, SiLU, conv; added to the input, widened by a 1×1 convolution."""

    channels: int
    groups: int
    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, hidden: jax.Array, time: jax.Array | None = None) -> jax.Array:
        """`hidden` (B, h, w, C), `time` (B, E) or None without a time input -> (B, h, w, channels)."""
        residual = hidden
        hidden = nn.silu(GroupNorm(self.groups, self.epsilon, self.dtype, name="norm1")(hidden))
        hidden = conv3x3(self.channels, self.dtype, "conv1")(hidden)
        shift = None
        if time is not None:
            shift = nn.Dense(self.channels, dtype=self.dtype, name="time_emb_proj")(nn.silu(time))
        hidden = nn.silu(GroupNorm(self.groups, self.epsilon, self.dtype, name="norm2")(hidden, shift))
        hidden = conv3x3(self.channels, self.dtype, "conv2", zero=True)(hidden)
        if residual.shape[-1] != self.channels:
            residual = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="conv_shortcut")(residual)
        return residual + hidden


class Downsample2D(nn.Module):
    """3×3 convolution with stride 2. `padding` is the padding of both axes, before and after."""

    channels: int
    padding: tuple[int, int]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """(B, h, w, C) -> (B, h/2, w/2, channels)."""
        padding = (self.padding, self.padding)
        return nn.Conv(self.channels, (3, 3), strides=(2, 2), padding=padding, dtype=self.dtype, name="conv")(
            hidden
        )


class Upsample2D(nn.Module):
    """Nearest-neighbor upsampling by 2, then a 3×3 convolution."""

    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """(B, h, w, C) -> (B, 2h, 2w, channels)."""
        batch, height, width, channels = hidden.shape
        hidden = jnp.broadcast_to(hidden[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
        hidden = hidden.reshape(batch, 2 * height, 2 * width, channels)
        return conv3x3(self.channels, self.dtype, "conv")(hidden)


class Attention(nn.Module):
    """Multi-head attention from tokens to a context; the query, key, and value projections have no bias.

    The variable collection "lora" may hold factors for any of the four projections: a dictionary of `down`
    (in, rank) and `up` (rank, out) under the projection's name; see `adapters.py`. A map returned by an edit
    is sown into the collection "maps".
    """

    heads: int
    dtype: DTypeLike = jnp.float32
    attention_chunk: int = QUERIES_AT_A_TIME

    def project(self, name: str, inputs: jax.Array, channels: int, *, use_bias: bool = False) -> jax.Array:
        """Apply the projection called `name`, (…, in) -> (…, channels), plus LoRA's addition if given."""
        outputs = nn.Dense(channels, use_bias=use_bias, dtype=self.dtype, name=name)(inputs)
        if not self.has_variable("lora", name):
            return outputs
        factors: Mapping[str, jax.Array] = self.get_variable("lora", name)
        inputs, down, up = (value.astype(self.dtype) for value in (inputs, factors["down"], factors["up"]))
        return outputs + (inputs @ down) @ up

    @nn.compact
    def __call__(self, tokens: jax.Array, context: jax.Array, edit: AttentionEdit | None = None) -> jax.Array:
        """`tokens` (B, Q, C), `context` (B, K, D) -> (B, Q, C); `edit` changes the result of attention."""
        batch, queries, channels = tokens.shape
        split = (batch, -1, self.heads, channels // self.heads)
        query = self.project("to_q", tokens, channels).reshape(split)
        key = self.project("to_k", context, channels).reshape(split)
        value = self.project("to_v", context, channels).reshape(split)
        attend = partial(attention, chunk=self.attention_chunk)
        if edit is None:
            mixed = attend(query, key, value)
        else:
            mixed, edited_map = edit(attend, query, key, value)
            if edited_map is not None:
                self.sow("maps", "text", edited_map)
        mixed = mixed.reshape(batch, queries, channels)
        return self.project("to_out_0", mixed, channels, use_bias=True)


class GatedProjection(nn.Module):
    """GEGLU: one linear layer gives values and gates; values × gelu(gates), with the exact (erf) gelu."""

    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(B, N, C) -> (B, N, channels)."""
        both = nn.Dense(2 * self.channels, dtype=self.dtype, name="proj")(tokens)
        values, gates = jnp.split(both, 2, axis=-1)
        return values * nn.gelu(gates, approximate=False)


class FeedForward(nn.Module):
    """The feed-forward part of a transformer block: two layers, four times as wide in between."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(B, N, C) -> (B, N, C)."""
        channels = tokens.shape[-1]
        hidden = GatedProjection(4 * channels, self.dtype, name="net_0")(tokens)
        return nn.Dense(channels, dtype=self.dtype, name="net_2")(hidden)


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward: each after a layer norm, with a residual."""

    heads: int
    dtype: DTypeLike = jnp.float32
    attention_chunk: int = QUERIES_AT_A_TIME

    @nn.compact
    def __call__(self, tokens: jax.Array, text: jax.Array, control: BlockControl | None = None) -> jax.Array:
        """`tokens` (B, N, C), `text` (B, L, D) -> (B, N, C)."""
        edits = (None, None) if control is None else (control.attend_itself, control.attend_text)
        how = (self.heads, self.dtype, self.attention_chunk)
        normed = layer_norm(LAYER_NORM_EPSILON, self.dtype, "norm1")(tokens)
        tokens = tokens + Attention(*how, name="attn1")(normed, normed, edits[0])
        normed = layer_norm(LAYER_NORM_EPSILON, self.dtype, "norm2")(tokens)
        tokens = tokens + Attention(*how, name="attn2")(normed, text, edits[1])
        normed = layer_norm(LAYER_NORM_EPSILON, self.dtype, "norm3")(tokens)
        return tokens + FeedForward(self.dtype, name="ff")(normed)


class Transformer2DModel(nn.Module):
    """Transformer blocks over the pixels of a feature map, between two projections, with a residual."""

    heads: int
    groups: int
    depth: int
    linear_projection: bool
    dtype: DTypeLike = jnp.float32
    attention_chunk: int = QUERIES_AT_A_TIME

    @nn.compact
    def __call__(self, hidden: jax.Array, text: jax.Array, control: BlockControl | None = None) -> jax.Array:
        """`hidden` (B, h, w, C), `text` (B, L, D) -> (B, h, w, C)."""
        batch, height, width, channels = hidden.shape
        residual = hidden
        hidden = GroupNorm(self.groups, TRANSFORMER_NORM_EPSILON, self.dtype, name="norm")(hidden)
        # A 1×1 convolution is the same product; only its stored kernel has two more axes.
        projection: Callable[..., nn.Module] = (
            nn.Dense if self.linear_projection else partial(nn.Conv, kernel_size=(1, 1))
        )
        zeros = nn.initializers.zeros_init()
        project_in = projection(channels, dtype=self.dtype, name="proj_in")
        project_out = projection(channels, dtype=self.dtype, kernel_init=zeros, name="proj_out")
        tokens = project_in(hidden).reshape(batch, height * width, channels)
        for layer in range(self.depth):
            block = BasicTransformerBlock(
                self.heads, self.dtype, self.attention_chunk, name=f"transformer_blocks_{layer}"
            )
            tokens = block(tokens, text, control)
        return residual + project_out(tokens.reshape(batch, height, width, channels))


def timestep_embedding(
    timesteps: jax.Array, channels: int, *, flip_sin_to_cos: bool, freq_shift: float
) -> jax.Array:
    """Sinusoids with frequencies 10000^(−i/(half − freq_shift)), i = 0..half−1, half = channels/2.

    `timesteps` (B,) in steps of the schedule -> (B, channels) float32; sines first, or cosines first if
    flipped. An odd number of channels ends in a zero.
    """
    half = channels // 2
    # Constants, so use float64: at time 999, an angle shows every last digit of its frequency.
    frequencies = np.exp(-np.log(10000.0) * np.arange(half) / (half - freq_shift)).astype(np.float32)
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies
    waves = [jnp.cos(angles), jnp.sin(angles)] if flip_sin_to_cos else [jnp.sin(angles), jnp.cos(angles)]
    return jnp.pad(jnp.concatenate(waves, axis=-1), ((0, 0), (0, channels % 2)))


class TimestepEmbedding(nn.Module):
    """Two linear layers with a SiLU in between, applied to the sinusoids."""

    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, sinusoids: jax.Array) -> jax.Array:
        """(B, C) -> (B, channels)."""
        hidden = nn.silu(nn.Dense(self.channels, dtype=self.dtype, name="linear_1")(sinusoids))
        return nn.Dense(self.channels, dtype=self.dtype, name="linear_2")(hidden)
