"""OpenUSD: a one-sentence error without usd-core, and round trips with it."""

import sys

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.splat_arrays import live_arrays
from ge3d_jax.formats.splats import save_splats
from ge3d_jax.formats.usd import save_usd
from tests.formats.splat_files import random_gaussians, with_values


def test_without_the_package_one_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pxr", None)
    with pytest.raises(UserError, match=r"a\.usda needs the package usd-core.*pip install 'usd-core>=26\.3'"):
        save_usd(tmp_path / "a.usda", random_gaussians(2, 0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["usd", "usda", "usdc"])
def test_usd_core_reads_them_back(tmp_path, ending):
    pytest.importorskip("pxr.UsdVol")
    from pxr import Usd, UsdGeom, UsdVol

    gaussians = random_gaussians(5, 2, dead=1)
    save_splats(tmp_path / f"a.{ending}", gaussians)
    wanted = live_arrays(gaussians)
    stage = Usd.Stage.Open(str(tmp_path / f"a.{ending}"))
    assert UsdGeom.GetStageUpAxis(stage) == "Y" and UsdGeom.GetStageMetersPerUnit(stage) == 1.0
    prim = UsdVol.ParticleField3DGaussianSplat(stage.GetDefaultPrim())
    places = np.array(prim.GetPositionsAttr().Get())
    np.testing.assert_array_equal(places, wanted.positions * np.array([1, -1, -1], np.float32))
    np.testing.assert_allclose(np.array(prim.GetScalesAttr().Get()), np.exp(wanted.log_scales), rtol=1e-6)
    opacities = 1 / (1 + np.exp(-wanted.opacity_logits))
    np.testing.assert_allclose(np.array(prim.GetOpacitiesAttr().Get()), opacities, rtol=1e-6)
    for found, (w, x, y, z) in zip(prim.GetOrientationsAttr().Get(), wanted.quaternions, strict=True):
        np.testing.assert_allclose([found.real, *found.imaginary], (-x, w, -z, y), atol=1e-6)
    assert prim.GetRadianceSphericalHarmonicsDegreeAttr().Get() == 2
    colors = np.array(prim.GetRadianceSphericalHarmonicsCoefficientsAttr().Get()).reshape(4, 9, 3)
    np.testing.assert_array_equal(colors[:, 0], wanted.sh[:, 0])
    np.testing.assert_array_equal(colors[:, 1], -wanted.sh[:, 1])
    low, high = np.array(UsdGeom.Boundable(prim.GetPrim()).GetExtentAttr().Get())
    # Splats are visible up to three standard deviations.
    reach = 3 * np.exp(wanted.log_scales).max(axis=1, keepdims=True)
    np.testing.assert_allclose(low, (places - reach).min(axis=0), rtol=1e-5)
    np.testing.assert_allclose(high, (places + reach).max(axis=0), rtol=1e-5)


def test_a_scale_that_overflows_is_named(tmp_path):
    pytest.importorskip("pxr.UsdVol")
    with pytest.raises(UserError, match="overflows float32"):
        save_usd(tmp_path / "a.usd", with_values(random_gaussians(2, 0), "log_scales", (1, 1), 100.0))
