"""How close an object is to its ground truth in the Toybox world: images, silhouettes, surface, stray splats.

All images are on white, from cameras that the object and the ground truth share.

| name | meaning | best |
|---|---|---|
| psnr | peak signal-to-noise ratio to the true views, in decibels, averaged over views | ∞ |
| ssim | structural similarity to the true views, averaged over views | 1 |
| overlap | intersection over union of the silhouettes, i.e. pixels that are more than half covered | 1 |
| sharpness | mean squared difference of neighboring pixels, relative to the true views; blur lowers it | 1 |
| tint | mean chroma (largest minus smallest channel) where the truth is neutral | 0 |
| chamfer | mean distance between the visible surfaces, in both directions, divided by the object's size | 0 |
| depth | mean depth difference where both cover a pixel, divided by the object's size | 0 |
| specks | fraction of the splats' opacity more than 5 % of the object's size outside its surface | 0 |
"""

from dataclasses import dataclass
from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import cKDTree

from ge3d_jax.metrics.pictures import psnr, ssim
from ge3d_jax.splatting.cameras import Camera, camera_center
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.splatting.rasterize import Rendered, grow_to_fit, render
from ge3d_jax.toybox.world.captions import Sentence
from ge3d_jax.toybox.world.render import (
    Layers,
    distance_to,
    paint_layers,
    sentence_colors,
    surface,
    trace,
)

_FIRST_BUFFER = 2**16
# A pixel belongs to the silhouette if more than this fraction of it is covered.
COVERED = 0.5
# Surface distance, relative to the object's size, assigned to an object that is not visible at all.
FARTHEST = 1.0
# A ground-truth pixel is neutral if its chroma is below, and interior if its alpha is above these thresholds.
_NEUTRAL, _INSIDE = 0.03, 0.99
# A splat is a speck if its center lies farther outside than this, relative to the object's size.
_STRAY = 0.05
# Stride for subsampling the points of the true surface, of which there are four per pixel.
_STRIDE = 4


@dataclass(frozen=True)
class Views:
    """An object, or its ground truth, seen from V cameras.

    Attributes:
        pictures: float32 (V, H, W, 3) on white, in [0, 1].
        alphas: float32 (V, H, W), covered fraction of each pixel.
        depths: float32 (V, H, W), mean z in camera space, world units; 0 where there is nothing.
        points: (N, 3) points of the visible surface, world units.
    """

    pictures: np.ndarray
    alphas: np.ndarray
    depths: np.ndarray
    points: np.ndarray


@dataclass(frozen=True)
class Traced:
    """An unpainted kind, ray traced from V cameras.

    Attributes:
        layers: float32 arrays with a leading axis of V.
        depths: as in `Views`.
        points: as in `Views`.
    """

    layers: Layers
    depths: np.ndarray
    points: np.ndarray


def overlap(alpha: np.ndarray, true_alpha: np.ndarray) -> float:
    """Intersection over union of silhouettes (..., H, W) in [0, 1]; 1 if both are empty."""
    ours, theirs = alpha > COVERED, true_alpha > COVERED
    union = np.sum(ours | theirs)
    return float(np.sum(ours & theirs) / union) if union else 1.0


def sharpness(pictures: np.ndarray, truth: np.ndarray) -> float:
    """Mean squared difference of neighboring pixels of images (..., H, W, 3), relative to the truth."""

    def energy(values: np.ndarray) -> float:
        rows, columns = np.diff(values, axis=-3), np.diff(values, axis=-2)
        return float(np.mean(rows**2) + np.mean(columns**2))

    return energy(pictures) / energy(truth)


def tint(pictures: np.ndarray, truth: np.ndarray, true_alpha: np.ndarray) -> float | None:
    """Mean chroma of images (..., H, W, 3) where the truth is neutral and fully covered; None if nowhere."""
    chroma = np.ptp(truth, axis=-1)
    neutral = (chroma < _NEUTRAL) & (true_alpha > _INSIDE)
    return float(np.mean(np.ptp(pictures, axis=-1)[neutral])) if neutral.any() else None


def chamfer(points: np.ndarray, true_points: np.ndarray) -> float:
    """Symmetric mean distance between point sets (N, 3) and (M, 3); infinite if the first one is empty."""
    if not len(points):
        return float("inf")
    there, back = cKDTree(true_points).query(points)[0], cKDTree(points).query(true_points)[0]
    return float(0.5 * (np.mean(there) + np.mean(back)))


def depth_difference(views: Views, truth: Views) -> float | None:
    """Mean depth difference over the pixels that are more than half covered in both, world units.

    None if they share no pixel.
    """
    shared = (views.alphas > COVERED) & (truth.alphas > COVERED)
    return float(np.mean(np.abs(views.depths - truth.depths)[shared])) if shared.any() else None


def size_of(points: np.ndarray) -> float:
    """Longest edge of the axis-aligned bounding box of points (N, 3)."""
    return float(np.max(np.ptp(points, axis=0)))


def specks(gaussians: Gaussians, kind: str, size: float) -> float:
    """Fraction of the total opacity in splats whose centers lie outside a kind by more than 5 % of `size`.

    0 if there are no splats.
    """
    opacity = np.where(gaussians.mask, jax.nn.sigmoid(gaussians.opacity_logits), 0.0)
    outside = np.asarray(distance_to(kind, gaussians.positions)) > _STRAY * size
    total = np.sum(opacity)
    return float(np.sum(opacity * outside) / total) if total else 0.0


@partial(jax.jit, static_argnames="buffer_capacity")
def _render(gaussians: Gaussians, camera: Camera, buffer_capacity: int) -> tuple[Rendered, jax.Array]:
    rendered = render(gaussians, camera, background=jnp.ones(3), buffer_capacity=buffer_capacity)
    return rendered, rendered.intersections


def _seen_points(rendered: Rendered, camera: Camera) -> np.ndarray:
    """The visible surface (N, 3) of a view: covered pixels unprojected at their mean depth."""
    covered = np.asarray(rendered.alpha) > COVERED
    rows, columns = np.nonzero(covered)
    focal_x, focal_y, center_x, center_y = np.asarray(camera.intrinsics)
    depth = np.asarray(rendered.depth)[covered]
    local = np.stack([(columns + 0.5 - center_x) / focal_x, (rows + 0.5 - center_y) / focal_y], axis=-1)
    local = np.concatenate([local * depth[:, None], depth[:, None]], axis=-1)
    return local @ np.asarray(camera.world_to_camera)[:3, :3] + np.asarray(camera_center(camera))


_ssim = jax.jit(ssim)


def object_views(gaussians: Gaussians, cameras: Camera) -> Views:
    """Render an object from several cameras.

    Args:
        gaussians: the object.
        cameras: cameras with a leading axis.

    Raises:
        UserError: the splats cover more tiles than there is memory for.
    """
    pictures, alphas, depths, points = ([] for _ in range(4))
    capacity = _FIRST_BUFFER
    for index in range(len(cameras.intrinsics)):
        camera = jax.tree.map(itemgetter(index), cameras)
        rendered, capacity = grow_to_fit(
            partial(_render, gaussians, camera), capacity, width=cameras.width, height=cameras.height
        )
        pictures.append(np.clip(rendered.rgb, 0.0, 1.0))
        alphas.append(np.asarray(rendered.alpha))
        depths.append(np.asarray(rendered.depth))
        points.append(_seen_points(rendered, camera))
    return Views(np.stack(pictures), np.stack(alphas), np.stack(depths), np.concatenate(points))


def trace_views(kind: str, cameras: Camera) -> Traced:
    """Ray trace an unpainted kind from several cameras.

    Args:
        kind: a kind of the Toybox world.
        cameras: cameras with a leading axis.
    """
    layers, depths, points = ([] for _ in range(3))
    for index in range(len(cameras.intrinsics)):
        camera = jax.tree.map(itemgetter(index), cameras)
        layers.append(trace(kind, camera))
        places, hit = (np.asarray(each) for each in surface(kind, camera))
        depths.append(_mean_depth(places, hit, camera))
        points.append(places[hit][::_STRIDE])
    stacked = jax.tree.map(lambda *each: np.stack(each), *layers)
    return Traced(stacked, np.stack(depths), np.concatenate(points))


def paint_views(traced: Traced, sentence: Sentence) -> Views:
    """Paint a traced kind in the colors of a sentence, on white."""
    pictures = paint_layers(traced.layers, *sentence_colors(sentence), jnp.ones(3))
    return Views(np.asarray(pictures), np.asarray(traced.layers.alpha), traced.depths, traced.points)


def true_views(sentence: Sentence, cameras: Camera) -> Views:
    """Render the ground truth of a sentence from several cameras.

    Args:
        sentence: a sentence of the Toybox world.
        cameras: cameras with a leading axis.
    """
    return paint_views(trace_views(sentence.kind, cameras), sentence)


def _mean_depth(places: np.ndarray, hit: np.ndarray, camera: Camera) -> np.ndarray:
    """Depths (H, W) of a traced surface: the mean over each pixel's rays that hit it, 0 where none does."""
    into = np.asarray(camera.world_to_camera)[2]
    rays = round((len(places) / (camera.height * camera.width)) ** 0.5)
    grid = camera.height, rays, camera.width, rays
    total = np.where(hit, places @ into[:3] + into[3], 0.0).reshape(grid).sum(axis=(1, 3))
    return (total / np.maximum(hit.reshape(grid).sum(axis=(1, 3)), 1)).astype(np.float32)


def compare_views(
    views: Views, truth: Views, gaussians: Gaussians, sentence: Sentence
) -> dict[str, float | None]:
    """Compare an object with the ground truth of a sentence, both seen from the same cameras.

    Args:
        views: the object's views, from `object_views`.
        truth: the sentence's views, from `true_views`.
        gaussians: the object.
        sentence: what the object should be.

    Returns:
        Metric name → value, named as in the module's table. `tint` is None if nothing neutral is visible,
        `depth` is None if the object covers no pixel of the truth, and `chamfer` is infinite if nothing is
        visible.
    """
    pairs = list(zip(views.pictures, truth.pictures, strict=True))
    size = size_of(truth.points)
    depth = depth_difference(views, truth)
    return {
        "psnr": float(np.mean([psnr(ours, theirs) for ours, theirs in pairs])),
        "ssim": float(np.mean([_ssim(ours, theirs) for ours, theirs in pairs])),
        "overlap": overlap(views.alphas, truth.alphas),
        "sharpness": sharpness(views.pictures, truth.pictures),
        "tint": tint(views.pictures, truth.pictures, truth.alphas),
        "chamfer": chamfer(views.points, truth.points) / size,
        "depth": None if depth is None else depth / size,
        "specks": specks(gaussians, sentence.kind, size),
    }


def measure_likeness(gaussians: Gaussians, sentence: Sentence, cameras: Camera) -> dict[str, float | None]:
    """Render an object and the ground truth of a sentence, and compare them; see `compare_views`.

    Args:
        gaussians: the object.
        sentence: what the object should be.
        cameras: the cameras for both, with a leading axis.
    """
    return compare_views(object_views(gaussians, cameras), true_views(sentence, cameras), gaussians, sentence)
