"""Stable Diffusion's text encoder: the text half of CLIP, equal to transformers' CLIPTextModel."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.networks.attention import attention
from ge3d_jax.diffusion.networks.blocks import layer_norm
from ge3d_jax.diffusion.weights.config_files import TEXT, TEXT_ACTIVATIONS, read_settings


def _quick_gelu(values: jax.Array) -> jax.Array:
    """CLIP's original approximation of gelu."""
    return values * jax.nn.sigmoid(1.702 * values)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = dict(
    zip(TEXT_ACTIVATIONS, (partial(jax.nn.gelu, approximate=False), _quick_gelu), strict=True)
)

# Tensors per layer.
_LAYER_TENSORS = 16
_FIXED = {"model_type": ("clip_text_model",)}
# Metadata of transformers, and settings for training, other heads, and text generation.
_IGNORED = (
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dropout",
    "dtype",
    "eos_token_id",
    "initializer_factor",
    "initializer_range",
    "pad_token_id",
    "projection_dim",
    "torch_dtype",
    "transformers_version",
)


@dataclass(frozen=True)
class CLIPTextConfig:
    """Dimensions of the text encoder, with transformers' names and defaults."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "CLIPTextConfig":
        """Read a `text_encoder/config.json`.

        Raises:
            UserError: a setting is not supported; the message names the key and its value.
        """
        # The format of the outputs (return_dict, output_hidden_states, …) does not affect the arithmetic.
        notes = [
            name for name in config if name.startswith(("return_", "output_", "use_", "is_", "chunk_size_"))
        ]
        return cls(
            **read_settings("text encoder", config, used=TEXT, fixed=_FIXED, ignored=(*_IGNORED, *notes))
        )

    def __post_init__(self) -> None:
        """Reject dimensions that do not fit together."""
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"text encoder config: hidden_size {self.hidden_size} must be a multiple of "
                f"num_attention_heads {self.num_attention_heads}."
            )

    @property
    def least_tensors(self) -> int:
        """A lower bound on the number of tensors of such a network, from its depth alone."""
        return _LAYER_TENSORS * self.num_hidden_layers

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of the `config.json` that describes this model to transformers."""
        return {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **asdict(self)}


class LayerConfig(Protocol):
    """The settings that an encoder's layers need; both `CLIPTextConfig` and `CLIPVisionConfig` have them."""

    @property
    def hidden_size(self) -> int:
        """Number of channels."""

    @property
    def intermediate_size(self) -> int:
        """Number of channels inside the feed-forward part."""

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers."""

    @property
    def num_attention_heads(self) -> int:
        """Number of heads per layer."""

    @property
    def hidden_act(self) -> str:
        """A key of ACTIVATIONS."""

    @property
    def layer_norm_eps(self) -> float:
        """ε of the layer norms."""


class CLIPAttention(nn.Module):
    """Multi-head self-attention with biases; causal for text."""

    heads: int
    dtype: DTypeLike = jnp.float32
    causal: bool = True

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(B, L, D) → (B, L, D)."""
        batch, length, channels = tokens.shape
        split = (batch, length, self.heads, channels // self.heads)
        query, key, value = (
            nn.Dense(channels, dtype=self.dtype, name=name)(tokens).reshape(split)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        mixed = attention(query, key, value, causal=self.causal).reshape(tokens.shape)
        return nn.Dense(channels, dtype=self.dtype, name="out_proj")(mixed)


class CLIPMLP(nn.Module):
    """The feed-forward part of a layer."""

    config: LayerConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(B, L, D) → (B, L, D)."""
        hidden = nn.Dense(self.config.intermediate_size, dtype=self.dtype, name="fc1")(tokens)
        hidden = ACTIVATIONS[self.config.hidden_act](hidden)
        return nn.Dense(self.config.hidden_size, dtype=self.dtype, name="fc2")(hidden)


class CLIPLayer(nn.Module):
    """Attention and feed-forward, each after a layer norm, with residuals."""

    config: LayerConfig
    dtype: DTypeLike = jnp.float32
    causal: bool = True

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(B, L, D) → (B, L, D)."""
        epsilon = self.config.layer_norm_eps
        normed = layer_norm(epsilon, self.dtype, "layer_norm1")(tokens)
        heads = self.config.num_attention_heads
        tokens = tokens + CLIPAttention(heads, self.dtype, self.causal, name="self_attn")(normed)
        normed = layer_norm(epsilon, self.dtype, "layer_norm2")(tokens)
        return tokens + CLIPMLP(self.config, self.dtype, name="mlp")(normed)


class CLIPEmbeddings(nn.Module):
    """Token embeddings plus learned position embeddings."""

    config: CLIPTextConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, input_ids: jax.Array) -> jax.Array:
        """(B, L) int → (B, L, D)."""
        config = self.config
        # Standard deviations from CLIP's own initialization.
        words = nn.Embed(
            config.vocab_size,
            config.hidden_size,
            embedding_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            name="token_embedding",
        )
        places = nn.Embed(
            config.max_position_embeddings,
            config.hidden_size,
            embedding_init=nn.initializers.normal(0.01),
            dtype=self.dtype,
            name="position_embedding",
        )
        return words(input_ids) + places(jnp.arange(input_ids.shape[1]))


class CLIPEncoder(nn.Module):
    """The stack of layers."""

    config: LayerConfig
    dtype: DTypeLike = jnp.float32
    causal: bool = True

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(B, L, D) → (B, L, D)."""
        for layer in range(self.config.num_hidden_layers):
            tokens = CLIPLayer(self.config, self.dtype, self.causal, name=f"layers_{layer}")(tokens)
        return tokens


class CLIPTextModel(nn.Module):
    """Maps token ids to the text embeddings that the UNet attends to."""

    config: CLIPTextConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, input_ids: jax.Array) -> jax.Array:
        """Return the last hidden state after the final layer norm.

        Args:
            input_ids: (B, L) int32, L ≤ max_position_embeddings. Padding is attended to like any other token,
                as in Stable Diffusion.

        Returns:
            (B, L, hidden_size) float32, or float64 if the computation is in float64.

        Raises:
            UserError: the sequence is longer than the position table.
        """
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise UserError(
                f"A text of {input_ids.shape[1]} tokens is too long for this text encoder; use at most "
                f"{self.config.max_position_embeddings}."
            )
        tokens = CLIPEmbeddings(self.config, self.dtype, name="embeddings")(input_ids)
        tokens = CLIPEncoder(self.config, self.dtype, name="encoder")(tokens)
        exact = jnp.promote_types(self.dtype, jnp.float32)
        return layer_norm(self.config.layer_norm_eps, self.dtype, "final_layer_norm")(tokens).astype(exact)


class CLIPTextFeatures(nn.Module):
    """Maps token ids to one feature vector per text: the projected last hidden state of its end token.

    Attributes:
        config: the text encoder's config.
        projection: D, the size of a feature vector; None for a text encoder without a projection, whose
            feature is the hidden state itself.
    """

    config: CLIPTextConfig
    projection: int | None = None

    @property
    def width(self) -> int:
        """The size of a feature vector, D."""
        return self.config.hidden_size if self.projection is None else self.projection

    @nn.compact
    def __call__(self, input_ids: jax.Array, ends: jax.Array) -> jax.Array:
        """Compute the features.

        Args:
            input_ids: (B, L) int32.
            ends: (B,) int32, the position of each text's end token; what follows it does not matter.

        Returns:
            (B, D) float32.
        """
        hidden = CLIPTextModel(self.config, name="text_model")(input_ids)
        ended = jnp.take_along_axis(hidden, ends[:, None, None], axis=1)[:, 0]
        if self.projection is None:
            return ended
        return nn.Dense(self.projection, use_bias=False, name="text_projection")(ended)
