"""The property names used by different writers of .ply splat files, and the splats that they describe.

The layout of 3D Gaussian Splatting is the standard; others deviate from it in known ways. CloudCompare
prefixes every property but the position with `scalar_`. nerfstudio's `--ply-color-mode rgb` and point cloud
editors write `red green blue` instead of `f_dc_*`. 2D Gaussian Splatting has two scales: its splats are flat.
Mip-Splatting (Yu et al. 2024) adds `filter_3D`, the standard deviation of a 3D filter that widens and weakens
the splats: scale² + filter², opacity · √(|Σ| / |Σ + filter²·I|). Degree 4 has more coefficients than can be
drawn here.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.ply_header import Element
from ge3d_jax.formats.splat_arrays import OPACITY_LIMIT, SplatArrays, without_infinity
from ge3d_jax.splatting.gaussians import MIN_SCALE, SH_C0

POSITION = ("x", "y", "z")
BASE_COLOR = ("f_dc_0", "f_dc_1", "f_dc_2")
OPACITY = ("opacity",)
SCALE = ("scale_0", "scale_1", "scale_2")
ROTATION = ("rot_0", "rot_1", "rot_2", "rot_3")
_PLAIN_COLOR = ("red", "green", "blue")
_FILTER = ("filter_3d",)

# Prefixes that CloudCompare and its converters add to a name, longest first.
_PREFIXES = ("scalar_scal_", "scalar_", "scal_")
# Other spellings, in lower case.
_SPELLINGS = {
    **dict(zip(("scale_x", "scale_y", "scale_z"), SCALE, strict=True)),
    **{f"scaling_{axis}": name for axis, name in enumerate(SCALE)},
    **dict(zip(("rot_w", "rot_x", "rot_y", "rot_z"), ROTATION, strict=True)),
    **{f"rotation_{axis}": name for axis, name in enumerate(ROTATION)},
    **dict(zip(("r", "g", "b"), _PLAIN_COLOR, strict=True)),
    **{f"diffuse_{name}": name for name in _PLAIN_COLOR},
}
# Floats above it are bytes.
_LARGEST_FRACTION = 2.0
# The largest value of the integer types used for colors; floats are already fractions.
_FULL_COLOR = {"u1": 255.0, "i1": 255.0, "u2": 65535.0, "i2": 65535.0}
# Coefficients per color channel beyond the first, for degrees 0 to 4, and how many of them can be drawn.
REST_PER_CHANNEL = (0, 3, 8, 15, 24)
MOST_REST = 15
# Comments by which Brush and Postshot say how splats were trained.
_MODES = {
    "splatrendermode: mip": True,
    "splatrendermode: default": False,
    "splatrendermode: 2dgs": False,
    "antialiased 1": True,
    "antialiased 0": False,
}
ANTIALIASED_COMMENT = "SplatRenderMode: mip"


def rest_names(count: int) -> tuple[str, ...]:
    """Return the names of the first `count` coefficients of higher degree."""
    return tuple(f"f_rest_{index}" for index in range(count))


def is_antialiased(comments: list[str]) -> bool:
    """Whether the last comment on antialiasing says that the splats were trained with it."""
    said = [_MODES.get(" ".join(comment.lower().split())) for comment in comments]
    return next((mode for mode in reversed(said) if mode is not None), False)


@dataclass(frozen=True)
class Columns:
    """What the properties of a file hold.

    Attributes:
        names: the file's own names, in the order position, opacity, scales, rotation, color, rest, filter.
        scales: number of scales, 1 to 3.
        rest: number of coefficients of higher degree.
        full_color: divisor that turns colors into fractions; None if they are coefficients of degree 0.
        filtered: whether there is a 3D filter.
    """

    names: tuple[str, ...]
    scales: int
    rest: int
    full_color: float | None
    filtered: bool


def _standard_name(name: str) -> str:
    lower = name.lower()
    for prefix in _PREFIXES:
        lower = lower.removeprefix(prefix)
    return _SPELLINGS.get(lower, lower)


def _own_names(types: Mapping[str, str | None]) -> dict[str, str]:
    """Map standard names to the file's names; if a name is standard already, it takes precedence."""
    own: dict[str, str] = {}
    for name in types:
        own.setdefault(_standard_name(name), name)
    return own | {name: name for name in types if name == _standard_name(name)}


def find_columns(path: Path, element: Element) -> Columns:
    """Find the properties of splats in an element.

    Args:
        path: path of the file, for messages.
        element: the element that holds the splats.

    Returns:
        What the properties hold.

    Raises:
        UserError: a property is missing or a list, or the number of coefficients does not match any degree;
            the message names the property.

    Warns:
        UserWarning: scales are missing.
    """
    own = _own_names(element.types)
    rest = sum(name.startswith("f_rest_") for name in own)
    if rest % 3 or rest // 3 not in REST_PER_CHANNEL:
        raise UserError(
            f"{path} has {rest} f_rest_* properties; "
            "spherical harmonics of degree 0 to 3 have 0, 9, 24 or 45, so export it again."
        )
    scales = [name for name in SCALE if name in own]
    colors = BASE_COLOR
    if not any(name in own for name in BASE_COLOR) and all(name in own for name in _PLAIN_COLOR):
        colors = _PLAIN_COLOR
    filters = tuple(name for name in _FILTER if name in own)
    # A gap among the scales, or no scales at all, counts as a missing property.
    some_scales = SCALE[: max(1, len(scales))] if scales == list(SCALE[: len(scales)]) else SCALE
    wanted = (*POSITION, *OPACITY, *some_scales, *ROTATION, *colors, *rest_names(rest), *filters)
    for name in wanted:
        if name not in own:
            raise UserError(
                f"{path} has no property {name!r}, so it is not a splat file "
                "(perhaps it is a mesh or point cloud); export it as 3DGS .ply."
            )
    for name, kind in element.types.items():
        if kind is None:
            wrong = "not a number" if name in {own[key] for key in wanted} else "which splats do not have"
            raise UserError(f"{path}: property {name!r} is a list, {wrong}; export it again.")
    if len(some_scales) < len(SCALE):
        meaning = "its splats are flat, as in 2DGS" if len(some_scales) == 2 else "its splats are balls"
        warnings.warn(f"{path} has {len(some_scales)} of 3 scales: {meaning}.", stacklevel=2)
    kind = element.types[own[colors[0]]]
    assert kind is not None  # checked above: no lists
    full_color = None if colors == BASE_COLOR else _FULL_COLOR.get(kind[-2:], 1.0)
    return Columns(tuple(own[name] for name in wanted), len(some_scales), rest, full_color, bool(filters))


def color_columns(types: Mapping[str, str | None]) -> tuple[list[str], float]:
    """Find the properties red, green, and blue of an element, by the file's own names, and their full value.

    Args:
        types: types of the element's properties.

    Returns:
        The names, empty if a color is missing or a list; and the largest value of their type, 1 for floats.
    """
    own = _own_names(types)
    names = [own[name] for name in _PLAIN_COLOR if name in own]
    kinds = [types[name] for name in names]
    if len(names) < len(_PLAIN_COLOR) or None in kinds:
        return [], 1.0
    return names, _FULL_COLOR.get(str(kinds[0])[-2:], 1.0)


def fractions(colors: np.ndarray, full: float) -> np.ndarray:
    """Convert colors to [0, 1]; some writers store bytes as floats, and others overshoot 1 a little."""
    if full == 1.0 and np.max(colors, initial=0.0, where=np.isfinite(colors)) > _LARGEST_FRACTION:
        full = 255.0
    return colors / np.float32(full)


def _with_filter(
    log_scales: np.ndarray, logits: np.ndarray, width: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Apply Mip-Splatting's 3D filter of width (N, 1): log scales (N, 3) and opacity logits (N,)."""
    # Wide splats overflow; they are then left out as not finite.
    with np.errstate(all="ignore"):
        variances = np.exp(2.0 * log_scales.astype(np.float64))
        widened = variances + np.square(width.astype(np.float64))
        weaker = np.sqrt((variances / widened).prod(axis=1))
        opacity = weaker / (1.0 + np.exp(-logits.astype(np.float64)))
        filtered = np.log(opacity) - np.log1p(-opacity)
        return (0.5 * np.log(widened)).astype(np.float32), filtered.astype(np.float32)


def to_arrays(path: Path, columns: Columns, values: np.ndarray) -> SplatArrays:
    """Convert a table of properties to splats.

    Args:
        path: path of the file, for messages.
        columns: what the columns hold.
        values: (N, C) float32, in the order of `columns.names`.

    Returns:
        The splats, including those that cannot be drawn.

    Warns:
        UserWarning: a filter was applied, or a degree was left out.
    """
    count = len(values)
    ends = np.cumsum([3, 1, columns.scales, 4, 3, columns.rest])
    positions, logits, scales, quaternions, colors, rest, width = np.split(values, ends, axis=1)
    scales = np.repeat(scales, 3, axis=1) if columns.scales == 1 else scales
    if columns.scales == 2:
        scales = np.concatenate([scales, np.full((count, 1), -np.inf, np.float32)], axis=1)
    # Some converters write an opacity of 0 or 1, or a scale of 0, as an infinite logit or logarithm.
    log_scales = without_infinity(scales, np.log(MIN_SCALE), np.inf)
    opacities = logits[:, 0]
    if columns.filtered:
        log_scales, opacities = _with_filter(log_scales, opacities, width)
        warnings.warn(
            f"{path} has the filter of Mip-Splatting (filter_3D), which was applied to scales and opacities; "
            "render it with antialiasing, as it was trained.",
            stacklevel=2,
        )
    if columns.full_color is not None:
        colors = (fractions(colors, columns.full_color) - np.float32(0.5)) / np.float32(SH_C0)
    channels = rest.reshape(count, 3, columns.rest // 3)
    if channels.shape[2] > MOST_REST:
        channels = channels[:, :, :MOST_REST]
        warnings.warn(
            f"{path} has spherical harmonics of degree 4, of which degrees 0 to 3 were kept.", stacklevel=2
        )
    return SplatArrays(
        positions=positions,
        log_scales=log_scales,
        quaternions=quaternions,
        opacity_logits=without_infinity(opacities, -OPACITY_LIMIT, OPACITY_LIMIT),
        sh=np.concatenate([colors[:, None], channels.transpose(0, 2, 1)], axis=1),
    )
