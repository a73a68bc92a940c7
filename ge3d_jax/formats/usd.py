"""Splats as an OpenUSD 26.03 `ParticleField3DGaussianSplat` prim (.usd, .usda, .usdc), write-only.

Requires the optional package usd-core. The arrays are float32: `positions`, `orientations`, `scales`
(standard deviations), `opacities` in [0, 1], and all `radiance:sphericalHarmonicsCoefficients` of each splat,
each red, green, and blue. The stage has y up.
"""

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import atomic_path
from ge3d_jax.formats.splat_arrays import finite_scales, live_finite_arrays, normalized, opacities
from ge3d_jax.splatting.gaussians import Gaussians, sh_degree_of

_PRIM = "/Splats"


def _modules(path: Path) -> tuple[Any, ...]:
    """Import Usd, UsdGeom, UsdVol, Sdf, and Vt.

    Raises:
        UserError: usd-core is missing, or older than the schema.
    """
    try:
        names = ("Usd", "UsdGeom", "UsdVol", "Sdf", "Vt")
        found = tuple(importlib.import_module(f"pxr.{name}") for name in names)
    except ImportError as error:
        raise UserError(
            f"{path} needs the package usd-core, which is not installed; run: pip install 'usd-core>=26.3'"
        ) from error
    if not hasattr(found[2], "ParticleField3DGaussianSplat"):
        raise UserError(f"{path} needs usd-core 26.3 or newer; run: pip install --upgrade 'usd-core>=26.3'")
    return found


def save_usd(path: str | os.PathLike[str], gaussians: Gaussians) -> None:
    """Write the splats in use (`mask`) as the default prim of a stage.

    Args:
        path: file to write; .usda is text, the others are binary.
        gaussians: the splats; coordinates are written as they are.

    Raises:
        UserError: usd-core is missing or too old, a splat is not finite, or the file cannot be written.
    """
    path = Path(path)
    usd, geometry, volume, sdf, vt = _modules(path)
    arrays = live_finite_arrays(path, gaussians)
    scales = finite_scales(path, arrays.log_scales)
    stage = usd.Stage.CreateInMemory()
    geometry.SetStageUpAxis(stage, geometry.Tokens.y)
    geometry.SetStageMetersPerUnit(stage, 1.0)
    prim = volume.ParticleField3DGaussianSplat.Define(stage, sdf.Path(_PRIM))
    stage.SetDefaultPrim(prim.GetPrim())
    # usd-core's conversion takes the imaginary parts first.
    unit = normalized(arrays.quaternions)[:, [1, 2, 3, 0]]
    prim.CreatePositionsAttr(vt.Vec3fArray.FromNumpy(arrays.positions))
    prim.CreateOrientationsAttr(vt.QuatfArray.FromNumpy(np.ascontiguousarray(unit)))
    prim.CreateScalesAttr(vt.Vec3fArray.FromNumpy(scales))
    prim.CreateOpacitiesAttr(vt.FloatArray.FromNumpy(opacities(arrays.opacity_logits).astype(np.float32)))
    prim.CreateRadianceSphericalHarmonicsDegreeAttr(sh_degree_of(arrays.sh.shape[1]))
    coefficients = np.ascontiguousarray(arrays.sh.reshape(-1, 3))
    prim.CreateRadianceSphericalHarmonicsCoefficientsAttr(vt.Vec3fArray.FromNumpy(coefficients))
    if len(arrays.positions):
        reach = 3.0 * scales.max(axis=1, keepdims=True)
        ends = [(arrays.positions - reach).min(axis=0), (arrays.positions + reach).max(axis=0)]
        geometry.Boundable(prim.GetPrim()).CreateExtentAttr(vt.Vec3fArray.FromNumpy(np.stack(ends)))
    with atomic_path(path) as temporary:
        if not stage.GetRootLayer().Export(str(temporary)):
            raise UserError(f"{path} cannot be written; choose another place or suffix.")
