"""Stable Diffusion as one pytree, with the few functions that the rest of the library needs.

Symbols: B batch; H, W image size; h, w latent size; L tokens; D text channels. Latents are scaled: what the
UNet sees, i.e. the VAE's own latents times `scaling_factor`. Images are float32 in [0, 1].
"""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax.typing import DTypeLike

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import normal
from ge3d_jax.diffusion.networks.adapters import Adapter
from ge3d_jax.diffusion.networks.attention_control import AttentionControl
from ge3d_jax.diffusion.networks.kernel_order import with_kernels_restored
from ge3d_jax.diffusion.networks.text_encoder import CLIPTextConfig, CLIPTextModel
from ge3d_jax.diffusion.networks.unet import UNet2DConditionModel, UNetConfig
from ge3d_jax.diffusion.networks.vae import AutoencoderKL, VAEConfig
from ge3d_jax.diffusion.schedule import (
    NoiseSchedule,
    epsilon_from_output,
    noise_schedule_from_config,
)
from ge3d_jax.diffusion.tokenizer import CLIPTokenizer, prompt_ids
from ge3d_jax.diffusion.weights.config_files import SCHEDULER, read_settings

# The settings that determine the result of `noise_schedule_from_config`.
_SCHEDULE_SETTINGS = (
    "beta_end",
    "beta_schedule",
    "beta_start",
    "num_train_timesteps",
    "prediction_type",
    "rescale_betas_zero_snr",
    "trained_betas",
)


@dataclasses.dataclass(frozen=True)
class Words:
    """A tokenizer that compares equal to any other, since compiled functions never see words.

    A function compiled for a model is therefore reused when the model is loaded again with a new tokenizer.
    """

    tokenizer: CLIPTokenizer = dataclasses.field(compare=False)


@struct.dataclass
class StableDiffusion:
    """A text-to-image latent diffusion model: parameters, the schedule, and the modules that use them.

    Attributes:
        unet_params, vae_params, text_params: the "params" collections of the modules' variables,
            where kernels may be OrderedKernels.
        schedule: the noise schedule.
        unet, vae, text_encoder: linen modules (static).
        scaling_factor: VAE latents × this = latents here (static).
        words: wraps the tokenizer (static).
        scheduler_config: the schedule's settings as (key, value) pairs, with diffusers' names (static).
    """

    unet_params: Any
    vae_params: Any
    text_params: Any
    schedule: NoiseSchedule
    unet: UNet2DConditionModel = struct.field(pytree_node=False)
    vae: AutoencoderKL = struct.field(pytree_node=False)
    text_encoder: CLIPTextModel = struct.field(pytree_node=False)
    scaling_factor: float = struct.field(pytree_node=False)
    words: Words = struct.field(pytree_node=False)
    scheduler_config: tuple[tuple[str, Any], ...] = struct.field(pytree_node=False)

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer, which turns prompts into token ids."""
        return self.words.tokenizer


def make_model(
    *,
    unet_params: Any,
    vae_params: Any,
    text_params: Any,
    unet_config: UNetConfig,
    vae_config: VAEConfig,
    text_config: CLIPTextConfig,
    tokenizer: CLIPTokenizer,
    scheduler_config: Mapping[str, Any],
    dtype: DTypeLike = jnp.float32,
) -> StableDiffusion:
    """Assemble a model from its parts; the networks compute in `dtype`, and parameters keep their dtype.

    Raises:
        UserError: the parts do not fit together, or the schedule is not supported.
    """
    if text_config.hidden_size != unet_config.cross_attention_dim:
        raise UserError(
            f"The text encoder's hidden_size {text_config.hidden_size} differs from the UNet's "
            f"cross_attention_dim {unet_config.cross_attention_dim}; take both from the same model."
        )
    if not vae_config.latent_channels == unet_config.in_channels == unet_config.out_channels:
        raise UserError(
            f"The VAE's latent_channels {vae_config.latent_channels} differ from the UNet's in_channels "
            f"{unet_config.in_channels} or out_channels {unet_config.out_channels}; "
            f"use a text-to-image model."
        )
    # Ids of added tokens need not be consecutive.
    tokens = 1 + max(tokenizer.get_vocab().values(), default=-1)
    if tokens > text_config.vocab_size:
        raise UserError(
            f"The tokenizer's {tokens} tokens do not fit the text encoder's vocab_size "
            f"{text_config.vocab_size}; take both from the same model."
        )
    settings = read_settings("scheduler", scheduler_config, used=SCHEDULER, ignored=None)
    return StableDiffusion(
        unet_params=unet_params,
        vae_params=vae_params,
        text_params=text_params,
        schedule=noise_schedule_from_config(scheduler_config),
        unet=UNet2DConditionModel(unet_config, dtype),
        vae=AutoencoderKL(vae_config, dtype),
        text_encoder=CLIPTextModel(text_config, dtype),
        scaling_factor=vae_config.scaling_factor,
        words=Words(tokenizer),
        scheduler_config=tuple((name, settings[name]) for name in _SCHEDULE_SETTINGS if name in settings),
    )


def with_attention_chunk(model: StableDiffusion, chunk: int) -> StableDiffusion:
    """Copy a model, limiting attention to `chunk` queries at a time where there is no flash attention."""
    return dataclasses.replace(
        model,
        unet=model.unet.clone(attention_chunk=chunk),
        vae=model.vae.clone(attention_chunk=chunk),
    )


def _apply(
    module: nn.Module,
    parameters: Any,
    *inputs: Any,
    lora: Any = None,
    method: str | None = None,
    mutable: str | bool = False,
) -> Any:
    # On a GPU, JAX rounds the factors of float32 products to 10 bits (TF32) by default. Users who choose
    # float32 there want its precision; those who want speed choose bfloat16.
    exact = jax.default_matmul_precision("highest") if module.dtype == jnp.float32 else nullcontext()
    parameters = with_kernels_restored(parameters)
    variables = {"params": parameters} if lora is None else {"params": parameters, "lora": lora}
    with exact:
        return module.apply(variables, *inputs, method=method, mutable=mutable)


def tokenize(model: StableDiffusion, prompts: Sequence[str]) -> np.ndarray:
    """Tokenize `prompts` to ids (B, L) int32, padded or (with a warning) truncated to the model's length."""
    length = min(model.tokenizer.model_max_length, model.text_encoder.config.max_position_embeddings)
    return prompt_ids(model.tokenizer, prompts, length)


@jax.jit
def encode_text_ids(model: StableDiffusion, ids: jax.Array) -> jax.Array:
    """Encode token ids (B, L) to text embeddings (B, L, D)."""
    return _apply(model.text_encoder, model.text_params, ids)


def encode_text(model: StableDiffusion, prompts: Sequence[str]) -> jax.Array:
    """Encode B prompts, any of which may be empty, to text embeddings (B, L, D)."""
    return encode_text_ids(model, tokenize(model, prompts))


def unet_output(
    model: StableDiffusion, x: jax.Array, t: jax.Array, text: jax.Array, adapter: Adapter | None = None
) -> jax.Array:
    """Return the UNet's raw output, ε or v (B, h, w, C); takes the same arguments as `predict_epsilon`."""
    if adapter is None:
        return _apply(model.unet, model.unet_params, x, t, text)
    return _apply(model.unet, model.unet_params, x, t, text, adapter.time_offset, lora=adapter.lora)


def predict_epsilon(
    model: StableDiffusion,
    x: jax.Array,
    t: jax.Array | int,
    text: jax.Array,
    adapter: Adapter | None = None,
) -> jax.Array:
    """ε_φ(x_t, t, y): the noise that the UNet sees in `x`, converted to ε if the network predicts v.

    Args:
        model: the model.
        x: (B, h, w, C) noisy latents.
        t: () or (B,) times, 0..T−1.
        text: (B, L, D) text embeddings.
        adapter: parameters trained alongside the frozen network; None for the network alone.

    Returns:
        (B, h, w, C).
    """
    chex.assert_rank([x, text], [4, 3])
    output = unet_output(model, x, jnp.asarray(t), text, adapter)
    return epsilon_from_output(model.schedule, output, x, t)


def predict_controlled(
    model: StableDiffusion,
    x: jax.Array,
    t: jax.Array | int,
    text: jax.Array,
    control: AttentionControl,
) -> tuple[jax.Array, jax.Array]:
    """ε_φ(x_t, t, y) for a batch that ends in P sources and their P targets, with attention maps.

    Args:
        model, x, t, text: as for `predict_epsilon`.
        control: what the targets take from their sources.

    Returns:
        ε (B, h, w, C), and the attention to the text after control, at the level `control.map_level` and
        averaged over layers and heads, (2P, h/2^level, w/2^level, L), sources first.
    """
    chex.assert_rank([x, text], [4, 3])
    t = jnp.asarray(t)
    output, sown = _apply(model.unet, model.unet_params, x, t, text, None, control, mutable="maps")
    layers = jax.tree.leaves(sown)
    height, width = (edge >> control.map_level for edge in x.shape[1:3])
    maps = jnp.mean(jnp.stack(layers), axis=0)
    maps = maps.reshape(maps.shape[0], height, width, maps.shape[-1])
    return epsilon_from_output(model.schedule, output, x, t), maps


def encode_posterior(model: StableDiffusion, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and log variance, (B, h, w, C) each, of the VAE's latents for images (B, H, W, 3) in [0, 1]."""
    chex.assert_rank(images, 4)
    return _apply(model.vae, model.vae_params, 2.0 * images - 1.0, method="encode")


def encode_images(model: StableDiffusion, images: jax.Array, key: jax.Array | None) -> jax.Array:
    """Encode images (B, H, W, 3) in [0, 1] to latents (B, h, w, C): a sample, or the mean without a key."""
    mean, log_variance = encode_posterior(model, images)
    noise = None if key is None else normal(key, mean.shape)
    return latents_from_posterior(model, mean, log_variance, noise)


def latents_from_posterior(
    model: StableDiffusion, mean: jax.Array, log_variance: jax.Array, noise: jax.Array | None
) -> jax.Array:
    """Turn `encode_posterior`'s result into latents (B, h, w, C): a sample, or the mean without noise."""
    if noise is not None:
        mean = mean + jnp.exp(0.5 * log_variance) * noise.astype(mean.dtype)
    return model.scaling_factor * mean


def decode_latents(model: StableDiffusion, latents: jax.Array) -> jax.Array:
    """Decode latents (B, h, w, C) to images (B, H, W, 3), clipped to [0, 1]."""
    chex.assert_rank(latents, 4)
    images = _apply(model.vae, model.vae_params, latents / model.scaling_factor, method="decode")
    return jnp.clip(0.5 * images + 0.5, 0.0, 1.0)


# For callers that are not compiled themselves.
compiled_decode = jax.jit(decode_latents)
