"""The same work in PyTorch's diffusers, on the same device in the same process. Needs torch and diffusers.

The peer is set up as its users would: no gradients for weights, scaled-dot-product attention, channels last
on a GPU, all cores of a CPU. float32 means float32, as in ours: no TensorFloat-32.
"""

import time
from collections.abc import Callable
from typing import Any

import diffusers
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.measure import Measurement, time_calls
from benchmarks.models import Size
from benchmarks.networks import (
    TIME,
    UNET_FORWARD,
    VAE_DECODE,
    VAE_ENCODE,
    VAE_GRADIENT,
    inputs_of,
    row_name,
    work_flop,
)

EAGER, COMPILED = "PyTorch eager", "PyTorch compiled"
_LONGEST_NOTE = 100

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# It warns about casts, which are intended.
diffusers.utils.logging.set_verbosity_error()


def implementations(compiles: bool) -> tuple[str, ...]:
    """The peer's rows."""
    return (EAGER, COMPILED) if compiles else (EAGER,)


def torch_device() -> torch.device:
    """The GPU if PyTorch sees one, otherwise the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def torch_type(dtype: jnp.dtype) -> torch.dtype:
    """PyTorch's dtype for float32 or bfloat16."""
    return _TYPES[jnp.dtype(dtype).name]


def _place(module: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Any:
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    return module.to(device, dtype, memory_format=layout).requires_grad_(False).eval()


def make_unet(size: Size, device: torch.device, dtype: torch.dtype) -> Any:
    """diffusers' UNet with random weights."""
    return _place(diffusers.UNet2DConditionModel.from_config(size.unet.to_dict()), device, dtype)


def make_vae(size: Size, device: torch.device, dtype: torch.dtype) -> Any:
    """diffusers' VAE with random weights."""
    return _place(diffusers.AutoencoderKL.from_config(size.vae.to_dict()), device, dtype)


def to_torch(values: np.ndarray, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A batch in PyTorch's layout: images and latents (B, H, W, C) become (B, C, H, W), others stay."""
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(device, dtype)
    return tensor.permute(0, 3, 1, 2).contiguous() if tensor.ndim == 4 else tensor


def _call(work: str, network: Any, inputs: list[torch.Tensor], *, compiled: bool) -> Callable[[], Any]:
    """The work as a function without arguments, computing what ours does."""
    first = inputs[0]
    if work == UNET_FORWARD:
        times = torch.full(first.shape[:1], TIME, device=first.device)
    else:
        factor = network.config.scaling_factor

    def predict(x: torch.Tensor) -> torch.Tensor:
        return network(x, times, inputs[1]).sample

    def encode(x: torch.Tensor) -> torch.Tensor:
        return factor * network.encode(2 * x - 1).latent_dist.mean

    def decode(x: torch.Tensor) -> torch.Tensor:
        return (network.decode(x / factor).sample / 2 + 0.5).clamp(0, 1)

    functions = {UNET_FORWARD: predict, VAE_ENCODE: encode, VAE_GRADIENT: encode, VAE_DECODE: decode}
    function: Any = torch.compile(functions[work]) if compiled else functions[work]

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return function(first)

    def forward_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
        images = first.detach().requires_grad_(True)
        latents = function(images)
        return latents, torch.autograd.grad(latents, images, inputs[1])[0]

    return forward_and_gradient if work == VAE_GRADIENT else forward


def measure_torch(
    work: str,
    implementation: str,
    call: Callable[[], Any],
    *,
    flop: int | None,
    repetitions: int,
    warm_up: int,
    note: str = "",
) -> Measurement:
    """Time `call`, whose first run includes any compilation. A failure becomes the row's note."""
    on_gpu = torch_device().type == "cuda"

    def wait() -> None:
        call()
        if on_gpu:
            torch.cuda.synchronize()

    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    try:
        wait()
        first = time.perf_counter() - begun
        seconds = time_calls(wait, repetitions=repetitions, warm_up=warm_up)
    except Exception as error:
        # Whatever stops the peer (no compiler, too little memory) must not discard the other rows.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Measurement(work, implementation, note=reason[:_LONGEST_NOTE])
    return Measurement(
        work=work,
        implementation=implementation,
        seconds=seconds,
        flop=flop,
        compile_seconds=first if implementation == COMPILED else None,
        peak_bytes=torch.cuda.max_memory_allocated() if on_gpu else None,
        note=note,
    )


def measure_networks(
    works: tuple[str, ...],
    size: Size,
    dtype: jnp.dtype,
    batches: list[int],
    *,
    compiles: bool,
    repetitions: int,
    warm_up: int,
) -> list[Measurement]:
    """Time works, all of the UNet or all of the VAE, eagerly and, if `compiles`, with torch.compile."""
    device, kind = torch_device(), torch_type(dtype)
    network = make_unet(size, device, kind) if UNET_FORWARD in works else make_vae(size, device, kind)
    rows = []
    for implementation in implementations(compiles):
        for batch in batches:
            for work in works:
                inputs = [to_torch(values, device, kind) for values in inputs_of(work, size, batch)]
                call = _call(work, network, inputs, compiled=implementation == COMPILED)
                rows.append(
                    measure_torch(
                        row_name(work, batch),
                        implementation,
                        call,
                        flop=work_flop(work, size, batch),
                        repetitions=repetitions,
                        warm_up=warm_up,
                    )
                )
    return rows
