"""Our networks under the clock: the UNet; the VAE's encoder, forward and back to the image; its decoder."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ge3d_jax.benchmarks.flops import count_flop
from ge3d_jax.benchmarks.measure import Measurement, measure_jax
from ge3d_jax.benchmarks.models import Size, random_parameters
from ge3d_jax.devices import batch_mesh, divided, everywhere
from ge3d_jax.diffusion.checkpoint import parameter_shapes
from ge3d_jax.diffusion.unet import UNet2DConditionModel
from ge3d_jax.diffusion.vae import AutoencoderKL

# The middle of the schedule.
TIME = 500
# More queries than any network has: attention then computes nothing twice, and shows all of its products.
_UNDIVIDED = 1 << 30

VAE_WORKS = ("VAE encode", "VAE encode and gradient", "VAE decode")

Function = Callable[..., Any]


def random_normal(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Standard normal float32, the same for us and for a peer."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def unet_inputs(size: Size, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents (B, h, w, C) and text (B, L, D)."""
    edge = size.latent_size
    latents = random_normal((batch, edge, edge, size.unet.in_channels), 0)
    return latents, random_normal((batch, size.tokens, size.unet.cross_attention_dim), 1)


def vae_inputs(work: str, size: Size, batch: int) -> tuple[np.ndarray, ...]:
    """What one of VAE_WORKS takes: images (B, H, W, 3) in [−1, 1], latents (B, h, w, C), or both.

    The latents stand for the gradient that is handed back, or are decoded.
    """
    images = np.tanh(random_normal((batch, size.image_size, size.image_size, 3), 2))
    edge = size.latent_size
    latents = random_normal((batch, edge, edge, size.vae.latent_channels), 3)
    return {"VAE encode": (images,), "VAE encode and gradient": (images, latents), "VAE decode": (latents,)}[
        work
    ]


def _unet_function(module: nn.Module) -> Function:
    return lambda parameters, x, text: module.apply({"params": parameters}, x, jnp.int32(TIME), text)


def _vae_function(work: str, module: nn.Module) -> Function:
    def encode(parameters: Any, images: jax.Array) -> jax.Array:
        return module.apply({"params": parameters}, images, method="encode")[0]

    def with_gradient(parameters: Any, images: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        latents, pull_back = jax.vjp(lambda x: encode(parameters, x), images)
        return latents, pull_back(gradient)[0]

    def decode(parameters: Any, latents: jax.Array) -> Any:
        return module.apply({"params": parameters}, latents, method="decode")

    functions: tuple[Function, ...] = (encode, with_gradient, decode)
    return dict(zip(VAE_WORKS, functions, strict=True))[work]


def _plain(module: nn.Module) -> nn.Module:
    return module.clone(dtype=jnp.float32, attention_chunk=_UNDIVIDED)


def unet_flop(size: Size, batch: int) -> int:
    """Useful operations of one pass of the UNet over a batch."""
    module = _plain(UNet2DConditionModel(size.unet))
    return count_flop(_unet_function(module), parameter_shapes(module), *unet_inputs(size, batch))


def vae_flop(work: str, size: Size, batch: int) -> int:
    """Useful operations of one of VAE_WORKS on a batch."""
    module = _plain(AutoencoderKL(size.vae))
    return count_flop(_vae_function(work, module), parameter_shapes(module), *vae_inputs(work, size, batch))


def _measure(
    work: str,
    function: Function,
    parameters: Any,
    inputs: tuple[np.ndarray, ...],
    flop: int,
    repetitions: int,
    warm_up: int,
) -> Measurement:
    mesh = batch_mesh(inputs[0].shape[0])
    return measure_jax(
        work,
        function,
        jax.device_put(parameters, everywhere(mesh)),
        *jax.device_put(inputs, divided(mesh)),
        flop=flop,
        repetitions=repetitions,
        warm_up=warm_up,
    )


def unet_work(batch: int) -> str:
    """The name of a row, the same for us and for a peer."""
    return f"UNet forward, batch {batch}"


def vae_work(work: str, batch: int) -> str:
    """The name of a row, the same for us and for a peer."""
    return f"{work}, batch {batch}"


def measure_unet(
    size: Size, dtype: jnp.dtype, batches: list[int], *, repetitions: int, warm_up: int
) -> list[Measurement]:
    """Time the UNet on latents of the model's own size; the devices share the batch."""
    module = UNet2DConditionModel(size.unet, dtype)
    parameters = random_parameters(module, dtype)
    return [
        _measure(
            unet_work(batch),
            _unet_function(module),
            parameters,
            unet_inputs(size, batch),
            unet_flop(size, batch),
            repetitions,
            warm_up,
        )
        for batch in batches
    ]


def measure_vae(
    size: Size, dtype: jnp.dtype, batches: list[int], *, repetitions: int, warm_up: int
) -> list[Measurement]:
    """Time VAE_WORKS on images of the model's own size; the devices share the batch."""
    module = AutoencoderKL(size.vae, dtype)
    parameters = random_parameters(module, dtype)
    return [
        _measure(
            vae_work(work, batch),
            _vae_function(work, module),
            parameters,
            vae_inputs(work, size, batch),
            vae_flop(work, size, batch),
            repetitions,
            warm_up,
        )
        for batch in batches
        for work in VAE_WORKS
    ]
