"""The noise predictor of Stable Diffusion 1.x and 2.x, equal to diffusers' UNet2DConditionModel."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.networks.attention import QUERIES_AT_A_TIME
from ge3d_jax.diffusion.networks.attention_control import AttentionControl, BlockControl
from ge3d_jax.diffusion.networks.blocks import (
    Downsample2D,
    ResnetBlock2D,
    TimestepEmbedding,
    Transformer2DModel,
    Upsample2D,
    conv3x3,
    timestep_embedding,
)
from ge3d_jax.diffusion.networks.group_norm import GroupNorm
from ge3d_jax.diffusion.weights.config_files import UNET, read_settings

# Settings of diffusers' class whose other values would change the arithmetic, with the supported values.
_FIXED = {
    "act_fn": ("silu", "swish"),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (1,),
    "dropout": (0,),
    "time_embedding_type": ("positional",),
    "resnet_time_scale_shift": ("default",),
    "resnet_out_scale_factor": (1,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    # diffusers rejects it, too: published configs keep the number of heads in attention_head_dim.
    "num_attention_heads": (None,),
}
# Tensors of a residual block, and of one layer of a transformer.
_RESIDUAL_TENSORS, _TRANSFORMER_TENSORS = 10, 20
# A quarter of the edge, where Prompt-to-Prompt takes its attention maps: 16×16 in Stable Diffusion.
_MAP_LEVEL = 2
# The head size of the addition embedding, which itself must be off; and the dtype that Flax computed in.
_IGNORED = ("addition_embed_type_num_heads", "dtype")


@dataclass(frozen=True)
class UNetConfig:
    """Dimensions of the UNet, with diffusers' names, and diffusers' defaults for absent keys.

    `attention_head_dim`, despite its name, counts heads: one number for all blocks, or one per block.
    `upcast_attention` is kept only to be written back: logits are always float32 here.
    `sample_size` is the size of the latents that the model was trained on; other sizes are accepted.
    """

    sample_size: int | None = None
    in_channels: int = 4
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int = 1
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    upcast_attention: bool = False

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "UNetConfig":
        """Read a `unet/config.json`.

        Raises:
            UserError: a setting is not supported; the message names the key and its value.
        """
        return cls(**read_settings("UNet", config, used=UNET, fixed=_FIXED, ignored=_IGNORED))

    def __post_init__(self) -> None:
        """Reject dimensions that do not fit together."""
        blocks = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            types = getattr(self, name)
            if len(types) != blocks:
                raise UserError(
                    f"UNet config: {name} = {list(types)!r} is not supported; it must name {blocks} blocks, "
                    "one for each of block_out_channels."
                )
        if 2 * self.freq_shift >= self.block_out_channels[0]:
            raise UserError(
                f"UNet config: freq_shift = {self.freq_shift} must be below half of the first of "
                f"block_out_channels, {self.block_out_channels[0]}."
            )
        if len(self.heads) != blocks:
            raise UserError(
                f"UNet config: attention_head_dim = {self.attention_head_dim!r} must be one number "
                f"or {blocks} numbers."
            )
        for channels, heads in zip(self.block_out_channels, self.heads, strict=True):
            if channels % heads or channels % self.norm_num_groups:
                raise UserError(
                    f"UNet config: block_out_channels {channels} must be a multiple of norm_num_groups "
                    f"{self.norm_num_groups} and of its number of heads in attention_head_dim, {heads}."
                )

    @property
    def heads(self) -> tuple[int, ...]:
        """The number of attention heads in each block."""
        if isinstance(self.attention_head_dim, int):
            return (self.attention_head_dim,) * len(self.block_out_channels)
        return self.attention_head_dim

    @property
    def least_tensors(self) -> int:
        """A lower bound on the number of tensors of such a network, from its depth alone."""
        down, up = (
            sum(kind.startswith("CrossAttn") for kind in kinds)
            for kinds in (self.down_block_types, self.up_block_types)
        )
        blocks, layers = len(self.block_out_channels), self.layers_per_block
        residual = blocks * layers + blocks * (layers + 1) + 2
        transformers = down * layers + up * (layers + 1) + 1
        return _RESIDUAL_TENSORS * residual + _TRANSFORMER_TENSORS * transformers * (
            self.transformer_layers_per_block
        )

    @property
    def map_level(self) -> int:
        """The level whose attention to words shows where things are: a quarter of the latent's edge.

        Level l has 1/2^l of the edge. If there is no attention at a quarter, the nearest level with a longer
        edge that has it; if only levels with shorter edges have it, the last of them.
        """
        attending = [
            level for level, kind in enumerate(self.down_block_types) if kind.startswith("CrossAttn")
        ]
        return max((level for level in attending if level <= _MAP_LEVEL), default=max(attending, default=0))

    @property
    def time_width(self) -> int:
        """E, the width of the time embedding, which every residual block sees."""
        return 4 * self.block_out_channels[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of the `config.json` that describes this model to diffusers."""
        return {"_class_name": "UNet2DConditionModel", **asdict(self)}


class _Block(nn.Module):
    """Base class of the three kinds of blocks, which creates their layers with diffusers' names."""

    config: UNetConfig
    channels: int
    heads: int
    dtype: DTypeLike = jnp.float32
    attention_chunk: int = QUERIES_AT_A_TIME

    def resnet(self, index: int) -> ResnetBlock2D:
        """Create residual block number `index`."""
        config = self.config
        return ResnetBlock2D(
            self.channels, config.norm_num_groups, config.norm_eps, self.dtype, name=f"resnets_{index}"
        )

    def transformer(self, index: int) -> Transformer2DModel:
        """Create transformer number `index`."""
        config = self.config
        return Transformer2DModel(
            self.heads,
            config.norm_num_groups,
            config.transformer_layers_per_block,
            config.use_linear_projection,
            self.dtype,
            self.attention_chunk,
            name=f"attentions_{index}",
        )


class DownBlock(_Block):
    """DownBlock2D, or CrossAttnDownBlock2D if `attends`; also returns the states for the skip connections."""

    attends: bool = False
    downsamples: bool = True

    @nn.compact
    def __call__(
        self,
        hidden: jax.Array,
        time: jax.Array,
        text: jax.Array,
        control: BlockControl | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """`hidden` (B, h, w, C), `time` (B, E), `text` (B, L, D)."""
        kept: tuple[jax.Array, ...] = ()
        for layer in range(self.config.layers_per_block):
            hidden = self.resnet(layer)(hidden, time)
            if self.attends:
                hidden = self.transformer(layer)(hidden, text, control)
            kept += (hidden,)
        if self.downsamples:
            hidden = Downsample2D(self.channels, (1, 1), self.dtype, name="downsamplers_0")(hidden)
            kept += (hidden,)
        return hidden, kept


class MidBlock(_Block):
    """UNetMidBlock2DCrossAttn: a residual block, a transformer, a residual block."""

    @nn.compact
    def __call__(
        self,
        hidden: jax.Array,
        time: jax.Array,
        text: jax.Array,
        control: BlockControl | None = None,
    ) -> jax.Array:
        """`hidden` (B, h, w, C), `time` (B, E), `text` (B, L, D) -> (B, h, w, C)."""
        hidden = self.resnet(0)(hidden, time)
        hidden = self.transformer(0)(hidden, text, control)
        return self.resnet(1)(hidden, time)


class UpBlock(_Block):
    """UpBlock2D, or CrossAttnUpBlock2D if `attends`: each residual block also takes a skip connection."""

    attends: bool = False
    upsamples: bool = True

    @nn.compact
    def __call__(
        self,
        hidden: jax.Array,
        kept: tuple[jax.Array, ...],
        time: jax.Array,
        text: jax.Array,
        control: BlockControl | None = None,
    ) -> jax.Array:
        """`hidden` (B, h, w, C), `kept` in the order of their use, `time` (B, E), `text` (B, L, D)."""
        for layer, state in enumerate(kept):
            hidden = self.resnet(layer)(jnp.concatenate([hidden, state], axis=-1), time)
            if self.attends:
                hidden = self.transformer(layer)(hidden, text, control)
        if self.upsamples:
            hidden = Upsample2D(self.channels, self.dtype, name="upsamplers_0")(hidden)
        return hidden


class UNet2DConditionModel(nn.Module):
    """Predicts the noise (or v) in latents from their time and a text.

    `dtype` is the precision of the computation; norm statistics, softmax, and the time embedding are always
    float32. `attention_chunk` is the number of queries at a time without flash attention.
    """

    config: UNetConfig
    dtype: DTypeLike = jnp.float32
    attention_chunk: int = QUERIES_AT_A_TIME

    @nn.compact
    def __call__(
        self,
        sample: jax.Array,
        timesteps: jax.Array,
        encoder_hidden_states: jax.Array,
        time_offset: jax.Array | None = None,
        control: AttentionControl | None = None,
    ) -> jax.Array:
        """Run the network. A variable collection "lora" beside "params" holds trainable LoRA: `adapters.py`.

        With a `control`, the collection "maps" receives the attention to the text of the down and up blocks
        at its `map_level`, averaged over the heads, (2P, pixels, L) each; the middle block adds none.

        Args:
            sample: (B, h, w, in_channels) noisy scaled latents; h and w multiples of 2^(blocks − 1).
            timesteps: (B,) or (), steps of the schedule (0..999), integer or fractional.
            encoder_hidden_states: (B, L, cross_attention_dim) text embeddings.
            time_offset: (B, E), added to the time embedding, e.g. an embedded camera; E is the config's
                `time_width`.
            control: what the last 2P of the batch, P sources and P targets, share; None for nothing.

        Returns:
            (B, h, w, out_channels) in the dtype of `sample`.

        Raises:
            UserError: h or w cannot be halved often enough.
        """
        config, dtype = self.config, self.dtype
        last = len(config.block_out_channels) - 1
        if sample.shape[1] % 2**last or sample.shape[2] % 2**last:
            raise UserError(
                f"Latents of {sample.shape[1]}×{sample.shape[2]} do not fit this UNet; choose an image size "
                f"whose latents are multiples of {2**last}."
            )
        sinusoids = timestep_embedding(
            jnp.broadcast_to(timesteps, sample.shape[:1]),
            config.block_out_channels[0],
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        # At least float32: these products are small, and half precision would blur neighboring times.
        exact = jnp.promote_types(dtype, jnp.float32)
        time = TimestepEmbedding(config.time_width, exact, name="time_embedding")(sinusoids)
        if time_offset is not None:
            time = time + time_offset.astype(time.dtype)
        text = encoder_hidden_states.astype(dtype)

        def at_level(level: int, *, returns_map: bool = True) -> BlockControl | None:
            return None if control is None else control.at_level(level, returns_map=returns_map)

        hidden = conv3x3(config.block_out_channels[0], dtype, "conv_in")(sample)
        kept: tuple[jax.Array, ...] = (hidden,)
        for index, (kind, channels) in enumerate(
            zip(config.down_block_types, config.block_out_channels, strict=True)
        ):
            down = DownBlock(
                config,
                channels,
                config.heads[index],
                dtype,
                self.attention_chunk,
                attends=kind == "CrossAttnDownBlock2D",
                downsamples=index < last,
                name=f"down_blocks_{index}",
            )
            hidden, states = down(hidden, time, text, at_level(index))
            kept += states

        mid = MidBlock(
            config,
            config.block_out_channels[-1],
            config.heads[-1],
            dtype,
            self.attention_chunk,
            name="mid_block",
        )
        hidden = mid(hidden, time, text, at_level(last, returns_map=False))

        for index, kind in enumerate(config.up_block_types):
            up = UpBlock(
                config,
                config.block_out_channels[last - index],
                config.heads[last - index],
                dtype,
                self.attention_chunk,
                attends=kind == "CrossAttnUpBlock2D",
                upsamples=index < last,
                name=f"up_blocks_{index}",
            )
            count = config.layers_per_block + 1
            hidden = up(hidden, kept[: -count - 1 : -1], time, text, at_level(last - index))
            kept = kept[:-count]

        hidden = nn.silu(
            GroupNorm(config.norm_num_groups, config.norm_eps, dtype, name="conv_norm_out")(hidden)
        )
        hidden = conv3x3(config.out_channels, dtype, "conv_out", zero=True)(hidden)
        return hidden.astype(sample.dtype)
