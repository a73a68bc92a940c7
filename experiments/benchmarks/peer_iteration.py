"""The paper's iteration assembled from diffusers, and from gsplat if it is installed. Needs torch.

Written from the paper, not taken from its code: only the useful passes through the UNet, all branches of a
guided prediction in one batch, no gradient through the UNet. Cameras, nodes, noise, texts and their weights
are those of our own first iteration.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from torch.nn.functional import normalize

from benchmarks.iteration import (
    ITERATION,
    check_size,
    first_state,
    guided_branches,
    iteration_flop,
    random_embeddings,
)
from benchmarks.measure import Measurement
from benchmarks.models import Size, noise_schedule
from benchmarks.peer import (
    COMPILED,
    implementations,
    make_unet,
    make_vae,
    measure_torch,
    torch_device,
    torch_type,
)
from ge3d_jax.guidance.ge3d import dbc_weights
from ge3d_jax.guidance.prompts import perp_neg_embeddings
from ge3d_jax.splatting.gaussians import SH_C0
from ge3d_jax.training.cameras import StepInputs, sample_inputs
from ge3d_jax.training.config import Config

_SMALLEST_SQUARED_NORM = 1e-6


def find_gsplat() -> ModuleType | None:
    """The peer's rasterizer, if it can be imported and there is a GPU for it."""
    try:
        import gsplat
    except ImportError:
        return None
    return gsplat if torch_device().type == "cuda" else None


class Splats:
    """Splats as leaves for Adam, rendered by gsplat."""

    def __init__(self, gsplat: ModuleType, config: Config, inputs: StepInputs, device: torch.device) -> None:
        gaussians = first_state(config).gaussians
        used = np.asarray(gaussians.mask)

        def leaf(values: Any) -> torch.Tensor:
            return torch.tensor(np.asarray(values)[used], device=device, requires_grad=True)

        self.positions, self.log_scales = leaf(gaussians.positions), leaf(gaussians.log_scales)
        self.quaternions, self.logits = leaf(gaussians.quaternions), leaf(gaussians.opacity_logits)
        self.colors = leaf(gaussians.sh[:, 0])
        rates = config.optimizer
        groups = (
            (rates.position, self.positions),
            (rates.scale, self.log_scales),
            (rates.rotation, self.quaternions),
            (rates.opacity, self.logits),
            (rates.color, self.colors),
        )
        self.adam = torch.optim.Adam(
            [{"params": [value], "lr": rate[0]} for rate, value in groups], eps=rates.epsilon
        )
        self._rasterize = gsplat.rasterization
        self._size = config.image_size
        self._views = torch.tensor(np.asarray(inputs.cameras.world_to_camera), device=device)
        focal_x, focal_y, center_x, center_y = np.asarray(inputs.cameras.intrinsics).T
        intrinsics = np.zeros((config.views, 3, 3), np.float32)
        intrinsics[:, 0, 0], intrinsics[:, 1, 1] = focal_x, focal_y
        intrinsics[:, 0, 2], intrinsics[:, 1, 2], intrinsics[:, 2, 2] = center_x, center_y, 1.0
        self._intrinsics = torch.tensor(intrinsics, device=device)
        self._backgrounds = torch.tensor(np.asarray(inputs.backgrounds), device=device)

    def render(self) -> torch.Tensor:
        """All views, (B, 3, H, W)."""
        images, _, _ = self._rasterize(
            self.positions,
            normalize(self.quaternions, dim=-1),
            self.log_scales.exp(),
            self.logits.sigmoid(),
            (SH_C0 * self.colors + 0.5).clamp(min=0),
            self._views,
            self._intrinsics,
            self._size,
            self._size,
            backgrounds=self._backgrounds,
        )
        return images.permute(0, 3, 1, 2)


class Iteration:
    """One iteration with fixed cameras, nodes and noise; `run` repeats it."""

    def __init__(
        self, size: Size, config: Config, unet: Any, vae: Any, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._config, self._dtype = config, dtype
        self._unet = unet
        self._factor = vae.config.scaling_factor
        self._encode: Callable[[torch.Tensor], torch.Tensor] = lambda images: vae.encode(
            2 * images - 1
        ).latent_dist.sample()
        self._alphas = torch.tensor(np.asarray(noise_schedule().alphas_cumprod), device=device)

        edge = size.latent_size
        shape = (edge, edge, size.vae.latent_channels)
        state = first_state(config)
        inputs = sample_inputs(state.key, config, 0, latent_shape=shape, capacity=state.gaussians.capacity)
        self.nodes = int(inputs.active)
        self._times = np.asarray(inputs.node_times)[: self.nodes + 1].tolist()
        guidance = config.guidance
        balance = dbc_weights(
            0, config.iterations, config.nodes.count, inputs.active, width=guidance.dbc_width
        )
        self._balance = torch.tensor(np.asarray(balance), device=device)
        self._noise = torch.tensor(np.asarray(inputs.noise), device=device).permute(0, 3, 1, 2)

        embeddings = random_embeddings(size, config)
        positive, negatives, weights = perp_neg_embeddings(
            embeddings, inputs.azimuth, weight=guidance.perp_neg_weight
        )
        empty, noising = (
            jnp.broadcast_to(embedding, positive.shape)
            for embedding in (embeddings.negative, embeddings.noising)
        )
        branches = [empty, positive, negatives[:, 0], negatives[:, 1]][: guided_branches(config)]
        self._texts = torch.tensor(np.asarray(jnp.concatenate(branches)), device=device, dtype=dtype)
        self._noising_text = torch.tensor(np.asarray(noising), device=device, dtype=dtype)
        self._weights = torch.tensor(np.asarray(weights), device=device)[:, :, None, None, None]

        gsplat = find_gsplat()
        self.splats = None if gsplat is None else Splats(gsplat, config, inputs, device)
        pixels = (config.views, 3, config.image_size, config.image_size)
        self._images = torch.rand(pixels, device=device, requires_grad=True)

    def compile_networks(self) -> None:
        """Compile the UNet and the encoder with torch.compile."""
        self._unet, self._encode = torch.compile(self._unet), torch.compile(self._encode)

    def _predict(self, x: torch.Tensor, t: int, text: torch.Tensor) -> torch.Tensor:
        repeated = x.repeat(text.shape[0] // x.shape[0], 1, 1, 1).to(self._dtype)
        times = torch.full(repeated.shape[:1], t, device=x.device)
        return self._unet(repeated, times, text).sample.float()

    def _guided(self, x: torch.Tensor, t: int) -> torch.Tensor:
        predictions = self._predict(x, t, self._texts)
        empty, positive, *avoided = predictions.chunk(guided_branches(self._config))
        direction = positive - empty
        total = direction.clone()
        squared = direction.square().sum((1, 2, 3), keepdim=True).clamp(min=_SMALLEST_SQUARED_NORM)
        for index, other in enumerate(avoided):
            difference = other - empty
            along = (difference * direction).sum((1, 2, 3), keepdim=True) / squared
            total += self._weights[:, index] * (difference - along * direction)
        return empty + self._config.guidance.scale * total

    def _move(self, x: torch.Tensor, epsilon: torch.Tensor, start: int, end: int) -> torch.Tensor:
        now, then = self._alphas[start], self._alphas[end]
        clean = (x - (1 - now).sqrt() * epsilon) / now.sqrt()
        return then.sqrt() * clean + (1 - then).sqrt() * epsilon

    @torch.no_grad()
    def residual(self, z: torch.Tensor) -> torch.Tensor:
        """The residual of both trajectories, i.e. the gradient of the latents z (B, C, h, w), float32."""
        times = self._times
        up = [self._alphas[0].sqrt() * z + (1 - self._alphas[0]).sqrt() * self._noise]
        for start, end in zip(times, times[1:], strict=False):
            up.append(self._move(up[-1], self._predict(up[-1], start, self._noising_text), start, end))
        x, total = up[-1], torch.zeros_like(z)
        for i in reversed(range(self.nodes)):
            x = self._move(x, self._guided(x, times[i + 1]), times[i + 1], times[i])
            total += self._balance[i] * ((z if i == 0 else up[i]) - x)
        return self._config.loss.residual * torch.nan_to_num(total)

    def run(self) -> torch.Tensor:
        """The iteration. Adam updates the splats; without gsplat the gradient ends at the images."""
        images = self._images if self.splats is None else self.splats.render()
        z = self._factor * self._encode(images.to(self._dtype)).float()
        loss = (self.residual(z.detach()) * z).sum()
        variation = images.diff(dim=3).square().mean() + images.diff(dim=2).square().mean()
        loss = loss + self._config.loss.total_variation * 2 * variation
        if self.splats is None:
            return torch.autograd.grad(loss, images)[0]
        loss = loss + self._config.loss.scale * self.splats.log_scales.exp().mean()
        self.splats.adam.zero_grad()
        loss.backward()
        self.splats.adam.step()
        return loss.detach()


def measure_iteration(
    size: Size, config: Config, dtype: jnp.dtype, *, compiles: bool, repetitions: int, warm_up: int
) -> list[Measurement]:
    """Time the iteration, eagerly and, if `compiles`, with UNet and encoder compiled by torch.compile."""
    check_size(size, config)
    device, kind = torch_device(), torch_type(dtype)
    unet, vae = make_unet(size, device, kind), make_vae(size, device, kind)
    iteration = Iteration(size, config, unet, vae, device, kind)
    rendering = "without rendering, needs gsplat and a GPU" if iteration.splats is None else "gsplat"
    rows = []
    for implementation in implementations(compiles):
        if implementation == COMPILED:
            iteration.compile_networks()
        rows.append(
            measure_torch(
                ITERATION,
                implementation,
                iteration.run,
                flop=iteration_flop(size, config, iteration.nodes),
                repetitions=repetitions,
                warm_up=warm_up,
                note=f"{rendering}; {iteration.nodes} nodes",
            )
        )
    return rows
