"""The viewer page: it contains the splats, and a prompt in it is text, not markup."""

import base64
import re

import jax.numpy as jnp
import numpy as np

from ge3d_jax.splatting.gaussians import make_gaussians
from ge3d_jax.viewer.page import save_viewer, viewer_data
from ge3d_jax.viewer.turntable import Viewpoint


def two_splats():
    gaussians = make_gaussians(
        jnp.array([[0.1, 0.2, 0.3], [1.0, 0.0, 0.0]]),
        jnp.array([[0.9, 0.5, 0.1], [0.0, 0.0, 1.0]]),
        jnp.array([[0.1, 0.2, 0.3], [0.2, 0.2, 0.2]]),
        jnp.array([0.25, 0.75]),
        capacity=3,
    )
    # A quarter turn about z, not of unit length: the first splat's x and y axes are swapped.
    return gaussians.replace(quaternions=gaussians.quaternions.at[0].set(jnp.array([3.0, 0.0, 0.0, 3.0])))


def test_data_are_positions_opacities_colors_and_covariances():
    data = viewer_data(two_splats())
    assert data.shape == (2, 16)
    np.testing.assert_allclose(data[0, :8], [0.1, 0.2, 0.3, 0.25, 0.9, 0.5, 0.1, 0.0], atol=1e-6)
    np.testing.assert_allclose(data[0, 8:], [0.04, 0, 0, 0.01, 0, 0.09, 0, 0], atol=1e-7)


def test_page_contains_the_data_and_fetches_nothing(tmp_path):
    save_viewer(tmp_path / "viewer.html", two_splats(), title='</p><script>"x"', viewpoint=Viewpoint())
    page = (tmp_path / "viewer.html").read_text(encoding="utf-8")
    assert "{{" not in page
    assert page.count("<script") == 1 and "&lt;script&gt;" in page
    assert not re.search(r"(https?:)?//[a-z]+\.[a-z]|\bsrc=|\bfetch\(|\bimport\b", page)
    data = np.frombuffer(base64.b64decode(re.search(r'const DATA = "([^"]*)"', page)[1]), "<f4")
    np.testing.assert_array_equal(data.reshape(-1, 16), viewer_data(two_splats()))
