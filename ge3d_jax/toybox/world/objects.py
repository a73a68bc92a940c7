"""The objects of the Toybox world: sixteen kinds in twelve colors.

Every kind is a list of solids, faces +x, stands along z, fits a ball of radius 0.88 around the origin and is
mirror-symmetric in y, so that a flipped picture is a valid picture and "side view" is unambiguous. A solid
has the primary color (the one in "a red mushroom"), the secondary one ("with a yellow stem") or a fixed color
of its own (eyes, doors, lights). Features of the front are deliberately large and dark or bright: they must
survive 64 pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp

from ge3d_jax.toybox.world.shapes import box, capsule, cone, cylinder, ellipsoid, gable, ring, sphere

Rgb = tuple[float, float, float]

COLORS: Mapping[str, Rgb] = MappingProxyType(
    {
        "red": (0.86, 0.08, 0.09),
        "orange": (0.97, 0.49, 0.05),
        "yellow": (0.98, 0.86, 0.10),
        "green": (0.10, 0.58, 0.17),
        "cyan": (0.15, 0.80, 0.85),
        "blue": (0.10, 0.22, 0.85),
        "purple": (0.50, 0.13, 0.70),
        "pink": (0.98, 0.50, 0.72),
        "brown": (0.43, 0.24, 0.10),
        "black": (0.09, 0.09, 0.10),
        "white": (0.96, 0.96, 0.96),
        "grey": (0.52, 0.52, 0.54),
    }
)

# Fixed colors. Dark rather than black, to differ from black paint.
_DARK: Rgb = (0.05, 0.05, 0.07)
_GLASS: Rgb = (0.62, 0.85, 0.97)
_LIGHT: Rgb = (1.00, 0.95, 0.55)
_DOOR: Rgb = (0.26, 0.13, 0.06)
_CARROT: Rgb = (1.00, 0.55, 0.05)
_CHERRY: Rgb = (0.85, 0.05, 0.12)

PRIMARY = "primary"
SECONDARY = "secondary"
Paint = str | Rgb
Solids = list[tuple[Paint, jax.Array]]


@dataclass(frozen=True)
class Kind:
    """One kind of object.

    Attributes:
        solids: maps points (..., 3) to the (paint, distances (...,)) of every solid.
        part: the word for what has the secondary color; a plural takes no article.
        part_color: its color if the sentence names none.
        has_front: whether the +x side looks different from all others.
    """

    solids: Callable[[jax.Array], Solids]
    part: str
    part_color: str
    has_front: bool


def _mirrored(points: jax.Array) -> jax.Array:
    """Fold the half space y < 0 onto y > 0, so that one solid stands for a pair."""
    return points.at[..., 1].set(jnp.abs(points[..., 1]))


def _robot(p: jax.Array) -> Solids:
    pair = _mirrored(p)
    return [
        (PRIMARY, box(p, (0.0, 0.0, -0.17), (0.24, 0.33, 0.27), 0.05)),
        (PRIMARY, box(pair, (0.0, 0.17, -0.60), (0.14, 0.11, 0.18), 0.03)),
        (SECONDARY, box(p, (0.0, 0.0, 0.37), (0.24, 0.31, 0.24), 0.06)),
        (SECONDARY, capsule(pair, (0.0, 0.43, 0.00), (0.06, 0.46, -0.36), 0.085)),
        (SECONDARY, capsule(p, (0.0, 0.0, 0.55), (0.0, 0.0, 0.72), 0.04)),
        (_DARK, box(p, (0.22, 0.0, 0.37), (0.05, 0.25, 0.18), 0.03)),
        (_LIGHT, sphere(pair, (0.25, 0.12, 0.41), 0.085)),
        (_DARK, box(p, (0.22, 0.0, -0.14), (0.04, 0.18, 0.12), 0.02)),
    ]


def _house(p: jax.Array) -> Solids:
    pair = _mirrored(p)
    return [
        (PRIMARY, box(p, (0.0, 0.0, -0.28), (0.44, 0.44, 0.32), 0.02)),
        (PRIMARY, gable(p, 0.02, 0.46, 0.42, 0.42)),
        (SECONDARY, jnp.maximum(gable(p, 0.00, 0.60, 0.50, 0.58), -gable(p, -0.2, 0.48, 0.9, 0.64))),
        (_DOOR, box(p, (0.43, 0.0, -0.37), (0.04, 0.13, 0.23), 0.02)),
        (_GLASS, box(pair, (0.43, 0.29, -0.20), (0.04, 0.09, 0.10), 0.02)),
        (_GLASS, cylinder(p, (0.42, 0.0, 0.14), 0.11, 0.04, axis=0)),
    ]


def _duck(p: jax.Array) -> Solids:
    pair = _mirrored(p)
    return [
        (PRIMARY, ellipsoid(p, (-0.08, 0.0, -0.28), (0.50, 0.36, 0.32))),
        (PRIMARY, sphere(p, (0.22, 0.0, 0.24), 0.29)),
        (PRIMARY, capsule(p, (-0.45, 0.0, -0.16), (-0.62, 0.0, 0.04), 0.09)),
        (PRIMARY, ellipsoid(pair, (-0.10, 0.34, -0.22), (0.27, 0.08, 0.17))),
        (SECONDARY, ellipsoid(p, (0.54, 0.0, 0.17), (0.19, 0.17, 0.07))),
        (_DARK, sphere(pair, (0.40, 0.17, 0.34), 0.07)),
    ]


def _cat(p: jax.Array) -> Solids:
    pair = _mirrored(p)
    ear = pair - jnp.asarray((0.05, 0.19, 0.0))
    return [
        (PRIMARY, ellipsoid(p, (-0.06, 0.0, -0.33), (0.32, 0.31, 0.38))),
        (PRIMARY, sphere(p, (0.06, 0.0, 0.26), 0.32)),
        (PRIMARY, cone(ear, 0.42, 0.74, 0.15, 0.01)),
        (PRIMARY, capsule(p, (-0.36, 0.0, -0.55), (-0.58, 0.0, 0.02), 0.07)),
        (SECONDARY, ellipsoid(p, (0.14, 0.0, -0.34), (0.18, 0.20, 0.27))),
        (SECONDARY, ellipsoid(p, (0.30, 0.0, 0.17), (0.11, 0.15, 0.10))),
        (SECONDARY, ellipsoid(pair, (0.20, 0.15, -0.66), (0.13, 0.09, 0.07))),
        (_DARK, ellipsoid(pair, (0.31, 0.13, 0.33), (0.07, 0.07, 0.085))),
        (_DARK, sphere(p, (0.41, 0.0, 0.21), 0.045)),
    ]


def _snowman(p: jax.Array) -> Solids:
    pair = _mirrored(p)
    return [
        (PRIMARY, sphere(p, (0.0, 0.0, -0.38), 0.36)),
        (PRIMARY, sphere(p, (0.0, 0.0, 0.03), 0.28)),
        (PRIMARY, sphere(p, (0.0, 0.0, 0.36), 0.23)),
        (SECONDARY, cylinder(p, (0.0, 0.0, 0.53), 0.30, 0.03)),
        (SECONDARY, cylinder(p, (0.0, 0.0, 0.65), 0.19, 0.13)),
        (_CARROT, capsule(p, (0.20, 0.0, 0.34), (0.42, 0.0, 0.32), 0.06)),
        (_DARK, sphere(pair, (0.19, 0.10, 0.42), 0.055)),
        (_DARK, sphere(p, (0.265, 0.0, 0.10), 0.06)),
        (_DARK, sphere(p, (0.275, 0.0, -0.06), 0.06)),
        (_DARK, sphere(p, (0.345, 0.0, -0.28), 0.06)),
    ]


def _penguin(p: jax.Array) -> Solids:
    pair = _mirrored(p)
    return [
        (PRIMARY, ellipsoid(p, (0.0, 0.0, -0.14), (0.36, 0.38, 0.52))),
        (PRIMARY, sphere(p, (0.02, 0.0, 0.42), 0.27)),
        (PRIMARY, ellipsoid(pair, (0.0, 0.41, -0.10), (0.16, 0.07, 0.32))),
        (SECONDARY, ellipsoid(p, (0.12, 0.0, -0.17), (0.29, 0.28, 0.42))),
        (SECONDARY, ellipsoid(pair, (0.17, 0.10, 0.46), (0.12, 0.10, 0.12))),
        (_DARK, sphere(pair, (0.27, 0.10, 0.48), 0.05)),
        (_CARROT, ellipsoid(p, (0.34, 0.0, 0.37), (0.15, 0.08, 0.05))),
        (_CARROT, ellipsoid(pair, (0.15, 0.17, -0.65), (0.20, 0.12, 0.06))),
    ]


def _television(p: jax.Array) -> Solids:
    pair = _mirrored(p)
    return [
        (PRIMARY, box(p, (0.0, 0.0, 0.02), (0.24, 0.58, 0.40), 0.05)),
        (SECONDARY, box(p, (0.22, 0.0, 0.04), (0.05, 0.48, 0.30), 0.04)),
        (_DARK, capsule(pair, (0.0, 0.05, 0.40), (0.0, 0.30, 0.70), 0.035)),
        (_DARK, capsule(pair, (0.0, 0.36, -0.36), (0.0, 0.42, -0.60), 0.06)),
        (_DARK, box(p, (-0.24, 0.0, -0.02), (0.06, 0.30, 0.20), 0.03)),
    ]


def _car(p: jax.Array) -> Solids:
    pair = _mirrored(p)
    return [
        (PRIMARY, box(p, (0.0, 0.0, -0.16), (0.70, 0.33, 0.19), 0.08)),
        (PRIMARY, box(p, (-0.12, 0.0, 0.26), (0.36, 0.29, 0.05), 0.04)),
        (_GLASS, box(p, (-0.12, 0.0, 0.11), (0.38, 0.27, 0.16), 0.05)),
        (SECONDARY, cylinder(pair, (0.40, 0.30, -0.32), 0.19, 0.08, axis=1)),
        (SECONDARY, cylinder(pair, (-0.40, 0.30, -0.32), 0.19, 0.08, axis=1)),
        (_LIGHT, sphere(pair, (0.66, 0.20, -0.10), 0.10)),
        (_DARK, box(p, (0.68, 0.0, -0.22), (0.05, 0.20, 0.07), 0.02)),
        (_CHERRY, box(pair, (-0.69, 0.22, -0.10), (0.04, 0.08, 0.06), 0.02)),
    ]


def _pig(p: jax.Array) -> Solids:
    pair = _mirrored(p)
    return [
        (PRIMARY, ellipsoid(p, (-0.12, 0.0, -0.08), (0.50, 0.37, 0.36))),
        (PRIMARY, sphere(p, (0.28, 0.0, 0.12), 0.31)),
        (PRIMARY, ellipsoid(pair, (0.24, 0.22, 0.42), (0.06, 0.12, 0.15))),
        (PRIMARY, cylinder(pair, (0.20, 0.19, -0.42), 0.10, 0.18)),
        (PRIMARY, cylinder(pair, (-0.38, 0.19, -0.42), 0.10, 0.18)),
        (SECONDARY, cylinder(p, (0.57, 0.0, 0.05), 0.16, 0.10, axis=0)),
        (_DARK, sphere(pair, (0.66, 0.06, 0.06), 0.035)),
        (_DARK, sphere(pair, (0.50, 0.16, 0.25), 0.065)),
        (PRIMARY, sphere(p, (-0.64, 0.0, 0.08), 0.07)),
    ]


def _mushroom(p: jax.Array) -> Solids:
    return [
        (PRIMARY, jnp.maximum(ellipsoid(p, (0.0, 0.0, 0.06), (0.64, 0.64, 0.50)), 0.04 - p[..., 2])),
        (SECONDARY, cone(p, -0.62, 0.10, 0.24, 0.17)),
    ]


def _gift(p: jax.Array) -> Solids:
    pair = _mirrored(p)
    ribbon = jnp.minimum(
        box(p, (0.0, 0.0, -0.12), (0.11, 0.47, 0.47), 0.02),
        box(p, (0.0, 0.0, -0.12), (0.47, 0.11, 0.47), 0.02),
    )
    return [
        (PRIMARY, box(p, (0.0, 0.0, -0.12), (0.44, 0.44, 0.44), 0.03)),
        (SECONDARY, ribbon),
        (SECONDARY, ellipsoid(pair, (0.0, 0.16, 0.43), (0.10, 0.17, 0.11))),
        (SECONDARY, sphere(p, (0.0, 0.0, 0.42), 0.10)),
    ]


def _tree(p: jax.Array) -> Solids:
    return [
        (PRIMARY, cone(p, -0.32, 0.22, 0.54, 0.20)),
        (PRIMARY, cone(p, 0.02, 0.46, 0.42, 0.13)),
        (PRIMARY, cone(p, 0.30, 0.76, 0.29, 0.01)),
        (SECONDARY, cylinder(p, (0.0, 0.0, -0.50), 0.15, 0.24)),
    ]


def _mug(p: jax.Array) -> Solids:
    hollow = cylinder(p, (0.0, 0.0, 0.20), 0.33, 0.50)
    return [
        (PRIMARY, jnp.maximum(cylinder(p, (0.0, 0.0, 0.0), 0.42, 0.48), -hollow)),
        (SECONDARY, ring(p, (-0.46, 0.0, 0.0), 0.22, 0.075)),
        (_DOOR, cylinder(p, (0.0, 0.0, 0.22), 0.36, 0.02)),
    ]


def _lamp(p: jax.Array) -> Solids:
    return [
        (PRIMARY, cone(p, 0.06, 0.66, 0.50, 0.24)),
        (SECONDARY, cylinder(p, (0.0, 0.0, -0.24), 0.08, 0.40)),
        (SECONDARY, ellipsoid(p, (0.0, 0.0, -0.62), (0.36, 0.36, 0.11))),
    ]


def _rocket(p: jax.Array) -> Solids:
    pair = _mirrored(p)
    fins = jnp.minimum(
        box(p, (0.0, 0.0, -0.44), (0.46, 0.05, 0.20), 0.03),
        box(pair, (0.0, 0.24, -0.44), (0.05, 0.22, 0.20), 0.03),
    )
    return [
        (PRIMARY, jnp.maximum(ellipsoid(p, (0.0, 0.0, -0.10), (0.29, 0.29, 0.88)), -0.56 - p[..., 2])),
        (SECONDARY, fins),
        (SECONDARY, cylinder(p, (0.0, 0.0, 0.24), 0.285, 0.05)),
        (_LIGHT, cone(p, -0.72, -0.54, 0.10, 0.19)),
    ]


def _cupcake(p: jax.Array) -> Solids:
    return [
        (PRIMARY, ellipsoid(p, (0.0, 0.0, 0.02), (0.52, 0.52, 0.22))),
        (PRIMARY, ellipsoid(p, (0.0, 0.0, 0.22), (0.38, 0.38, 0.20))),
        (PRIMARY, ellipsoid(p, (0.0, 0.0, 0.40), (0.22, 0.22, 0.16))),
        (SECONDARY, cone(p, -0.58, 0.02, 0.32, 0.47)),
        (_CHERRY, sphere(p, (0.0, 0.0, 0.58), 0.12)),
    ]


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "robot": Kind(_robot, "head", "grey", True),
        "house": Kind(_house, "roof", "brown", True),
        "duck": Kind(_duck, "beak", "orange", True),
        "cat": Kind(_cat, "belly", "white", True),
        "snowman": Kind(_snowman, "hat", "black", True),
        "penguin": Kind(_penguin, "belly", "white", True),
        "television": Kind(_television, "screen", "cyan", True),
        "car": Kind(_car, "wheels", "black", True),
        "pig": Kind(_pig, "snout", "pink", True),
        "mushroom": Kind(_mushroom, "stem", "white", False),
        "gift": Kind(_gift, "ribbon", "yellow", False),
        "tree": Kind(_tree, "trunk", "brown", False),
        "mug": Kind(_mug, "handle", "grey", False),
        "lamp": Kind(_lamp, "foot", "black", False),
        "rocket": Kind(_rocket, "fins", "grey", False),
        "cupcake": Kind(_cupcake, "cup", "brown", False),
    }
)


def kinds_with_front() -> tuple[str, ...]:
    """Names of the kinds whose +x side looks different from all others."""
    return tuple(name for name, kind in KINDS.items() if kind.has_front)
