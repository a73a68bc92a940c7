"""A straightforward renderer in PyTorch: splats sorted by depth, every splat at every pixel, autograd.

Vectorized over splats and over chunks of pixels, on all cores. A chunk's graph is freed before the next one's
is built, so memory does not grow with the image.
"""

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.measure import Measurement, time_calls
from benchmarks.rendering import (
    BACKGROUND,
    BACKWARD,
    Case,
    ball,
    cameras_around,
    row_name,
)
from ge3d_jax.splatting.cameras import Camera
from ge3d_jax.splatting.gaussians import Gaussians

EAGER = "PyTorch eager"
# Splats × pixels of one chunk: about ten arrays of this many floats are alive at once.
_CHUNK = 2**22
# Beyond this many splats × pixels × views a run takes many minutes on a CPU, and is skipped.
_LARGEST_WORK = 2**30
_SH_C0 = 0.28209479177387814


def _rotations(quaternions: torch.Tensor) -> torch.Tensor:
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _project(splats: dict[str, torch.Tensor], pose: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    """(N, 9) mean, conic, opacity and color on the screen, nearest first."""
    focal, center = intrinsics[:2], intrinsics[2:]
    points = splats["positions"] @ pose[:3, :3].T + pose[:3, 3]
    depth = points[:, 2]
    axes = pose[:3, :3] @ _rotations(splats["quaternions"]) * splats["log_scales"].exp()[:, None]
    zero = torch.zeros_like(depth)
    jacobian = torch.stack(
        [
            torch.stack([focal[0] / depth, zero, -focal[0] * points[:, 0] / depth**2], -1),
            torch.stack([zero, focal[1] / depth, -focal[1] * points[:, 1] / depth**2], -1),
        ],
        -2,
    )
    rows = jacobian @ axes
    covariance = rows @ rows.mT + 0.3 * torch.eye(2, dtype=rows.dtype, device=rows.device)
    inverse = torch.linalg.inv(covariance)
    conic = torch.stack([inverse[:, 0, 0], inverse[:, 0, 1], inverse[:, 1, 1]], -1)
    color = torch.relu(0.5 + _SH_C0 * splats["sh"][:, 0])
    opacity = splats["opacity_logits"].sigmoid()[:, None]
    projected = torch.cat([focal * points[:, :2] / depth[:, None] + center, conic, opacity, color], -1)
    return projected[depth.argsort(stable=True)]


def _shade(projected: torch.Tensor, pixels: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
    """Colors (P, 3) of pixels (P, 2)."""
    x, y, xx, xy, yy, opacity = projected[:, :6].unbind(-1)
    dx, dy = pixels[:, :1] - x, pixels[:, 1:] - y
    alpha = opacity * torch.exp(-0.5 * (xx * dx * dx + yy * dy * dy) - xy * dx * dy)
    alpha = torch.where(alpha >= 1 / 255, alpha.clamp(max=0.99), 0.0)
    light = torch.cumprod(1 - alpha, dim=1)
    before = torch.cat([torch.ones_like(light[:, :1]), light[:, :-1]], dim=1)
    return (alpha * before) @ projected[:, 6:] + light[:, -1:] * background


def _tensor(values: object, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(values)).to(device)


def splat_tensors(gaussians: Gaussians, device: torch.device) -> dict[str, torch.Tensor]:
    """The trainable fields, of degree 0 and without padding, as leaves that require gradients."""
    names = ("positions", "log_scales", "quaternions", "opacity_logits", "sh")
    return {name: _tensor(getattr(gaussians, name), device).requires_grad_() for name in names}


def render_views(
    splats: dict[str, torch.Tensor], cameras: Camera, *, with_gradients: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (V, H, W, 3), and their mean square, whose gradient is added to the splats if requested."""
    device = splats["positions"].device
    columns, rows = np.meshgrid(np.arange(cameras.width) + 0.5, np.arange(cameras.height) + 0.5)
    pixels = _tensor(np.stack([columns, rows], -1).reshape(-1, 2).astype(np.float32), device)
    background = torch.tensor(BACKGROUND, device=device)
    length = max(1, _CHUNK // splats["positions"].shape[0])
    poses, intrinsics = _tensor(cameras.world_to_camera, device), _tensor(cameras.intrinsics, device)
    images = torch.empty(len(poses), len(pixels), 3, device=device)
    with torch.set_grad_enabled(with_gradients):
        for image, pose, lens in zip(images, poses, intrinsics, strict=True):
            projected = _project(splats, pose, lens)
            leaf = projected.detach().requires_grad_(with_gradients)
            for begin in range(0, len(pixels), length):
                colors = _shade(leaf, pixels[begin : begin + length], background)
                image[begin : begin + length] = colors.detach()
                if with_gradients:
                    (colors.square().sum() / images.numel()).backward()
            if with_gradients:
                projected.backward(leaf.grad)
    return images.reshape(-1, cameras.height, cameras.width, 3), images.square().mean()


def measure(cases: Sequence[Case]) -> list[Measurement]:
    """The rows of `rendering.measure` for PyTorch, each run once since it may take minutes.

    Rows that would take too long are skipped, with a note.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for case in cases:
        if case.splats * case.size**2 * case.views > _LARGEST_WORK:
            rows.append(Measurement(row_name(case), EAGER, note="not run: too much work"))
            continue
        splats, cameras = splat_tensors(ball(case.splats), device), cameras_around(case.views, case.size)

        def call(splats: dict = splats, cameras: Camera = cameras, case: Case = case) -> None:
            for leaf in splats.values():
                leaf.grad = None
            render_views(splats, cameras, with_gradients=case.work == BACKWARD)
            if device.type == "cuda":
                torch.cuda.synchronize()

        seconds = time_calls(call, repetitions=1, warm_up=0)
        rows.append(Measurement(row_name(case), EAGER, seconds))
    return rows
