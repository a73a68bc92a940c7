"""An interactive web page that shows the object: a single offline file for any browser with WebGL 2."""

import base64
import dataclasses
import html
import importlib.resources
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ge3d_jax.core.files import atomic_path
from ge3d_jax.splatting.gaussians import SH_C0, Gaussians, sh_degree_of
from ge3d_jax.viewer.framing import rotation_matrix
from ge3d_jax.viewer.turntable import Viewpoint

# Largest page, bytes; bigger ones are reduced, because they open slowly and are too large to email.
LARGEST_PAGE = 20_000_000
# Bytes of it reserved for the title and the numbers.
_MARGIN = 2000
_HALF_MAX = float(np.finfo(np.float16).max)


@dataclasses.dataclass(frozen=True)
class PageData:
    """The page's data for M splats.

    Attributes:
        shapes: float32 (M, 9): position, and the components xx xy xz yy yz zz of the world-space covariance.
        paints: float16 (M, 4 + 3·(K − 1)): the constant part of the color (unclipped), the opacity, and the
            RGB coefficients of the K − 1 higher spherical harmonics, in 3DGS order.
    """

    shapes: np.ndarray
    paints: np.ndarray

    @property
    def degree(self) -> int:
        """Degree of the spherical harmonics."""
        return sh_degree_of(1 + (self.paints.shape[1] - 4) // 3)

    @property
    def characters(self) -> int:
        """Number of characters that the data occupy in the page."""
        return sum(4 * -(-array.nbytes // 3) for array in (self.shapes, self.paints))

    def of_degree(self, degree: int) -> "PageData":
        """The same data with spherical harmonics truncated to `degree`."""
        return dataclasses.replace(self, paints=self.paints[:, : 4 + 3 * ((degree + 1) ** 2 - 1)])

    def most_visible(self, count: int) -> "PageData":
        """The `count` most visible splats (largest opacity times area), in their original order."""
        # The two longer axes span the area; the determinant's root is their product with the shortest.
        xx, xy, xz, yy, yz, zz = self.shapes[:, 3:].astype(np.float64).T
        minors = xx * yy - xy**2 + xx * zz - xz**2 + yy * zz - yz**2
        shown = np.sqrt(np.maximum(minors, 0.0)) * self.paints[:, 3]
        kept = np.sort(np.argsort(-shown, kind="stable")[:count])
        return PageData(self.shapes[kept], self.paints[kept])


def _rotations(quaternions: np.ndarray) -> np.ndarray:
    """Rotation matrices (N, 3, 3) of wxyz quaternions (N, 4) of any length."""
    w, x, y, z = np.moveaxis(quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True), 1, 0)
    entries = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(entries), 2, 0)


def page_data(gaussians: Gaussians) -> PageData:
    """Convert the splats in use to the page's data."""
    live = np.asarray(gaussians.mask)
    scales = np.exp(np.asarray(gaussians.log_scales, np.float64)[live])
    axes = _rotations(np.asarray(gaussians.quaternions, np.float64)[live]) * scales[:, None, :]
    covariances = axes @ axes.transpose(0, 2, 1)
    rows, columns = np.triu_indices(3)
    shapes = np.concatenate([np.asarray(gaussians.positions)[live], covariances[:, rows, columns]], axis=1)
    sh = np.asarray(gaussians.sh, np.float64)[live]
    opacities = 1.0 / (1.0 + np.exp(-np.asarray(gaussians.opacity_logits, np.float64)[live]))
    paints = np.concatenate(
        [0.5 + SH_C0 * sh[:, 0], opacities[:, None], sh[:, 1:].reshape(len(sh), -1)], axis=1
    )
    return PageData(shapes.astype(np.float32), np.clip(paints, -_HALF_MAX, _HALF_MAX).astype(np.float16))


def lighter(data: PageData, largest: int) -> tuple[PageData, list[str]]:
    """Reduce data to at most `largest` characters, and describe in words what was left out.

    View-dependent color is dropped first, one degree at a time, then the least visible splats.
    """
    made = data
    while made.characters > largest and made.degree > 0:
        made = made.of_degree(made.degree - 1)
    left_out = []
    if made.degree < data.degree:
        left_out.append(f"color beyond degree {made.degree} of {data.degree}")
    count = len(data.shapes)
    if made.characters > largest:
        made = made.most_visible(count * largest // made.characters)
        left_out.append(f"{count - len(made.shapes)} of {count} splats, those that show least")
    return made, left_out


def _text(array: np.ndarray) -> str:
    """Encode an array's bytes, little-endian, as Base64 text."""
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def save_viewer(
    path: str | os.PathLike[str],
    gaussians: Gaussians,
    *,
    title: str,
    viewpoint: Viewpoint,
    numbers: Mapping[str, str | int | float] | None = None,
    up: str = "z",
    antialiased: bool = False,
    largest: int = LARGEST_PAGE,
) -> None:
    """Write the page; if it would be too large, reduce it and warn about what was left out.

    Args:
        path: file to write.
        gaussians: the splats.
        title: title of the page, plain text.
        viewpoint: where the page's camera starts, in front of the object.
        numbers: facts about the object to show, name → value, in addition to its number of splats.
        up: the up direction of the splats' coordinates, a key of `framing.UPRIGHT`.
        antialiased: whether to weaken splats thinner than a pixel; see `rasterize.render`.
        largest: maximum size of the page, bytes.
    """
    page = importlib.resources.files(__package__).joinpath("viewer.html").read_text(encoding="utf-8")
    everything = page_data(gaussians)
    data, left_out = lighter(everything, largest - len(page) - _MARGIN)
    if left_out:
        megabytes = (len(page) + everything.characters) / 1e6
        warnings.warn(
            f"{Path(path).name} would be {megabytes:.0f} MB, so it leaves out {' and '.join(left_out)}; "
            "the splat file has everything.",
            stacklevel=2,
        )
    told: dict[str, str | int | float] = {"splats": len(everything.shapes), **(numbers or {})}
    if everything.degree:
        told["color"] = f"of degree {everything.degree}"
    if antialiased:
        told["antialiased"] = "yes"
    if left_out:
        told["left out here"] = " and ".join(left_out)
    camera = {"azimuth": 0.0, "polar": viewpoint.polar, "radius": viewpoint.radius, "fov": viewpoint.fov}
    for name, value in (
        ("COUNT", str(len(data.shapes))),
        ("DEGREE", str(data.degree)),
        ("ANTIALIASED", json.dumps(antialiased)),
        ("CAMERA", json.dumps(camera)),
        ("TURN", json.dumps(rotation_matrix(up).round(12).ravel().tolist())),
        ("SHAPES", _text(data.shapes)),
        ("PAINTS", _text(data.paints)),
        # Last: a prompt may contain anything, even the other placeholders.
        ("NUMBERS", " · ".join(html.escape(f"{name} {value}") for name, value in told.items())),
        ("TITLE", html.escape(title)),
    ):
        page = page.replace("{{" + name + "}}", value)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
