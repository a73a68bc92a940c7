"""The paper's iteration assembled from diffusers, and from gsplat where it is installed. Needs torch.

Written from the paper, not taken from its code: the useful passes through the UNet only, all branches of a
guided prediction in one batch, no gradient through the UNet. Cameras, nodes, noise, texts and their weights
are those of our own first iteration.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn.functional import normalize

from benchmarks.iteration import (
    ITERATION,
    check,
    first_state,
    ge3d_of,
    iteration_flop,
    random_embeddings,
    splats_of,
)
from benchmarks.measure import Measurement
from benchmarks.models import Size, noise_schedule, random_model
from benchmarks.peer import (
    COMPILED,
    implementations,
    make_unet,
    make_vae,
    measure_torch,
    torch_device,
    torch_type,
)
from ge3d_jax.guidance.base import Progress
from ge3d_jax.guidance.prompts import view_texts
from ge3d_jax.guidance.trajectories import noising_text
from ge3d_jax.scenes.splats import Splats as OurSplats
from ge3d_jax.splatting.cameras import Camera
from ge3d_jax.splatting.gaussians import SH_C0, Gaussians
from ge3d_jax.training.config import Config
from ge3d_jax.training.distillation import Distillation, Prompted
from ge3d_jax.training.optimizer import EPSILON

_SMALLEST_SQUARED_NORM = 1e-6


def find_gsplat() -> ModuleType | None:
    """The peer's rasterizer, where it can be imported and there is a GPU for it."""
    try:
        import gsplat
    except ImportError:
        return None
    return gsplat if torch_device().type == "cuda" else None


class Splats:
    """Splats as leaves for Adam, rendered by gsplat."""

    def __init__(
        self,
        gsplat: ModuleType,
        scene: OurSplats,
        gaussians: Gaussians,
        cameras: Camera,
        backgrounds: jax.Array,
        size: int,
        device: torch.device,
    ) -> None:
        used = np.asarray(gaussians.mask)

        def leaf(values: Any) -> torch.Tensor:
            return torch.tensor(np.asarray(values)[used], device=device, requires_grad=True)

        self.positions, self.log_scales = leaf(gaussians.positions), leaf(gaussians.log_scales)
        self.quaternions, self.logits = leaf(gaussians.quaternions), leaf(gaussians.opacity_logits)
        self.colors = leaf(gaussians.sh[:, 0])
        rates = scene.learning_rates
        groups = (
            (rates.position, self.positions),
            (rates.scale, self.log_scales),
            (rates.rotation, self.quaternions),
            (rates.opacity, self.logits),
            (rates.color, self.colors),
        )
        self.adam = torch.optim.Adam(
            [{"params": [value], "lr": rate[0]} for rate, value in groups], eps=EPSILON
        )
        self._rasterize = gsplat.rasterization
        self._size = size
        self._views = torch.tensor(np.asarray(cameras.world_to_camera), device=device)
        focal_x, focal_y, center_x, center_y = np.asarray(cameras.intrinsics).T
        intrinsics = np.zeros((len(focal_x), 3, 3), np.float32)
        intrinsics[:, 0, 0], intrinsics[:, 1, 1] = focal_x, focal_y
        intrinsics[:, 0, 2], intrinsics[:, 1, 2], intrinsics[:, 2, 2] = center_x, center_y, 1.0
        self._intrinsics = torch.tensor(intrinsics, device=device)
        self._backgrounds = torch.tensor(np.asarray(backgrounds), device=device)

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
        self._dtype = dtype
        self._guidance, self._scene = ge3d_of(config), splats_of(config)
        self._total_variation = config.total_variation
        self._unet = unet
        self._factor = vae.config.scaling_factor
        self._encode: Callable[[torch.Tensor], torch.Tensor] = lambda images: vae.encode(
            2 * images - 1
        ).latent_dist.sample()
        self._alphas = torch.tensor(np.asarray(noise_schedule().alphas_cumprod), device=device)

        model = random_model(size, jnp.dtype(jnp.float32), has_unet=False, has_vae=False)
        embeddings = random_embeddings(size)
        state = first_state(config, model)
        drawn = Distillation(config).draw(state, Prompted(model, embeddings))
        shared, per_view = drawn.shared["loss"], drawn.per_view
        self.nodes = int(shared["active"])
        self._times = np.asarray(shared["node_times"])[: self.nodes + 1].tolist()
        balance = self._guidance.weights(Progress(state.iteration, config.iterations), shared["active"])
        self._balance = torch.tensor(np.asarray(balance), device=device)
        noise = np.asarray(per_view["loss"]["noise"])
        self._noise = torch.tensor(noise, device=device).permute(0, 3, 1, 2)

        text = view_texts(
            embeddings,
            per_view["azimuth"],
            use_perp_neg=config.prompts.use_perp_neg,
            weight=config.prompts.perp_neg_weight,
        )

        def for_all(embedding: jax.Array) -> jax.Array:
            return jnp.broadcast_to(embedding, text.positive.shape)

        branches = [for_all(text.negative), text.positive, *jnp.moveaxis(text.avoided, 1, 0)]
        noising = for_all(noising_text(text, self._guidance.noising_prompt))
        self._branches = len(branches)
        self._texts = torch.tensor(np.asarray(jnp.concatenate(branches)), device=device, dtype=dtype)
        self._noising_text = torch.tensor(np.asarray(noising), device=device, dtype=dtype)
        self._weights = torch.tensor(np.asarray(text.weights), device=device)[:, :, None, None, None]

        gsplat = find_gsplat()
        self.splats = None
        if gsplat is not None:
            self.splats = Splats(
                gsplat,
                self._scene,
                state.scene.gaussians,
                per_view["cameras"],
                per_view["backgrounds"],
                config.image_size,
                device,
            )
        pixels = (config.views, 3, config.image_size, config.image_size)
        self._images = torch.rand(pixels, device=device, requires_grad=True)

    def compile_networks(self) -> None:
        """Run UNet and encoder through torch.compile from now on."""
        self._unet, self._encode = torch.compile(self._unet), torch.compile(self._encode)

    def _predict(self, x: torch.Tensor, t: int, text: torch.Tensor) -> torch.Tensor:
        repeated = x.repeat(text.shape[0] // x.shape[0], 1, 1, 1).to(self._dtype)
        times = torch.full(repeated.shape[:1], t, device=x.device)
        return self._unet(repeated, times, text).sample.float()

    def _guided(self, x: torch.Tensor, t: int) -> torch.Tensor:
        predictions = self._predict(x, t, self._texts)
        empty, positive, *avoided = predictions.chunk(self._branches)
        direction = positive - empty
        total = direction.clone()
        squared = direction.square().sum((1, 2, 3), keepdim=True).clamp(min=_SMALLEST_SQUARED_NORM)
        for index, other in enumerate(avoided):
            difference = other - empty
            along = (difference * direction).sum((1, 2, 3), keepdim=True) / squared
            total += self._weights[:, index] * (difference - along * direction)
        return empty + self._guidance.scale * total

    def _move(self, x: torch.Tensor, epsilon: torch.Tensor, start: int, end: int) -> torch.Tensor:
        now, then = self._alphas[start], self._alphas[end]
        clean = (x - (1 - now).sqrt() * epsilon) / now.sqrt()
        return then.sqrt() * clean + (1 - then).sqrt() * epsilon

    @torch.no_grad()
    def residual(self, z: torch.Tensor) -> torch.Tensor:
        """What both trajectories hand back to the latents z (B, C, h, w), float32."""
        times = self._times
        up = [self._alphas[0].sqrt() * z + (1 - self._alphas[0]).sqrt() * self._noise]
        for start, end in zip(times, times[1:], strict=False):
            up.append(self._move(up[-1], self._predict(up[-1], start, self._noising_text), start, end))
        x, total = up[-1], torch.zeros_like(z)
        for i in reversed(range(self.nodes)):
            x = self._move(x, self._guided(x, times[i + 1]), times[i + 1], times[i])
            total += self._balance[i] * ((z if i == 0 else up[i]) - x)
        return self._guidance.strength * torch.nan_to_num(total)

    def run(self) -> torch.Tensor:
        """The iteration. The gradient moves the splats by Adam, or ends at the images without any."""
        images = self._images if self.splats is None else self.splats.render()
        z = self._factor * self._encode(images.to(self._dtype)).float()
        loss = (self.residual(z.detach()) * z).sum()
        variation = images.diff(dim=3).square().mean() + images.diff(dim=2).square().mean()
        loss = loss + self._total_variation * 2 * variation
        if self.splats is None:
            return torch.autograd.grad(loss, images)[0]
        loss = loss + self._scene.scale_penalty * self.splats.log_scales.exp().mean()
        self.splats.adam.zero_grad()
        loss.backward()
        self.splats.adam.step()
        return loss.detach()


def measure_iteration(
    size: Size, config: Config, dtype: jnp.dtype, *, compiles: bool, repetitions: int, warm_up: int
) -> list[Measurement]:
    """Time the iteration, eager and, where it `compiles`, with UNet and encoder through torch.compile."""
    check(size, config)
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
