"""The objects of the Toybox world: sixteen kinds in twelve colors.

Every kind is a list of solids, faces +x, stands along z, fits a ball of radius 0.88 around the origin and is
mirror-symmetric in y, so that a flipped picture is a valid picture and "side view" is unambiguous. A solid
has the primary color (the one in "a red mushroom"), the secondary one ("with a yellow stem") or a fixed color
of its own (eyes, doors, lights), and may have a texture. What tells the sides apart is large and dark or
bright, to survive 64 pixels; the details beside it are for 128, three pixels of which are 0.04 wide.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ge3d_jax.toybox.world.shapes import box, capsule, cone, cylinder, ellipsoid, gable, ring, sphere
from ge3d_jax.toybox.world.textures import around, repeated, stripes

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
_CREAM: Rgb = (0.98, 0.94, 0.84)
_STEEL: Rgb = (0.75, 0.76, 0.78)

PRIMARY = "primary"
SECONDARY = "secondary"
Paint = str | Rgb


class Solid(NamedTuple):
    """One solid, seen from some points.

    Attributes:
        paint: PRIMARY, SECONDARY or a fixed color.
        distance: signed distances (...,) of the points; see `shapes`.
        texture: (...,) factor on the light that the surface reflects, 0 to 1; see `textures`.
    """

    paint: Paint
    distance: jax.Array
    texture: jax.Array | float = 1.0


Solids = list[Solid]


@dataclass(frozen=True)
class Kind:
    """One kind of object.

    Attributes:
        solids: maps points (..., 3) to the solids, each with its distances and texture there.
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
        Solid(PRIMARY, box(p, (0.0, 0.0, -0.17), (0.24, 0.33, 0.27), 0.05)),
        Solid(PRIMARY, box(pair, (0.0, 0.17, -0.60), (0.14, 0.11, 0.18), 0.03)),
        Solid(SECONDARY, box(p, (0.0, 0.0, 0.37), (0.24, 0.31, 0.24), 0.06)),
        Solid(
            SECONDARY, capsule(pair, (0.0, 0.43, 0.00), (0.06, 0.46, -0.36), 0.085), stripes(p[..., 2], 0.12)
        ),
        Solid(SECONDARY, capsule(p, (0.0, 0.0, 0.55), (0.0, 0.0, 0.72), 0.04)),
        Solid(_CHERRY, sphere(p, (0.0, 0.0, 0.77), 0.07)),
        Solid(_DARK, box(p, (0.22, 0.0, 0.37), (0.05, 0.25, 0.18), 0.03)),
        Solid(_LIGHT, sphere(pair, (0.25, 0.12, 0.41), 0.085)),
        Solid(_DARK, sphere(pair, (0.325, 0.12, 0.41), 0.035)),
        Solid(_LIGHT, box(p, (0.25, 0.0, 0.26), (0.035, 0.11, 0.02), 0.01)),
        Solid(_DARK, box(p, (0.22, 0.0, -0.14), (0.04, 0.18, 0.12), 0.02)),
        Solid(_GLASS, sphere(pair, (0.245, 0.09, -0.09), 0.04)),
        Solid(_LIGHT, box(p, (0.245, 0.0, -0.20), (0.025, 0.12, 0.018), 0.01)),
    ]


def _house(p: jax.Array) -> Solids:
    pair = _mirrored(p)
    roof = jnp.maximum(gable(p, 0.00, 0.60, 0.50, 0.58), -gable(p, -0.2, 0.48, 0.9, 0.64))
    boards = stripes(p[..., 2], 0.12, 0.88)
    return [
        Solid(PRIMARY, box(p, (0.0, 0.0, -0.28), (0.44, 0.44, 0.32), 0.02), boards),
        Solid(PRIMARY, gable(p, 0.02, 0.46, 0.42, 0.42), boards),
        Solid(SECONDARY, roof, stripes(p[..., 2], 0.12)),
        Solid(_DOOR, box(p, (0.43, 0.0, -0.37), (0.04, 0.13, 0.23), 0.02)),
        Solid(_LIGHT, sphere(pair, (0.47, 0.05, -0.39), 0.025)),
        Solid(_CREAM, box(pair, (0.425, 0.29, -0.20), (0.04, 0.12, 0.13), 0.02)),
        Solid(_GLASS, box(pair, (0.44, 0.29, -0.20), (0.04, 0.09, 0.10), 0.02)),
        Solid(_CREAM, box(pair, (0.45, 0.29, -0.20), (0.04, 0.018, 0.10), 0.01)),
        Solid(_CREAM, box(pair, (0.45, 0.29, -0.20), (0.04, 0.09, 0.018), 0.01)),
        Solid(_GLASS, cylinder(p, (0.42, 0.0, 0.14), 0.11, 0.04, axis=0)),
    ]


def _duck(p: jax.Array) -> Solids:
    pair = _mirrored(p)
    return [
        Solid(PRIMARY, ellipsoid(p, (-0.08, 0.0, -0.28), (0.50, 0.36, 0.32))),
        Solid(PRIMARY, sphere(p, (0.22, 0.0, 0.24), 0.29)),
        Solid(PRIMARY, capsule(p, (-0.45, 0.0, -0.16), (-0.62, 0.0, 0.04), 0.09)),
        Solid(
            PRIMARY,
            ellipsoid(pair, (-0.10, 0.34, -0.22), (0.27, 0.08, 0.17)),
            stripes(p[..., 0] + p[..., 2], 0.14),
        ),
        Solid(SECONDARY, ellipsoid(p, (0.54, 0.0, 0.17), (0.19, 0.17, 0.07))),
        Solid(_DARK, sphere(pair, (0.40, 0.17, 0.34), 0.07)),
        Solid(_CREAM, sphere(pair, (0.45, 0.18, 0.37), 0.035)),
    ]


def _cat(p: jax.Array) -> Solids:
    pair = _mirrored(p)
    ear = pair - jnp.asarray((0.05, 0.19, 0.0))
    inner_ear = pair - jnp.asarray((0.11, 0.19, 0.0))
    tabby = stripes(p[..., 2] + 0.3 * p[..., 0], 0.16)
    return [
        Solid(PRIMARY, ellipsoid(p, (-0.06, 0.0, -0.33), (0.32, 0.31, 0.38)), tabby),
        Solid(PRIMARY, sphere(p, (0.06, 0.0, 0.26), 0.32)),
        Solid(PRIMARY, cone(ear, 0.42, 0.74, 0.15, 0.01)),
        Solid(SECONDARY, cone(inner_ear, 0.46, 0.66, 0.09, 0.01)),
        Solid(PRIMARY, capsule(p, (-0.36, 0.0, -0.55), (-0.58, 0.0, 0.02), 0.07), tabby),
        Solid(SECONDARY, ellipsoid(p, (0.14, 0.0, -0.34), (0.18, 0.20, 0.27))),
        Solid(SECONDARY, ellipsoid(p, (0.30, 0.0, 0.17), (0.11, 0.15, 0.10))),
        Solid(SECONDARY, ellipsoid(pair, (0.20, 0.15, -0.66), (0.13, 0.09, 0.07))),
        Solid(_DARK, ellipsoid(pair, (0.31, 0.13, 0.33), (0.07, 0.07, 0.085))),
        Solid(_CREAM, sphere(pair, (0.365, 0.12, 0.365), 0.03)),
        Solid(_DARK, sphere(p, (0.41, 0.0, 0.21), 0.045)),
    ]


def _snowman(p: jax.Array) -> Solids:
    pair = _mirrored(p)
    return [
        Solid(PRIMARY, sphere(p, (0.0, 0.0, -0.38), 0.36)),
        Solid(PRIMARY, sphere(p, (0.0, 0.0, 0.03), 0.28)),
        Solid(PRIMARY, sphere(p, (0.0, 0.0, 0.36), 0.23)),
        Solid(SECONDARY, cylinder(p, (0.0, 0.0, 0.53), 0.30, 0.03)),
        Solid(SECONDARY, cylinder(p, (0.0, 0.0, 0.65), 0.19, 0.13)),
        Solid(_CHERRY, cylinder(p, (0.0, 0.0, 0.59), 0.20, 0.03)),
        Solid(_CHERRY, cylinder(p, (0.0, 0.0, 0.20), 0.235, 0.045)),
        Solid(_CARROT, capsule(p, (0.20, 0.0, 0.34), (0.42, 0.0, 0.32), 0.06)),
        Solid(_DARK, sphere(pair, (0.19, 0.10, 0.42), 0.055)),
        Solid(_DARK, sphere(p, (0.265, 0.0, 0.10), 0.06)),
        Solid(_DARK, sphere(p, (0.275, 0.0, -0.06), 0.06)),
        Solid(_DARK, sphere(p, (0.345, 0.0, -0.28), 0.06)),
    ]


def _penguin(p: jax.Array) -> Solids:
    pair = _mirrored(p)
    return [
        Solid(PRIMARY, ellipsoid(p, (0.0, 0.0, -0.14), (0.36, 0.38, 0.52))),
        Solid(PRIMARY, sphere(p, (0.02, 0.0, 0.42), 0.27)),
        Solid(PRIMARY, ellipsoid(pair, (0.0, 0.41, -0.10), (0.16, 0.07, 0.32))),
        Solid(SECONDARY, ellipsoid(p, (0.12, 0.0, -0.17), (0.29, 0.28, 0.42))),
        Solid(SECONDARY, ellipsoid(pair, (0.17, 0.10, 0.46), (0.12, 0.10, 0.12))),
        Solid(_DARK, sphere(pair, (0.27, 0.10, 0.48), 0.05)),
        Solid(_CREAM, sphere(pair, (0.31, 0.105, 0.50), 0.022)),
        Solid(_CARROT, ellipsoid(p, (0.34, 0.0, 0.37), (0.15, 0.08, 0.05))),
        Solid(_CARROT, ellipsoid(pair, (0.15, 0.17, -0.65), (0.20, 0.12, 0.06)), stripes(p[..., 1], 0.10)),
    ]


def _television(p: jax.Array) -> Solids:
    pair = _mirrored(p)
    return [
        Solid(PRIMARY, box(p, (0.0, 0.0, 0.02), (0.24, 0.58, 0.40), 0.05)),
        Solid(_DARK, box(p, (0.21, 0.0, 0.06), (0.05, 0.51, 0.32), 0.04)),
        Solid(SECONDARY, box(p, (0.22, 0.0, 0.06), (0.05, 0.47, 0.28), 0.04), stripes(p[..., 2], 0.09, 0.85)),
        Solid(_LIGHT, cylinder(p, (0.26, 0.0, 0.12), 0.11, 0.02, axis=0)),
        Solid(_DARK, sphere(pair, (0.24, 0.10, -0.315), 0.035)),
        Solid(_STEEL, sphere(pair, (0.24, 0.30, -0.315), 0.035)),
        Solid(_DARK, capsule(pair, (0.0, 0.05, 0.40), (0.0, 0.30, 0.70), 0.035)),
        Solid(_DARK, capsule(pair, (0.0, 0.36, -0.36), (0.0, 0.42, -0.60), 0.06)),
        Solid(_DARK, box(p, (-0.24, 0.0, -0.02), (0.06, 0.30, 0.20), 0.03)),
        Solid(_STEEL, box(p, (-0.28, 0.0, -0.02), (0.03, 0.22, 0.03), 0.01)),
    ]


def _car(p: jax.Array) -> Solids:
    pair = _mirrored(p)
    return [
        Solid(PRIMARY, box(p, (0.0, 0.0, -0.16), (0.70, 0.33, 0.19), 0.08)),
        Solid(_DARK, box(pair, (-0.05, 0.325, -0.14), (0.014, 0.012, 0.14), 0.005)),
        Solid(PRIMARY, box(p, (-0.12, 0.0, 0.26), (0.36, 0.29, 0.05), 0.04)),
        Solid(_GLASS, box(p, (-0.12, 0.0, 0.11), (0.38, 0.27, 0.16), 0.05)),
        Solid(PRIMARY, box(pair, (-0.12, 0.26, 0.11), (0.035, 0.025, 0.16), 0.01)),
        Solid(SECONDARY, cylinder(pair, (0.40, 0.30, -0.32), 0.19, 0.08, axis=1)),
        Solid(SECONDARY, cylinder(pair, (-0.40, 0.30, -0.32), 0.19, 0.08, axis=1)),
        Solid(_STEEL, cylinder(pair, (0.40, 0.37, -0.32), 0.09, 0.03, axis=1)),
        Solid(_STEEL, cylinder(pair, (-0.40, 0.37, -0.32), 0.09, 0.03, axis=1)),
        Solid(_LIGHT, sphere(pair, (0.66, 0.20, -0.10), 0.10)),
        Solid(_DARK, box(p, (0.68, 0.0, -0.22), (0.05, 0.20, 0.07), 0.02)),
        Solid(_CHERRY, box(pair, (-0.69, 0.22, -0.10), (0.04, 0.08, 0.06), 0.02)),
        Solid(_CREAM, box(p, (-0.69, 0.0, -0.18), (0.035, 0.10, 0.05), 0.02)),
    ]


def _pig(p: jax.Array) -> Solids:
    pair = _mirrored(p)
    return [
        Solid(PRIMARY, ellipsoid(p, (-0.12, 0.0, -0.08), (0.50, 0.37, 0.36))),
        Solid(PRIMARY, sphere(p, (0.28, 0.0, 0.12), 0.31)),
        Solid(PRIMARY, ellipsoid(pair, (0.24, 0.22, 0.42), (0.06, 0.12, 0.15))),
        Solid(SECONDARY, ellipsoid(pair, (0.275, 0.22, 0.42), (0.04, 0.075, 0.10))),
        Solid(PRIMARY, cylinder(pair, (0.20, 0.19, -0.42), 0.10, 0.18)),
        Solid(PRIMARY, cylinder(pair, (-0.38, 0.19, -0.42), 0.10, 0.18)),
        Solid(_DOOR, cylinder(pair, (0.20, 0.19, -0.57), 0.105, 0.04)),
        Solid(_DOOR, cylinder(pair, (-0.38, 0.19, -0.57), 0.105, 0.04)),
        Solid(SECONDARY, cylinder(p, (0.57, 0.0, 0.05), 0.16, 0.10, axis=0)),
        Solid(_DARK, sphere(pair, (0.66, 0.06, 0.06), 0.035)),
        Solid(_DARK, sphere(pair, (0.50, 0.16, 0.25), 0.065)),
        Solid(_CREAM, sphere(pair, (0.55, 0.165, 0.275), 0.03)),
        Solid(PRIMARY, sphere(p, (-0.64, 0.0, 0.08), 0.07)),
    ]


def _mushroom(p: jax.Array) -> Solids:
    upper, lower = repeated(p, 6), repeated(p, 6, shifted=True)
    return [
        Solid(PRIMARY, jnp.maximum(ellipsoid(p, (0.0, 0.0, 0.06), (0.64, 0.64, 0.50)), 0.04 - p[..., 2])),
        Solid(_CREAM, sphere(p, (0.0, 0.0, 0.53), 0.10)),
        Solid(_CREAM, sphere(upper, (0.42, 0.0, 0.43), 0.10)),
        Solid(_CREAM, sphere(lower, (0.59, 0.0, 0.20), 0.09)),
        Solid(SECONDARY, cone(p, -0.62, 0.10, 0.24, 0.17)),
    ]


def _gift(p: jax.Array) -> Solids:
    pair = _mirrored(p)
    ribbon = jnp.minimum(
        box(p, (0.0, 0.0, -0.12), (0.11, 0.47, 0.47), 0.02),
        box(p, (0.0, 0.0, -0.12), (0.47, 0.11, 0.47), 0.02),
    )
    # Across the ribbon, wherever it runs.
    across = jnp.minimum(jnp.abs(p[..., 0]), jnp.abs(p[..., 1]))
    return [
        Solid(PRIMARY, box(p, (0.0, 0.0, -0.12), (0.44, 0.44, 0.44), 0.03)),
        Solid(SECONDARY, ribbon, stripes(across, 0.14)),
        Solid(SECONDARY, ellipsoid(pair, (0.0, 0.16, 0.43), (0.10, 0.17, 0.11)), stripes(pair[..., 1], 0.14)),
        Solid(SECONDARY, sphere(p, (0.0, 0.0, 0.42), 0.10)),
    ]


def _tree(p: jax.Array) -> Solids:
    needles = around(p, 16, 0.8)
    bark = around(p, 10, 0.75, twist=0.6)
    return [
        Solid(PRIMARY, cone(p, -0.32, 0.22, 0.54, 0.20), needles),
        Solid(PRIMARY, cone(p, 0.02, 0.46, 0.42, 0.13), needles),
        Solid(PRIMARY, cone(p, 0.30, 0.76, 0.29, 0.01), needles),
        Solid(SECONDARY, cylinder(p, (0.0, 0.0, -0.50), 0.15, 0.24), bark),
    ]


def _mug(p: jax.Array) -> Solids:
    hollow = cylinder(p, (0.0, 0.0, 0.20), 0.33, 0.50)
    band = cylinder(p, (0.0, 0.0, 0.30), 0.43, 0.04)
    return [
        Solid(PRIMARY, jnp.maximum(cylinder(p, (0.0, 0.0, 0.0), 0.42, 0.48), -hollow)),
        Solid(SECONDARY, jnp.maximum(band, -hollow)),
        Solid(SECONDARY, ring(p, (-0.46, 0.0, 0.0), 0.22, 0.075)),
        Solid(_DOOR, cylinder(p, (0.0, 0.0, 0.22), 0.36, 0.02)),
    ]


def _lamp(p: jax.Array) -> Solids:
    return [
        Solid(PRIMARY, cone(p, 0.06, 0.66, 0.50, 0.24), around(p, 14, 0.8)),
        Solid(_LIGHT, cylinder(p, (0.0, 0.0, 0.66), 0.20, 0.02)),
        Solid(SECONDARY, cylinder(p, (0.0, 0.0, -0.24), 0.08, 0.40)),
        Solid(SECONDARY, sphere(p, (0.0, 0.0, -0.24), 0.12)),
        Solid(SECONDARY, ellipsoid(p, (0.0, 0.0, -0.62), (0.36, 0.36, 0.11))),
    ]


def _rocket(p: jax.Array) -> Solids:
    pair = _mirrored(p)
    window = repeated(p, 4)
    fins = jnp.minimum(
        box(p, (0.0, 0.0, -0.44), (0.46, 0.05, 0.20), 0.03),
        box(pair, (0.0, 0.24, -0.44), (0.05, 0.22, 0.20), 0.03),
    )
    body = jnp.maximum(ellipsoid(p, (0.0, 0.0, -0.10), (0.29, 0.29, 0.88)), -0.56 - p[..., 2])
    return [
        Solid(PRIMARY, body),
        Solid(SECONDARY, fins),
        Solid(SECONDARY, cylinder(p, (0.0, 0.0, 0.24), 0.285, 0.05)),
        Solid(_STEEL, sphere(window, (0.22, 0.0, 0.0), 0.115)),
        Solid(_GLASS, sphere(window, (0.25, 0.0, 0.0), 0.095)),
        Solid(_LIGHT, cone(p, -0.72, -0.54, 0.10, 0.19)),
    ]


def _cupcake(p: jax.Array) -> Solids:
    lower, upper = repeated(p, 7), repeated(p, 5, shifted=True)
    return [
        Solid(PRIMARY, ellipsoid(p, (0.0, 0.0, 0.02), (0.52, 0.52, 0.22))),
        Solid(PRIMARY, ellipsoid(p, (0.0, 0.0, 0.22), (0.38, 0.38, 0.20))),
        Solid(PRIMARY, ellipsoid(p, (0.0, 0.0, 0.40), (0.22, 0.22, 0.16))),
        Solid(_LIGHT, sphere(lower, (0.44, 0.0, 0.13), 0.05)),
        Solid(_GLASS, sphere(upper, (0.31, 0.0, 0.33), 0.05)),
        Solid(SECONDARY, cone(p, -0.58, 0.02, 0.32, 0.47), around(p, 16, 0.75)),
        Solid(_CHERRY, sphere(p, (0.0, 0.0, 0.58), 0.12)),
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
        "mug": Kind(_mug, "handle", "grey", True),
        "lamp": Kind(_lamp, "foot", "black", False),
        "rocket": Kind(_rocket, "fins", "grey", False),
        "cupcake": Kind(_cupcake, "cup", "brown", False),
    }
)


def kinds_with_front() -> tuple[str, ...]:
    """Names of the kinds whose +x side looks different from all others."""
    return tuple(name for name, kind in KINDS.items() if kind.has_front)
