"""Splat files in the layout of 3D Gaussian Splatting (.ply), which every viewer reads.

One little-endian `float32` record a splat: position `x y z` (world units, z up), `nx ny nz` (zero, viewers
expect them), colour `f_dc_0..2` (spherical harmonic of degree 0: colour = 0.5 + 0.2820948 f_dc), `f_rest_*`
(the higher degrees, all of red, then green, then blue), `opacity` (logit), `scale_0..2` (log),
`rot_0..3` (quaternion w, x, y, z).
"""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import plyfile

from ge3d_jax.errors import UserError
from ge3d_jax.files import atomic_path
from ge3d_jax.splatting.gaussians import Gaussians

_POSITION = ("x", "y", "z")
_NORMAL = ("nx", "ny", "nz")
_BASE_COLOR = ("f_dc_0", "f_dc_1", "f_dc_2")
_SCALE = ("scale_0", "scale_1", "scale_2")
_ROTATION = ("rot_0", "rot_1", "rot_2", "rot_3")
# Spherical harmonics of degree 0, 1, 2, 3 have this many coefficients a colour channel beyond the first.
_REST_PER_CHANNEL = (0, 3, 8, 15)


def _rest_names(count: int) -> tuple[str, ...]:
    return tuple(f"f_rest_{index}" for index in range(count))


def save_ply(path: str | os.PathLike[str], gaussians: Gaussians) -> None:
    """Write the live splats (`mask`) to `path`, quaternions normalised; same splats, same bytes."""
    live = np.asarray(gaussians.mask)
    positions = np.asarray(gaussians.positions)[live]
    harmonics = np.asarray(gaussians.sh)[live]
    quaternions = np.asarray(gaussians.quaternions, np.float64)[live]
    lengths = np.linalg.norm(quaternions, axis=-1, keepdims=True)
    count = len(positions)
    rest = harmonics[:, 1:].transpose(0, 2, 1).reshape(count, -1)
    columns = np.concatenate(
        [
            positions,
            np.zeros((count, 3)),
            harmonics[:, 0],
            rest,
            np.asarray(gaussians.opacity_logits)[live][:, None],
            np.asarray(gaussians.log_scales)[live],
            quaternions / np.maximum(lengths, 1e-12),
        ],
        axis=1,
    ).astype("<f4")
    names = (
        *_POSITION,
        *_NORMAL,
        *_BASE_COLOR,
        *_rest_names(rest.shape[1]),
        "opacity",
        *_SCALE,
        *_ROTATION,
    )
    records = np.ascontiguousarray(columns).view([(name, "<f4") for name in names]).reshape(count)
    element = plyfile.PlyElement.describe(records, "vertex")
    with atomic_path(path) as temporary:
        plyfile.PlyData([element], text=False, byte_order="<").write(str(temporary))


def load_ply(path: str | os.PathLike[str]) -> Gaussians:
    """Read a splat file written by `save_ply` or any tool with the 3DGS layout, ascii or binary.

    Normals and properties of other names are left aside. Returns: splats without padding (`mask` all true).
    Raises: UserError where the file is missing, not a .ply, cut short, without splats, without a property
    this layout needs, or holds a value that is no finite number; names the file and the property.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no splat file at {path}; give the path of a .ply file.")
    try:
        data = plyfile.PlyData.read(str(path))
    except (plyfile.PlyParseError, ValueError, OSError, MemoryError) as error:
        raise UserError(
            f"{path} cannot be read as a .ply file ({error}); it is damaged, cut short or another format."
        ) from error
    if "vertex" not in data:
        raise UserError(f"{path} has no 'vertex' element, so it holds no splats; export it as 3DGS .ply.")
    records = data["vertex"].data
    if len(records) == 0:
        raise UserError(f"{path} holds no splats; give a file with at least one.")

    rest_count = sum(name.startswith("f_rest_") for name in records.dtype.names)
    if rest_count % 3 or rest_count // 3 not in _REST_PER_CHANNEL:
        raise UserError(
            f"{path} has {rest_count} f_rest_* properties; "
            "spherical harmonics of degree 0 to 3 have 0, 9, 24 or 45."
        )

    def columns(names: tuple[str, ...]) -> np.ndarray:
        """The named properties as one (N, len(names)) float32 array, each checked."""
        values = []
        for name in names:
            if name not in records.dtype.names:
                raise UserError(
                    f"{path} has no property {name!r}, so it is not a splat file "
                    "(a mesh or point cloud, perhaps); export it as 3DGS .ply."
                )
            if records.dtype[name].kind not in "fiu":
                raise UserError(
                    f"{path}: property {name!r} is a list where a number belongs; export it anew."
                )
            value = records[name].astype(np.float32)
            bad = ~np.isfinite(value)
            if bad.any():
                raise UserError(
                    f"{path}: property {name!r} of splat {int(bad.argmax())} is not a finite number; "
                    "the run that wrote the file diverged, or the file is damaged."
                )
            values.append(value)
        return np.stack(values, axis=1)

    positions = columns(_POSITION)
    base_color = columns(_BASE_COLOR)
    opacity_logits = columns(("opacity",))[:, 0]
    log_scales = columns(_SCALE)
    quaternions = columns(_ROTATION)
    zero = ~quaternions.any(axis=1)
    if zero.any():
        raise UserError(f"{path}: rot_0..3 of splat {int(zero.argmax())} are all zero, which is no rotation.")
    harmonics = base_color[:, None, :]
    if rest_count:
        rest = columns(_rest_names(rest_count)).reshape(len(records), 3, rest_count // 3)
        harmonics = np.concatenate([harmonics, rest.transpose(0, 2, 1)], axis=1)
    return Gaussians(
        positions=jnp.asarray(positions),
        log_scales=jnp.asarray(log_scales),
        quaternions=jnp.asarray(quaternions),
        opacity_logits=jnp.asarray(opacity_logits),
        sh=jnp.asarray(harmonics),
        mask=jnp.ones(len(records), bool),
    )
