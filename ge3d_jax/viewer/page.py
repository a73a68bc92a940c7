"""An interactive page that shows the object: one file, no network, any browser with WebGL 2."""

import base64
import html
import importlib.resources
import json
import os

import numpy as np

from ge3d_jax.core.files import atomic_path
from ge3d_jax.splatting.gaussians import SH_C0, Gaussians
from ge3d_jax.viewer.turntable import Viewpoint


def _rotations(quaternions: np.ndarray) -> np.ndarray:
    """Rotation matrices (N, 3, 3) of wxyz quaternions (N, 4) of any length."""
    w, x, y, z = np.moveaxis(quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True), 1, 0)
    entries = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(entries), 2, 0)


def viewer_data(gaussians: Gaussians) -> np.ndarray:
    """The page's data, float32 (M, 16) for the M splats in use; viewer.html documents the columns.

    Colors are the constant part of the spherical harmonics: the page shows no view dependence.
    """
    live = np.asarray(gaussians.mask)
    scales = np.exp(np.asarray(gaussians.log_scales, np.float64)[live])
    axes = _rotations(np.asarray(gaussians.quaternions, np.float64)[live]) * scales[:, None, :]
    covariances = axes @ axes.transpose(0, 2, 1)
    data = np.zeros((len(scales), 16), np.float32)
    data[:, :3] = np.asarray(gaussians.positions)[live]
    data[:, 3] = 1.0 / (1.0 + np.exp(-np.asarray(gaussians.opacity_logits, np.float64)[live]))
    data[:, 4:7] = np.maximum(0.5 + SH_C0 * np.asarray(gaussians.sh)[live, 0], 0.0)
    rows, columns = np.triu_indices(3)
    data[:, 8:14] = covariances[:, rows, columns]
    return data


def save_viewer(
    path: str | os.PathLike[str], gaussians: Gaussians, *, title: str, viewpoint: Viewpoint
) -> None:
    """Write the page.

    Args:
        path: file to write.
        gaussians: the splats.
        title: title of the page, plain text.
        viewpoint: where the page's camera starts, in front of the object.
    """
    data = viewer_data(gaussians)
    camera = {"azimuth": 0.0, "polar": viewpoint.polar, "radius": viewpoint.radius, "fov": viewpoint.fov}
    page = importlib.resources.files(__package__).joinpath("viewer.html").read_text(encoding="utf-8")
    for name, value in (
        ("COUNT", str(len(data))),
        ("CAMERA", json.dumps(camera)),
        ("DATA", base64.b64encode(data.astype("<f4").tobytes()).decode()),
        # Last: a prompt may contain anything, even the other placeholders.
        ("TITLE", html.escape(title)),
    ):
        page = page.replace("{{" + name + "}}", value)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
