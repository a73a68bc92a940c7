"""The viewer page: it contains the splats, and a prompt in it is text, not markup."""

import base64
import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.splatting.gaussians import make_gaussians
from ge3d_jax.viewer.page import lighter, page_data, save_viewer
from ge3d_jax.viewer.turntable import Viewpoint


def two_splats():
    gaussians = make_gaussians(
        jnp.array([[0.1, 0.2, 0.3], [1.0, 0.0, 0.0]]),
        jnp.array([[0.9, 0.5, 0.1], [0.0, 0.0, 1.0]]),
        jnp.array([[0.1, 0.2, 0.3], [0.2, 0.2, 0.2]]),
        jnp.array([0.25, 0.75]),
        capacity=3,
    )
    # A quarter turn about z, with a non-unit quaternion: the first splat's x and y axes are swapped.
    return gaussians.replace(quaternions=gaussians.quaternions.at[0].set(jnp.array([3.0, 0.0, 0.0, 3.0])))


def splats_of_degree(degree, count):
    """Splats of equal size and color, each more visible than the one before."""
    gaussians = make_gaussians(
        jnp.zeros((count, 3)),
        jnp.full((count, 3), 0.5),
        jnp.full((count, 3), 0.1),
        jnp.linspace(0.1, 0.9, count),
        capacity=count,
        sh_degree=degree,
    )
    return gaussians.replace(sh=gaussians.sh + 0.1)


def test_data_are_positions_covariances_colors_and_opacities():
    data = page_data(two_splats())
    assert (data.shapes.shape, data.paints.shape, data.degree) == ((2, 9), (2, 4), 0)
    np.testing.assert_allclose(data.shapes[0], [0.1, 0.2, 0.3, 0.04, 0, 0, 0.01, 0, 0.09], atol=1e-7)
    np.testing.assert_allclose(data.paints[0], [0.9, 0.5, 0.1, 0.25], atol=5e-4)


def test_harmonics_follow_the_color_band_by_band():
    gaussians = splats_of_degree(2, 1)
    coefficients = np.arange(27, dtype=np.float32).reshape(1, 9, 3)
    data = page_data(gaussians.replace(sh=coefficients))
    assert data.degree == 2
    np.testing.assert_array_equal(data.paints[0, 4:], np.arange(3, 27))
    fewer = data.of_degree(1)
    assert fewer.degree == 1
    np.testing.assert_array_equal(fewer.paints[0, 4:], np.arange(3, 12))


def test_colors_beyond_half_precision_stay_numbers():
    data = page_data(splats_of_degree(1, 2).replace(sh=jnp.full((2, 4, 3), 1e9)))
    assert np.isfinite(data.paints).all()


def decoded(page, name, dtype):
    return np.frombuffer(base64.b64decode(re.search(rf'{name} = "([^"]*)"', page)[1]), dtype)


def test_page_contains_the_data_and_fetches_nothing(tmp_path):
    save_viewer(tmp_path / "viewer.html", two_splats(), title='</h1><script>"x"', viewpoint=Viewpoint())
    page = (tmp_path / "viewer.html").read_text(encoding="utf-8")
    assert "{{" not in page
    assert page.count("<script") == 1 and "&lt;script&gt;" in page
    assert not re.search(r"(https?:)?//[a-z]+\.[a-z]|\bsrc=|\bfetch\(|\bimport\b", page)
    data = page_data(two_splats())
    np.testing.assert_array_equal(decoded(page, "SHAPES", "<f4").reshape(-1, 9), data.shapes)
    np.testing.assert_array_equal(decoded(page, "PAINTS", "<f2").reshape(-1, 4), data.paints)


def test_it_tells_the_prompt_and_the_numbers(tmp_path):
    save_viewer(
        tmp_path / "viewer.html",
        splats_of_degree(1, 3),
        title="a <red> mushroom",
        viewpoint=Viewpoint(),
        numbers={"seed": 7, "loss": "<ge3d>"},
        antialiased=True,
    )
    page = (tmp_path / "viewer.html").read_text(encoding="utf-8")
    assert "<h1>a &lt;red&gt; mushroom</h1>" in page and "<title>a &lt;red&gt; mushroom</title>" in page
    told = "splats 3 · seed 7 · loss &lt;ge3d&gt; · color of degree 1 · antialiased yes"
    assert f'<div id="numbers">{told}</div>' in page


def test_the_camera_starts_where_it_is_said(tmp_path: Path) -> None:
    viewpoint = Viewpoint(radius=4.0, polar=1.2, fov=0.6)
    save_viewer(tmp_path / "viewer.html", two_splats(), title="", viewpoint=viewpoint)
    page = (tmp_path / "viewer.html").read_text(encoding="utf-8")
    start = json.loads(re.search(r"START = ({[^}]*})", page)[1])
    assert start == {"azimuth": 0.0, "polar": 1.2, "radius": 4.0, "fov": 0.6}


@pytest.mark.parametrize(
    ("share", "degree", "count"),
    [
        # A splat takes 36 + 2·(4 + 45) bytes at degree 3, 92 at degree 2, 62 at degree 1, and 44 at degree 0.
        (1.0, 3, 100),
        (0.999, 2, 100),
        (0.6, 1, 100),
        (0.4, 0, 100),
        (0.1, 0, 30),
    ],
)
def test_color_goes_first_and_then_what_shows_least(share, degree, count):
    data = page_data(splats_of_degree(3, 100))
    largest = int(share * data.characters)
    made, left_out = lighter(data, largest)
    assert (made.degree, len(made.shapes)) == (degree, count) and made.characters <= largest
    np.testing.assert_array_equal(made.paints, data.of_degree(degree).paints[-count:])
    assert left_out == ([f"color beyond degree {degree} of 3"] if degree < 3 else []) + (
        ["70 of 100 splats, those that show least"] if count < 100 else []
    )


def test_what_shows_is_area_as_well_as_opacity():
    gaussians = splats_of_degree(0, 4)
    # Balls, a needle, which has no area, and a disk, whose thickness does not count.
    widths = jnp.array([[0.1, 0.1, 0.1], [0.2, 0.2, 0.2], [9.0, 1e-4, 1e-4], [0.3, 1e-4, 0.3]])
    data = page_data(gaussians.replace(log_scales=jnp.log(widths), opacity_logits=jnp.zeros(4)))
    for count, kept in ((1, [3]), (2, [1, 3]), (3, [0, 1, 3])):
        np.testing.assert_array_equal(data.most_visible(count).shapes, data.shapes[kept])


def test_a_page_that_is_too_large_is_made_lighter_and_told(tmp_path):
    gaussians, path = splats_of_degree(3, 1000), tmp_path / "viewer.html"
    save_viewer(path, gaussians, title="", viewpoint=Viewpoint())
    whole = path.stat().st_size
    with pytest.warns(
        UserWarning, match=r"^viewer.html would be 0 MB, so it leaves out color beyond"
    ) as said:
        save_viewer(path, gaussians, title="", viewpoint=Viewpoint(), largest=whole * 3 // 5)
    assert len(said) == 1 and whole // 3 < path.stat().st_size <= whole * 3 // 5
    page = path.read_text(encoding="utf-8")
    assert "COUNT = 1000, DEGREE = 1," in page
    assert "color of degree 3 · left out here color beyond degree 1 of 3" in page
