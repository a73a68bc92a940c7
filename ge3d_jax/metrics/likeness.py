"""How near an object is to the truth of the Toybox world: pictures, outlines, surface, stray splats.

All pictures are on white, from cameras that the object and the truth share.

| name | meaning | best |
|---|---|---|
| psnr | peak signal-to-noise ratio to the true views, decibels, mean over the views | ∞ |
| overlap | intersection over union of the silhouettes, where more than half of a pixel is covered | 1 |
| sharpness | mean squared difference of neighboring pixels, over that of the true views; blur lowers it | 1 |
| tint | mean chroma (greatest minus least channel) where the truth is neutral | 0 |
| chamfer | mean distance from one visible surface to the other and back, over the object's size | 0 |
| specks | share of the splats' opacity that lies outside the object by more than 5 % of its size | 0 |
"""

from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import cKDTree

from ge3d_jax.metrics.pictures import psnr
from ge3d_jax.splatting.cameras import Camera, camera_center
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.splatting.rasterize import Rendered, grow_to_fit, render
from ge3d_jax.toybox.world.captions import Sentence
from ge3d_jax.toybox.world.render import distance_to, paint_layers, sentence_colors, surface, trace

_FIRST_BUFFER = 2**16
# A pixel belongs to the silhouette if more than this fraction of it is covered.
_COVERED = 0.5
# A pixel of the truth is neutral, and inside the object, within this of the ideal.
_NEUTRAL, _INSIDE = 0.03, 0.99
# How far outside a splat's center lies to be a speck, in sizes of the object.
_STRAY = 0.05
# Of the true surface's points, four to a pixel, every so manieth is used.
_STRIDE = 4


def overlap(alpha: np.ndarray, true_alpha: np.ndarray) -> float:
    """Intersection over union of silhouettes (..., H, W) in [0, 1]; 1 if both are empty."""
    ours, theirs = alpha > _COVERED, true_alpha > _COVERED
    union = np.sum(ours | theirs)
    return float(np.sum(ours & theirs) / union) if union else 1.0


def sharpness(pictures: np.ndarray, truth: np.ndarray) -> float:
    """Mean squared difference of neighboring pixels of pictures (..., H, W, 3), over that of the truth."""

    def energy(values: np.ndarray) -> float:
        rows, columns = np.diff(values, axis=-3), np.diff(values, axis=-2)
        return float(np.mean(rows**2) + np.mean(columns**2))

    return energy(pictures) / energy(truth)


def tint(pictures: np.ndarray, truth: np.ndarray, true_alpha: np.ndarray) -> float | None:
    """Mean chroma of pictures (..., H, W, 3) where the truth is neutral and inside; None if it nowhere is."""
    chroma = np.ptp(truth, axis=-1)
    neutral = (chroma < _NEUTRAL) & (true_alpha > _INSIDE)
    return float(np.mean(np.ptp(pictures, axis=-1)[neutral])) if neutral.any() else None


def chamfer(points: np.ndarray, true_points: np.ndarray) -> float:
    """Mean of the mean distances from each set of points (N, 3), (M, 3) to the other; inf without points."""
    if not len(points):
        return float("inf")
    there, back = cKDTree(true_points).query(points)[0], cKDTree(points).query(true_points)[0]
    return float(0.5 * (np.mean(there) + np.mean(back)))


def size_of(points: np.ndarray) -> float:
    """Longest edge of the axis-aligned box around points (N, 3)."""
    return float(np.max(np.ptp(points, axis=0)))


def specks(gaussians: Gaussians, kind: str, size: float) -> float:
    """Share of the opacity of splats whose centers lie outside a kind by more than 5 % of `size`."""
    opacity = np.where(gaussians.mask, jax.nn.sigmoid(gaussians.opacity_logits), 0.0)
    outside = np.asarray(distance_to(kind, gaussians.positions)) > _STRAY * size
    return float(np.sum(opacity * outside) / np.sum(opacity))


@partial(jax.jit, static_argnames="buffer_capacity")
def _render(gaussians: Gaussians, camera: Camera, buffer_capacity: int) -> tuple[Rendered, jax.Array]:
    rendered = render(gaussians, camera, background=jnp.ones(3), buffer_capacity=buffer_capacity)
    return rendered, rendered.intersections


def _seen_points(rendered: Rendered, camera: Camera) -> np.ndarray:
    """The surface (N, 3) that a view shows: pixels at their mean depth, where the object covers them."""
    covered = np.asarray(rendered.alpha) > _COVERED
    rows, columns = np.nonzero(covered)
    focal_x, focal_y, center_x, center_y = np.asarray(camera.intrinsics)
    depth = np.asarray(rendered.depth)[covered]
    local = np.stack([(columns + 0.5 - center_x) / focal_x, (rows + 0.5 - center_y) / focal_y], axis=-1)
    local = np.concatenate([local * depth[:, None], depth[:, None]], axis=-1)
    return local @ np.asarray(camera.world_to_camera)[:3, :3] + np.asarray(camera_center(camera))


def measure_likeness(gaussians: Gaussians, sentence: Sentence, cameras: Camera) -> dict[str, float | None]:
    """Compare an object with what a sentence describes.

    Args:
        gaussians: the object.
        sentence: what it should be.
        cameras: with a leading axis; where both are looked at from.

    Returns:
        The numbers by the names in the module's table. `tint` is None where nothing neutral is seen.
    """
    pictures, truths, alphas, true_alphas, points, true_points = ([] for _ in range(6))
    capacity = _FIRST_BUFFER
    for index in range(len(cameras.intrinsics)):
        camera = jax.tree.map(itemgetter(index), cameras)
        rendered, capacity = grow_to_fit(
            partial(_render, gaussians, camera), capacity, width=cameras.width, height=cameras.height
        )
        layers = trace(sentence.kind, camera)
        places, hit = surface(sentence.kind, camera)
        pictures.append(np.clip(rendered.rgb, 0.0, 1.0))
        truths.append(np.asarray(paint_layers(layers, *sentence_colors(sentence), jnp.ones(3))))
        alphas.append(np.asarray(rendered.alpha))
        true_alphas.append(np.asarray(layers.alpha))
        points.append(_seen_points(rendered, camera))
        true_points.append(np.asarray(places)[np.asarray(hit)][::_STRIDE])
    shown, true = np.stack(pictures), np.stack(truths)
    outline, true_outline = np.stack(alphas), np.stack(true_alphas)
    met = np.concatenate(true_points)
    size = size_of(met)
    return {
        "psnr": float(np.mean([psnr(ours, theirs) for ours, theirs in zip(shown, true, strict=True)])),
        "overlap": overlap(outline, true_outline),
        "sharpness": sharpness(shown, true),
        "tint": tint(shown, true, true_outline),
        "chamfer": chamfer(np.concatenate(points), met) / size,
        "specks": specks(gaussians, sentence.kind, size),
    }
