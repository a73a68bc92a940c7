"""Recognition of pictures of the Toybox world by the nearest ground-truth picture in squared RGB error.

The gallery holds unpainted views of every kind, traced at a small size from a fixed grid of cameras; it comes
with the package, made by `experiments/trace_gallery.py`. Kind, color and viewing side need no fine detail,
and larger pictures are averaged down to the gallery's size. The error of a picture with respect to a view is
quadratic in the paint, so the inner products of the picture with the view's layers give the error for all
colors and any background at once:

    D = image − background,  ‖D − Wᵀ X‖² = ‖D‖² − 2 ⟨W, X D⟩ + ⟨W, X Xᵀ W⟩

| name | meaning | shape |
|---|---|---|
| X | a view's layers: primary, secondary, fixed red, green, blue, alpha | (6, H·W) |
| W | contribution of each layer to each channel: the colors, the identity, −background | (6, 3) |
| D | the picture minus its background | (H·W, 3) |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax import toybox
from ge3d_jax.core.files import atomic_path
from ge3d_jax.toybox.model.dataset import layer_bytes
from ge3d_jax.toybox.world import render
from ge3d_jax.toybox.world.objects import COLORS, KINDS

AZIMUTHS = 24
POLAR_DEGREES = (38.0, 54.0, 70.0, 86.0)
GALLERY_SIZE = 64
GALLERY_FILE = Path(toybox.__file__).with_name("gallery.npz")
# A view shows the front if its azimuth is within this angle of +x; 45° is on the grid, hence the margin.
_FRONT_DEGREES = 45.0 + 0.1
# Width of a picture's border that shows only background, because objects do not reach it.
_BORDER = 2


@dataclass(frozen=True)
class Gallery:
    """Ground-truth views of a set of kinds, all from the same cameras.

    Attributes:
        kinds: names of the K kinds.
        layers: uint8 (K, V, H, W, 6), as in `dataset.Views`.
        azimuths: float32 (V,), radians in [−π, π).
        polars: float32 (V,), radians from +z.
    """

    kinds: tuple[str, ...]
    layers: np.ndarray
    azimuths: np.ndarray
    polars: np.ndarray


@dataclass(frozen=True)
class Recognition:
    """The nearest ground-truth picture for each of B pictures.

    Attributes:
        kinds: int (B,), index into the gallery's kinds.
        colors: int (B,), index into COLORS.
        azimuths: float32 (B,), azimuth of its camera, radians in [−π, π).
        views: int (B,), its index among the gallery's views of that kind.
        errors: float32 (B,), mean squared RGB error.
    """

    kinds: np.ndarray
    colors: np.ndarray
    azimuths: np.ndarray
    views: np.ndarray
    errors: np.ndarray


def wrap_angle(angle: np.ndarray | float) -> np.ndarray:
    """Wrap an angle to [−π, π)."""
    return (np.asarray(angle) + np.pi) % (2 * np.pi) - np.pi


def trace_views(
    kinds: Sequence[str],
    azimuths: int,
    polar_degrees: Sequence[float],
    report: Callable[[str], None] | None = None,
) -> np.ndarray:
    """Trace every kind from the left half of a grid of cameras.

    Args:
        kinds: names of the K kinds.
        azimuths: A, the number of equally spaced azimuths of the whole grid, starting at the front.
        polar_degrees: P polar angles, degrees from +z.
        report: called with a line of text at the start of each kind.

    Returns:
        Layers, uint8 (K, P, A//2 + 1, H, W, 6), as in `dataset.Views`.
    """
    traced = []
    for kind in kinds:
        if report is not None:
            report(f"tracing the gallery: {kind}")
        for polar in np.deg2rad(polar_degrees):
            for azimuth in _circle(azimuths)[: azimuths // 2 + 1]:
                camera = render.toybox_camera(azimuth, polar, size=GALLERY_SIZE)
                traced.append(layer_bytes(render.trace(kind, camera)))
    stacked = np.stack(traced)
    return stacked.reshape(len(kinds), len(polar_degrees), -1, *stacked.shape[1:])


def _circle(azimuths: int) -> np.ndarray:
    return wrap_angle(np.arange(azimuths) * (2 * np.pi / azimuths)).astype(np.float32)


def make_gallery(
    kinds: Sequence[str], views: np.ndarray, azimuths: int, polar_degrees: Sequence[float]
) -> Gallery:
    """Make a gallery of half of its views: kinds are mirror-symmetric, so the others are mirror images.

    Args:
        kinds, azimuths, polar_degrees: as given to `trace_views`.
        views: from `trace_views`.

    Returns:
        The gallery; azimuths vary fastest.
    """
    mirrored = views[:, :, azimuths - views.shape[2] : 0 : -1, :, ::-1]
    layers = np.concatenate([views, mirrored], axis=2)
    return Gallery(
        kinds=tuple(kinds),
        layers=layers.reshape(len(kinds), -1, *layers.shape[3:]),
        azimuths=np.tile(_circle(azimuths), len(polar_degrees)),
        polars=np.repeat(np.deg2rad(polar_degrees), azimuths).astype(np.float32),
    )


def build_gallery(kinds: Sequence[str], *, azimuths: int, polar_degrees: Sequence[float]) -> Gallery:
    """Trace a gallery; see `trace_views`."""
    return make_gallery(kinds, trace_views(kinds, azimuths, polar_degrees), azimuths, polar_degrees)


def save_gallery(file: Path, report: Callable[[str], None]) -> None:
    """Trace the views that come with the package, in about two minutes on two cores, and write them."""
    views = trace_views(tuple(KINDS), AZIMUTHS, POLAR_DEGREES, report)
    with atomic_path(file) as path:
        np.savez_compressed(path, kinds=list(KINDS), views=views)


def load_gallery() -> Gallery:
    """Load the gallery of all kinds that comes with the package."""
    with np.load(GALLERY_FILE) as stored:
        return make_gallery(stored["kinds"].tolist(), stored["views"], AZIMUTHS, POLAR_DEGREES)


def estimate_background(images: np.ndarray) -> np.ndarray:
    """Estimate the background color (..., 3) of pictures (..., H, W, 3) by the median along their edges."""
    images = np.asarray(images)
    inner = images.shape[-3] - 2 * _BORDER, images.shape[-2] - 2 * _BORDER
    is_edge = np.pad(np.zeros(inner, bool), _BORDER, constant_values=True)
    return np.median(images[..., is_edge, :], axis=-2).astype(np.float32)


def shrink(images: np.ndarray, size: int) -> jax.Array:
    """Average square pictures (..., S, S, 3) down to `size`. Raises ValueError if it does not divide S."""
    shape = np.shape(images)
    if len(shape) < 3 or shape[-3] != shape[-2] or shape[-1] != 3 or shape[-3] % size:
        raise ValueError(f"Pictures must be square with an edge that is a multiple of {size}, not {shape}.")
    factor = shape[-3] // size
    tiles = jnp.reshape(
        jnp.asarray(images, jnp.float32), (*shape[:-3], size, factor, size, factor, shape[-1])
    )
    return tiles.mean(axis=(-4, -2))


@jax.jit
def _view_errors(
    layers: jax.Array, colors: jax.Array, second: jax.Array, images: jax.Array, background: jax.Array
) -> jax.Array:
    """Compute mean squared errors (B, V, C) of pictures with respect to every view in every color.

    Args:
        layers: uint8 (V, H, W, 6).
        colors: (C, 3).
        second: (3,).
        images: (B, H, W, 3).
        background: (B, 3).
    """
    views, batch, count = layers.shape[0], images.shape[0], colors.shape[0]
    planes = layers.astype(jnp.float32).reshape(views, -1, layers.shape[-1]) / 255.0
    rest = (images - background[:, None, None, :]).reshape(batch, -1, 3)
    fixed = jnp.concatenate([second[None], jnp.eye(3)])
    weights = jnp.concatenate(
        [
            jnp.broadcast_to(colors[None, :, None, :], (batch, count, 1, 3)),
            jnp.broadcast_to(fixed, (batch, count, 4, 3)),
            jnp.broadcast_to(-background[:, None, None, :], (batch, count, 1, 3)),
        ],
        axis=2,
    )
    # Differences of large sums: the accelerators' default precision of ten bits would not resolve them.
    with jax.default_matmul_precision("highest"):
        products = jnp.einsum("vpk,bpc->bvkc", planes, rest)
        gram = jnp.einsum("vpk,vpl->vkl", planes, planes)
        cross = jnp.einsum("bnkc,bvkc->bvn", weights, products)
        outer = jnp.einsum("bnkc,bnlc->bnkl", weights, weights)
        own = jnp.einsum("bnkl,vkl->bvn", outer, gram)
    squared = jnp.sum(rest**2, axis=(1, 2))[:, None, None] - 2.0 * cross + own
    return jnp.maximum(squared, 0.0) / (rest.shape[1] * 3)


def recognize(gallery: Gallery, images: np.ndarray, background: np.ndarray) -> Recognition:
    """Find the nearest ground truth among the gallery's views in every color, with default second colors.

    Args:
        gallery: the candidate views.
        images: (B, H, W, 3) in [0, 1]; H and W must be multiples of the gallery's.
        background: (3,) or (B, 3) RGB in [0, 1], the background behind the painted candidates.

    Returns:
        The nearest candidate for each picture.

    Raises:
        ValueError: the pictures' size is not a multiple of the gallery's.
    """
    pictures = shrink(images, gallery.layers.shape[2])
    behind = jnp.broadcast_to(jnp.asarray(background, jnp.float32), (len(pictures), 3))
    palette = jnp.asarray(list(COLORS.values()))
    least, places = [], []
    for kind, layers in zip(gallery.kinds, gallery.layers, strict=True):
        second = jnp.asarray(COLORS[KINDS[kind].part_color])
        errors = np.asarray(_view_errors(layers, palette, second, pictures, behind))
        errors = errors.reshape(len(pictures), -1)
        places.append(errors.argmin(axis=1))
        least.append(errors.min(axis=1))
    kinds = np.argmin(least, axis=0)
    rows = np.arange(len(pictures))
    views, colors = np.divmod(np.stack(places)[kinds, rows], len(COLORS))
    return Recognition(kinds, colors, gallery.azimuths[views], views, np.stack(least)[kinds, rows])


def recognized_front(azimuths: np.ndarray | float) -> np.ndarray:
    """Whether recognized azimuths (radians) show the front: within 45° of +x."""
    return np.abs(np.rad2deg(wrap_angle(azimuths))) <= _FRONT_DEGREES


def confusion_matrix(true: np.ndarray, named: np.ndarray, count: int) -> np.ndarray:
    """Count how often class `row` was recognized as class `column`: int (count, count)."""
    matrix = np.zeros((count, count), np.int64)
    np.add.at(matrix, (np.asarray(true), np.asarray(named)), 1)
    return matrix
