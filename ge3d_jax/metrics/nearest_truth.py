"""The ground-truth image nearest to a given image: recognized kind and color, with a refined camera.

The gallery's cameras may be up to 8° away from an image's own camera, which costs a sharp image several
decibels. A coordinate search therefore refines azimuth and polar angle alternately, with steps that are
halved each round. It runs on small images, whose pixel means locate an object as well as large images do, in
a fraction of the time.
"""

import math
from operator import itemgetter

import jax.numpy as jnp
import numpy as np

from ge3d_jax.metrics.recognition import Gallery, Recognition, shrink
from ge3d_jax.toybox.world.objects import COLORS, KINDS
from ge3d_jax.toybox.world.render import (
    POLAR_RANGE,
    Layers,
    paint_layers,
    toybox_camera,
    trace,
)

# The first steps in azimuth and polar angle, radians: half the gallery's.
_FIRST_STEPS = (math.radians(7.5), math.radians(8.0))
_ROUNDS = 4
_SEARCH_SIZE = 32
# Mean squared error below which the search is skipped.
_EXACT = 1e-6
_LEAST = (-math.inf, POLAR_RANGE[0])
_GREATEST = (math.inf, POLAR_RANGE[1])
_COLORS = tuple(COLORS.values())


def nearest_truth(
    gallery: Gallery, named: Recognition, images: np.ndarray, background: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the ground-truth images nearest to the given images.

    Args:
        gallery: the gallery that the images were recognized with.
        named: the recognition result for the images.
        images: (B, S, S, 3) in [0, 1]; S is a multiple of the gallery's edge length.
        background: (3,) or (B, 3) RGB in [0, 1], as for `recognize`.

    Returns:
        The ground-truth images (B, S, S, 3) in [0, 1], and the fraction (B, S, S) of each pixel that the
        object covers.
    """
    behind = np.broadcast_to(np.asarray(background, np.float32), (len(images), 3))
    found = []
    for image, kind, color, view, ground in zip(
        images, named.kinds, named.colors, named.views, behind, strict=True
    ):
        name = gallery.kinds[kind]
        paints = _COLORS[color], COLORS[KINDS[name].part_color]
        start = (gallery.azimuths[view], gallery.polars[view])
        best = _seen_from(name, paints, start, image, ground)
        if best[0] > _EXACT:
            searched = _search(name, paints, shrink(image, _SEARCH_SIZE), ground, start)
            best = min(best, _seen_from(name, paints, searched, image, ground), key=itemgetter(0))
        found.append(best[1:])
    pictures, outlines = zip(*found, strict=True)
    return np.stack(pictures), np.stack(outlines)


def _seen_from(
    kind: str, paints: tuple, place: tuple[float, ...], image: np.ndarray, background: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Render the ground truth from a camera: its mean squared error to `image`, its image, and its alpha."""
    layers, picture = _picture(kind, paints, place, background, np.shape(image)[-2])
    return float(np.mean((picture - image) ** 2)), np.asarray(picture), np.asarray(layers.alpha)


def _picture(
    kind: str, paints: tuple, place: tuple[float, ...], background: np.ndarray, size: int
) -> tuple[Layers, jnp.ndarray]:
    layers = trace(kind, toybox_camera(*place, size=size))
    primary, secondary = map(jnp.asarray, paints)
    return layers, paint_layers(layers, primary, secondary, jnp.asarray(background))


def _search(
    kind: str, paints: tuple, image: jnp.ndarray, background: np.ndarray, start: tuple[float, ...]
) -> tuple[float, ...]:
    """Azimuth and polar angle of the camera whose ground-truth image is nearest to `image`."""

    def error_at(place: tuple[float, ...]) -> float:
        return float(jnp.mean((_picture(kind, paints, place, background, _SEARCH_SIZE)[1] - image) ** 2))

    best, least = start, error_at(start)
    for round_ in range(_ROUNDS):
        for axis, step in enumerate(_FIRST_STEPS):
            for change in (step, -step):
                value = best[axis] + change / 2**round_
                tried = (*best[:axis], min(max(value, _LEAST[axis]), _GREATEST[axis]), *best[axis + 1 :])
                if (error := error_at(tried)) < least:
                    best, least = tried, error
                    break
    return best
