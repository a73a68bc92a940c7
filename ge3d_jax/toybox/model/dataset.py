"""Training data: pictures and captions of the Toybox world.

Views are traced once without paint; each picture then combines a view, two colors and a background. Half of
the pictures have a white background, as in pictures of finished objects. The others are black or a random
color, because guidance shows the model a splat scene over a random background.

Captions that name the view do so in the same way as guidance: with three sentences, for the two views next to
the camera and for the view from above, whose embeddings are mixed according to the camera's azimuth and
height. The model thus learns the camera's position between the views, not just its quadrant.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.guidance.prompts import overhead_share, view_mixture
from ge3d_jax.splatting.cameras import Camera
from ge3d_jax.toybox.world.captions import OVERHEAD, Sentence, caption
from ge3d_jax.toybox.world.objects import COLORS, KINDS
from ge3d_jax.toybox.world.render import IMAGE_SIZE, Layers, paint_layers, random_camera, trace

_COLOR_NAMES = tuple(COLORS)
_KIND_NAMES = tuple(KINDS)

SECOND_COLOR_SHARE = 0.5  # sentences that name the color of the part
VIEW_PHRASE_SHARE = 0.6  # captions that name the view
EMPTY_SHARE = 0.12  # empty captions, for classifier-free guidance
WHITE_SHARE, BLACK_SHARE = 0.5, 0.1  # backgrounds; the rest have a random color


@dataclass(frozen=True)
class Views:
    """Traced views of all kinds.

    Attributes:
        layers: uint8 (N, H, W, 6): primary, secondary, fixed red, green, blue, alpha; see `world.render`.
        kinds: int (N,), index into KINDS.
        azimuths: float32 (N,), radians in (−π, π].
        polars: float32 (N,), radians from +z.
    """

    layers: np.ndarray
    kinds: np.ndarray
    azimuths: np.ndarray
    polars: np.ndarray


def trace_views(
    key: jax.Array,
    views_per_kind: int,
    *,
    size: int = IMAGE_SIZE,
    report: Callable[[str], None] | None = None,
) -> Views:
    """Trace views of every kind from random cameras; takes about 0.2 s per view of 128 pixels on two cores.

    Args:
        key: PRNG key for the cameras.
        views_per_kind: number of views of each kind.
        size: edge of the pictures, pixels.
        report: called with the name of each kind when it is finished.

    Returns:
        The views, ordered by kind.
    """

    def views_of(index: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
        layers, angles = [], []
        for one in jax.random.split(jax.random.fold_in(key, index), views_per_kind):
            camera = random_camera(one, size=size)
            layers.append(layer_bytes(trace(kind, camera)))
            angles.append(view_angles(camera))
        if report is not None:
            report(kind)
        return np.stack(layers), np.asarray(angles, np.float32)

    # In parallel, because each kind is a separate program that takes seconds to compile.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(views_of, range(len(KINDS)), KINDS))
    kinds = np.repeat(np.arange(len(KINDS)), views_per_kind)
    azimuths, polars = np.concatenate([angles for _, angles in parts]).T
    return Views(np.concatenate([layers for layers, _ in parts]), kinds, azimuths, polars)


def view_angles(camera: Camera) -> tuple[float, float]:
    """Return the azimuth and polar angle, radians, of a camera that looks at the origin."""
    x, y, z = -np.asarray(camera.world_to_camera[2, :3])
    return float(np.arctan2(y, x)), float(np.arctan2(np.hypot(x, y), z))


def with_mirrored(views: Views) -> Views:
    """Add the views' mirror images, which are valid views because the world is symmetric in y."""
    return Views(
        np.concatenate([views.layers, views.layers[:, :, ::-1]]),
        np.concatenate([views.kinds, views.kinds]),
        np.concatenate([views.azimuths, -views.azimuths]),
        np.concatenate([views.polars, views.polars]),
    )


def layer_bytes(layers: Layers) -> np.ndarray:
    """Convert the layers of one view to uint8 (H, W, 6), in the order of `Views.layers`."""
    planes = [layers.primary[..., None], layers.secondary[..., None], layers.fixed, layers.alpha[..., None]]
    return np.asarray(jnp.round(255.0 * jnp.concatenate(planes, axis=-1)).astype(jnp.uint8))


@dataclass(frozen=True)
class PicturePlan:
    """The components of `count` pictures, and their captions.

    Attributes:
        views: int (count,), rows of `Views`.
        primary: float32 (count, 3), RGB of the primary paint in [0, 1].
        secondary: float32 (count, 3), RGB of the secondary paint.
        background: float32 (count, 3), RGB of the background.
        captions: three sentences per picture; all three are equal if no view is named.
        shares: float32 (count, 3), weights of the three sentences in the text embedding; they sum to 1.
    """

    views: np.ndarray
    primary: np.ndarray
    secondary: np.ndarray
    background: np.ndarray
    captions: list[tuple[str, str, str]]
    shares: np.ndarray


def plan_pictures(rng: np.random.Generator, views: Views, count: int) -> PicturePlan:
    """Draw random pictures: kinds and colors uniformly, backgrounds and captions by the shares above."""
    palette = np.asarray(list(COLORS.values()), np.float32)
    # Views are equally frequent, and even a small number of pictures covers all kinds.
    chosen = rng.permutation(rng.permutation(len(views.kinds))[np.arange(count) % len(views.kinds)])
    first = rng.integers(len(_COLOR_NAMES), size=count)
    named = rng.random(count) < SECOND_COLOR_SHARE
    default = np.asarray([_COLOR_NAMES.index(kind.part_color) for kind in KINDS.values()])[
        views.kinds[chosen]
    ]
    second = np.where(named, rng.integers(len(_COLOR_NAMES), size=count), default)

    lot = rng.random(count)[:, None]
    background = np.where(lot < WHITE_SHARE, 1.0, rng.random((count, 3)))
    background = np.where((lot >= WHITE_SHARE) & (lot < WHITE_SHARE + BLACK_SHARE), 0.0, background)

    phrased, emptied = rng.random(count) < VIEW_PHRASE_SHARE, rng.random(count) < EMPTY_SHARE
    in_front, nearness = (np.asarray(part) for part in view_mixture(jnp.asarray(views.azimuths[chosen])))
    above = np.asarray(overhead_share(jnp.asarray(views.polars[chosen])))
    around = 1.0 - above

    def sentences(i: int) -> tuple[str, str, str]:
        if emptied[i]:
            return "", "", ""
        sentence = Sentence(
            kind=_KIND_NAMES[views.kinds[chosen[i]]],
            color=_COLOR_NAMES[first[i]],
            second_color=_COLOR_NAMES[second[i]] if named[i] else None,
        )
        if not phrased[i]:
            return (caption(sentence),) * 3
        nearer, farther = ("front", "side") if in_front[i] else ("side", "back")
        one, other, above_both = (
            caption(replace(sentence, view=view)) for view in (nearer, farther, OVERHEAD)
        )
        return one, other, above_both

    return PicturePlan(
        views=chosen,
        primary=palette[first],
        secondary=palette[second],
        background=background.astype(np.float32),
        captions=[sentences(i) for i in range(count)],
        shares=np.stack([around * nearness, around * (1.0 - nearness), above], axis=1),
    )


@jax.jit
def paint_bytes(
    layers: jax.Array, primary: jax.Array, secondary: jax.Array, background: jax.Array
) -> jax.Array:
    """Paint views in their stored form.

    Args:
        layers: uint8 (B, H, W, 6), as in `Views.layers`.
        primary, secondary, background: (B, 3), as in `PicturePlan`.

    Returns:
        Pictures (B, H, W, 3) in [0, 1].
    """
    planes = layers.astype(jnp.float32) / 255.0
    parts = Layers(
        primary=planes[..., 0], secondary=planes[..., 1], fixed=planes[..., 2:5], alpha=planes[..., 5]
    )
    return paint_layers(parts, primary, secondary, background)


def paint_pictures(views: Views, plan: PicturePlan, rows: np.ndarray) -> jax.Array:
    """Paint the pictures in the given rows of a plan: (len(rows), H, W, 3) in [0, 1]."""
    layers = views.layers[plan.views[rows]]
    return paint_bytes(layers, plan.primary[rows], plan.secondary[rows], plan.background[rows])
