"""The same work from PyTorch's diffusers, on the same device in the same process. Needs torch and diffusers.

The peer gets what its users would give it: no gradients for weights, scaled-dot-product attention, channels
last on a GPU, TensorFloat-32 for float32 there as JAX has it, all cores on a processor.
"""

import gc
import time
from collections.abc import Callable
from typing import Any

import diffusers
import jax.numpy as jnp
import numpy as np
import torch

from ge3d_jax.benchmarks.measure import Measurement, time_calls
from ge3d_jax.benchmarks.models import Size
from ge3d_jax.benchmarks.networks import (
    TIME,
    VAE_WORKS,
    unet_flop,
    unet_inputs,
    unet_work,
    vae_flop,
    vae_inputs,
    vae_work,
)

EAGER, COMPILED = "PyTorch eager", "PyTorch compiled"

# It remarks on casts, which are meant.
diffusers.utils.logging.set_verbosity_error()

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def torch_device() -> torch.device:
    """The GPU where PyTorch sees one, else the processor."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    return device


def torch_type(dtype: jnp.dtype) -> torch.dtype:
    """PyTorch's name of float32 or bfloat16."""
    return _TYPES[jnp.dtype(dtype).name]


def place(module: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """A network ready to be timed."""
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    return module.to(device, dtype, memory_format=layout).requires_grad_(False).eval()


def to_torch(values: np.ndarray, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A batch as PyTorch wants it: images and latents (B, H, W, C) become (B, C, H, W), other arrays stay."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    tensor = tensor.permute(0, 3, 1, 2).contiguous() if tensor.ndim == 4 else tensor
    return tensor.to(device, dtype)


def unet_network(size: Size) -> torch.nn.Module:
    """diffusers' UNet with random weights."""
    return diffusers.UNet2DConditionModel.from_config(size.unet.to_dict())


def vae_network(size: Size) -> torch.nn.Module:
    """diffusers' VAE with random weights."""
    return diffusers.AutoencoderKL.from_config(size.vae.to_dict())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:120]


def measure_torch(
    work: str,
    call: Callable[[], Any],
    *,
    implementation: str,
    device: torch.device,
    flop: int | None,
    repetitions: int,
    warm_up: int,
    note: str = "",
) -> Measurement:
    """Time `call`, whose first run compiles where anything is compiled. A failure becomes the row's note."""

    def wait() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()

    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    try:
        wait()
        first = time.perf_counter() - begun
        seconds = time_calls(wait, repetitions=repetitions, warm_up=warm_up)
    except Exception as error:
        # Whatever keeps the peer from running (no compiler, no memory) must not lose the other rows.
        return Measurement(work, implementation, note=_first_line(error))
    return Measurement(
        work=work,
        implementation=implementation,
        seconds=seconds,
        flop=flop,
        compile_seconds=first if implementation == COMPILED else None,
        peak_bytes=torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        note=note,
    )


def _vae_call(work: str, vae: Any, inputs: list[torch.Tensor]) -> Callable[[], Any]:
    def encode() -> torch.Tensor:
        with torch.no_grad():
            return vae.encode(inputs[0]).latent_dist.mean

    def with_gradient() -> torch.Tensor:
        images = inputs[0].detach().requires_grad_(True)
        latents = vae.encode(images).latent_dist.mean
        return torch.autograd.grad(latents, images, inputs[1])[0]

    def decode() -> torch.Tensor:
        with torch.no_grad():
            return vae.decode(inputs[0]).sample

    return dict(zip(VAE_WORKS, (encode, with_gradient, decode), strict=True))[work]


def measure_unet(
    size: Size, dtype: jnp.dtype, batches: list[int], *, compiles: bool, repetitions: int, warm_up: int
) -> list[Measurement]:
    """Time diffusers' UNet, eager and, where it `compiles`, through torch.compile."""
    device, kind = torch_device(), torch_type(dtype)
    network = place(unet_network(size), device, kind)
    rows = []
    for implementation in (EAGER, COMPILED)[: 1 + compiles]:
        unet = network if implementation == EAGER else torch.compile(network)
        for batch in batches:
            latents, text = (to_torch(values, device, kind) for values in unet_inputs(size, batch))
            times = torch.full((batch,), TIME, device=device)

            def call(unet: Any = unet, inputs: tuple[torch.Tensor, ...] = (latents, times, text)) -> Any:
                with torch.no_grad():
                    return unet(*inputs).sample

            rows.append(
                measure_torch(
                    unet_work(batch),
                    call,
                    implementation=implementation,
                    device=device,
                    flop=unet_flop(size, batch),
                    repetitions=repetitions,
                    warm_up=warm_up,
                )
            )
    return rows


def measure_vae(
    size: Size, dtype: jnp.dtype, batches: list[int], *, compiles: bool, repetitions: int, warm_up: int
) -> list[Measurement]:
    """Time diffusers' VAE, eager and, where it `compiles`, through torch.compile."""
    device, kind = torch_device(), torch_type(dtype)
    vae: Any = place(vae_network(size), device, kind)
    rows = []
    for implementation in (EAGER, COMPILED)[: 1 + compiles]:
        if implementation == COMPILED:
            vae.encoder, vae.decoder = torch.compile(vae.encoder), torch.compile(vae.decoder)
        for batch in batches:
            for work in VAE_WORKS:
                inputs = [to_torch(values, device, kind) for values in vae_inputs(work, size, batch)]
                rows.append(
                    measure_torch(
                        vae_work(work, batch),
                        _vae_call(work, vae, inputs),
                        implementation=implementation,
                        device=device,
                        flop=vae_flop(work, size, batch),
                        repetitions=repetitions,
                        warm_up=warm_up,
                    )
                )
                gc.collect()
    return rows
