"""Stable Diffusion's image autoencoder: the subset of diffusers' AutoencoderKL that it uses."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.networks.attention import QUERIES_AT_A_TIME, attention
from ge3d_jax.diffusion.networks.blocks import Downsample2D, ResnetBlock2D, Upsample2D, conv3x3
from ge3d_jax.diffusion.networks.group_norm import GroupNorm
from ge3d_jax.diffusion.weights.config_files import VAE, VAE_BLOCKS, read_settings

NORM_EPSILON = 1e-6
# The range to which diffusers clips the posterior's log variance.
LOG_VARIANCE_RANGE = (-30.0, 20.0)

# Settings of diffusers' class whose other values would change the arithmetic, with the supported values.
_FIXED = {
    "act_fn": ("silu", "swish"),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "mid_block_add_attention": (True,),
    "shift_factor": (None,),
    "latents_mean": (None,),
    "latents_std": (None,),
}
# The dtype that Flax computed in.
_IGNORED = ("dtype",)
# Tensors per residual block.
_RESIDUAL_TENSORS = 8


@dataclass(frozen=True)
class VAEConfig:
    """Dimensions of the autoencoder, with diffusers' names and defaults.

    `scaling_factor` converts encoded means to the latents of the diffusion model. `sample_size` is the size
    of the images that it was trained on; other sizes are accepted. `force_upcast` is kept only to be written
    back: it requests float32, the default here.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int = 32
    scaling_factor: float = 0.18215
    force_upcast: bool = True

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "VAEConfig":
        """Read a `vae/config.json`.

        Raises:
            UserError: a setting is not supported; the message names the key and its value.
        """
        return cls(**read_settings("VAE", config, used=VAE, fixed=_FIXED, ignored=_IGNORED))

    def __post_init__(self) -> None:
        """Reject dimensions that do not fit together."""
        blocks = len(self.block_out_channels)
        for name, known in (
            ("down_block_types", VAE_BLOCKS["down"]),
            ("up_block_types", VAE_BLOCKS["up"]),
        ):
            if getattr(self, name) != (known,) * blocks:
                raise UserError(
                    f"VAE config: {name} = {list(getattr(self, name))!r} is not supported; it must be "
                    f"{blocks} times {known}, once for each of block_out_channels."
                )
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise UserError(
                    f"VAE config: block_out_channels {channels} must be a multiple of norm_num_groups "
                    f"{self.norm_num_groups}."
                )

    @property
    def least_tensors(self) -> int:
        """A lower bound on the number of tensors of such a network, from its depth alone."""
        blocks = len(self.block_out_channels)
        return _RESIDUAL_TENSORS * (blocks * (2 * self.layers_per_block + 1) + 4)

    @property
    def downscale(self) -> int:
        """The number of image pixels per latent pixel, along one side."""
        return 2 ** (len(self.block_out_channels) - 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of the `config.json` that describes this model to diffusers."""
        return {"_class_name": "AutoencoderKL", **asdict(self)}


class PixelAttention(nn.Module):
    """Single-head self-attention over all pixels, after a group norm, with a residual."""

    groups: int
    dtype: DTypeLike = jnp.float32
    attention_chunk: int = QUERIES_AT_A_TIME

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """(B, h, w, C) → (B, h, w, C)."""
        batch, height, width, channels = hidden.shape
        normed = GroupNorm(self.groups, NORM_EPSILON, self.dtype, name="group_norm")(hidden)
        tokens = normed.reshape(batch, height * width, channels)
        query, key, value = (
            nn.Dense(channels, dtype=self.dtype, name=name)(tokens)[:, :, None, :]
            for name in ("to_q", "to_k", "to_v")
        )
        mixed = attention(query, key, value, chunk=self.attention_chunk)[:, :, 0, :]
        mixed = nn.Dense(channels, dtype=self.dtype, name="to_out_0")(mixed)
        return hidden + mixed.reshape(hidden.shape)


class MidBlock(nn.Module):
    """A residual block, attention, and another residual block."""

    channels: int
    groups: int
    dtype: DTypeLike = jnp.float32
    attention_chunk: int = QUERIES_AT_A_TIME

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """(B, h, w, C) → (B, h, w, C)."""
        hidden = ResnetBlock2D(self.channels, self.groups, NORM_EPSILON, self.dtype, name="resnets_0")(hidden)
        hidden = PixelAttention(self.groups, self.dtype, self.attention_chunk, name="attentions_0")(hidden)
        return ResnetBlock2D(self.channels, self.groups, NORM_EPSILON, self.dtype, name="resnets_1")(hidden)


class EncoderBlock(nn.Module):
    """DownEncoderBlock2D: residual blocks, then a size-halving convolution, padded at the end only."""

    channels: int
    layers: int
    groups: int
    downsamples: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """(B, h, w, C) → (B, h/2, w/2, channels), or the same size without `downsamples`."""
        for layer in range(self.layers):
            block = ResnetBlock2D(
                self.channels, self.groups, NORM_EPSILON, self.dtype, name=f"resnets_{layer}"
            )
            hidden = block(hidden)
        if self.downsamples:
            hidden = Downsample2D(self.channels, (0, 1), self.dtype, name="downsamplers_0")(hidden)
        return hidden


class DecoderBlock(nn.Module):
    """UpDecoderBlock2D: residual blocks, then upsampling by 2."""

    channels: int
    layers: int
    groups: int
    upsamples: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """(B, h, w, C) → (B, 2h, 2w, channels), or the same size without `upsamples`."""
        for layer in range(self.layers):
            block = ResnetBlock2D(
                self.channels, self.groups, NORM_EPSILON, self.dtype, name=f"resnets_{layer}"
            )
            hidden = block(hidden)
        if self.upsamples:
            hidden = Upsample2D(self.channels, self.dtype, name="upsamplers_0")(hidden)
        return hidden


def _with_a_zero_channel(images: jax.Array, kernel: jax.Array, *args: Any, **how: Any) -> jax.Array:
    """Convolve with one extra zero channel: with three, XLA takes seven times as long on CPUs."""
    images = jnp.pad(images, [(0, 0)] * 3 + [(0, 1)])
    kernel = jnp.pad(kernel, [(0, 0), (0, 0), (0, 1), (0, 0)])
    return jax.lax.conv_general_dilated(images, kernel, *args, **how)


class Encoder(nn.Module):
    """Maps images to the posterior's parameters, before the 1×1 `quant_conv`."""

    config: VAEConfig
    dtype: DTypeLike = jnp.float32
    attention_chunk: int = QUERIES_AT_A_TIME

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """(B, H, W, in_channels) → (B, h, w, 2 · latent_channels)."""
        config, dtype = self.config, self.dtype
        groups, last = config.norm_num_groups, len(config.block_out_channels) - 1
        conv_in = conv3x3(config.block_out_channels[0], dtype, "conv_in", convolve=_with_a_zero_channel)
        hidden = conv_in(images)
        for index, channels in enumerate(config.block_out_channels):
            block = EncoderBlock(
                channels, config.layers_per_block, groups, index < last, dtype, name=f"down_blocks_{index}"
            )
            hidden = block(hidden)
        mid = MidBlock(config.block_out_channels[-1], groups, dtype, self.attention_chunk, name="mid_block")
        hidden = mid(hidden)
        hidden = nn.silu(GroupNorm(groups, NORM_EPSILON, dtype, name="conv_norm_out")(hidden))
        return conv3x3(2 * config.latent_channels, dtype, "conv_out")(hidden)


class Decoder(nn.Module):
    """Maps latents, after the 1×1 `post_quant_conv`, to images."""

    config: VAEConfig
    dtype: DTypeLike = jnp.float32
    attention_chunk: int = QUERIES_AT_A_TIME

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """(B, h, w, latent_channels) → (B, H, W, out_channels)."""
        config, dtype = self.config, self.dtype
        groups, last = config.norm_num_groups, len(config.block_out_channels) - 1
        hidden = conv3x3(config.block_out_channels[-1], dtype, "conv_in")(latents)
        mid = MidBlock(config.block_out_channels[-1], groups, dtype, self.attention_chunk, name="mid_block")
        hidden = mid(hidden)
        for index, channels in enumerate(reversed(config.block_out_channels)):
            block = DecoderBlock(
                channels, config.layers_per_block + 1, groups, index < last, dtype, name=f"up_blocks_{index}"
            )
            hidden = block(hidden)
        hidden = nn.silu(GroupNorm(groups, NORM_EPSILON, dtype, name="conv_norm_out")(hidden))
        return conv3x3(config.out_channels, dtype, "conv_out")(hidden)


class AutoencoderKL(nn.Module):
    """The autoencoder; use `apply(..., method="encode")` and `apply(..., method="decode")`.

    Attributes:
        config: the dimensions.
        dtype: precision of the computation; norm statistics, softmax, and results are always float32.
        attention_chunk: queries at a time in attention.
    """

    config: VAEConfig
    dtype: DTypeLike = jnp.float32
    attention_chunk: int = QUERIES_AT_A_TIME

    def setup(self) -> None:
        """Create the four parts, with diffusers' names."""
        latent_channels = self.config.latent_channels
        self.encoder = Encoder(self.config, self.dtype, self.attention_chunk)
        self.decoder = Decoder(self.config, self.dtype, self.attention_chunk)
        self.quant_conv = nn.Conv(2 * latent_channels, (1, 1), dtype=self.dtype)
        self.post_quant_conv = nn.Conv(latent_channels, (1, 1), dtype=self.dtype)

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return mean and log variance of the posterior over latents, not scaled by `scaling_factor`.

        Args:
            images: (B, H, W, 3) in [−1, 1]; H and W multiples of `config.downscale`.

        Returns:
            Mean and log variance, float32 (B, h, w, latent_channels); the latter is clipped to [−30, 20].

        Raises:
            UserError: H or W is not a multiple of `config.downscale`.
        """
        downscale = self.config.downscale
        if images.shape[1] % downscale or images.shape[2] % downscale:
            raise UserError(
                f"Images of {images.shape[1]}×{images.shape[2]} pixels do not fit this VAE; choose a size "
                f"that is a multiple of {downscale}."
            )
        moments = self.quant_conv(self.encoder(images)).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE_RANGE)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Unscaled latents (B, h, w, latent_channels) → float32 images (B, H, W, 3), about [−1, 1]."""
        return self.decoder(self.post_quant_conv(latents)).astype(jnp.float32)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Encode to the mean and decode again; this uses every parameter, as `init` requires."""
        return self.decode(self.encode(images)[0])
