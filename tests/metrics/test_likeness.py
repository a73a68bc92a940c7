"""Likeness to the ground truth: each metric on handmade pictures, outlines, surfaces and splats."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.metrics.likeness import (
    Views,
    chamfer,
    compare_views,
    depth_difference,
    measure_likeness,
    object_views,
    overlap,
    sharpness,
    size_of,
    specks,
    tint,
    true_views,
)
from ge3d_jax.metrics.pictures import ssim
from ge3d_jax.splatting.cameras import camera_center
from ge3d_jax.splatting.gaussians import make_gaussians
from ge3d_jax.toybox.world.captions import parse
from ge3d_jax.toybox.world.render import distance_to, surface, toybox_camera
from ge3d_jax.viewer.turntable import Viewpoint, cameras_around, turntable_azimuths

SENTENCE = parse("a white snowman")


def test_overlap_is_intersection_over_union_of_what_is_more_than_half_covered():
    ours, theirs = np.zeros((2, 4, 4)), np.zeros((2, 4, 4))
    ours[0, :, :2], theirs[0, :, 1:3] = 0.9, 0.51
    ours[1, 0, 0] = theirs[1, 1, 1] = 0.5
    assert overlap(ours, theirs) == 4 / 12
    assert overlap(np.zeros((4, 4)), np.zeros((4, 4))) == 1.0


def test_sharpness_compares_squared_differences_along_both_axes():
    truth = np.zeros((4, 4, 3))
    truth[:, 2:] = 1.0
    assert sharpness(truth, truth) == sharpness(truth.swapaxes(0, 1), truth) == 1.0
    # A ramp over two pixels has half the squared difference of a step.
    ramp = truth.copy()
    ramp[:, 1] = 0.5
    ramp[:, 2] = 1.0
    assert sharpness(ramp, truth) == pytest.approx(0.5)


def test_tint_is_the_chroma_where_the_truth_is_neutral_and_inside():
    truth, alpha = np.full((2, 3, 3), 0.5), np.ones((2, 3))
    truth[0, 0], alpha[0, 1] = (1.0, 0.0, 0.0), 0.5
    picture = truth + 0.0
    picture[0, 1] = (0.0, 1.0, 0.0)
    picture[1, 2] = (0.5, 0.7, 0.4)
    assert tint(picture, truth, alpha) == pytest.approx(0.3 / 4)
    assert tint(picture[:1, :1], truth[:1, :1], alpha[:1, :1]) is None
    # A chroma of 0.03 counts as a color, and a coverage of 0.99 as an edge.
    truth[0, 0], alpha[0, 1] = (0.5, 0.5, 0.529), 0.991
    picture[0, :2] = (0.0, 1.0, 0.0)
    assert tint(picture, truth, alpha) == pytest.approx(2.3 / 6)
    truth[0, 0], alpha[0, 1] = (0.5, 0.5, 0.531), 0.989
    assert tint(picture, truth, alpha) == pytest.approx(0.3 / 4)


def test_chamfer_is_the_mean_of_both_directions():
    points, true_points = np.zeros((1, 3)), np.asarray([[0.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    assert chamfer(points, true_points) == pytest.approx(0.5 * (1.0 + 2.0))
    assert chamfer(np.zeros((0, 3)), true_points) == np.inf
    assert size_of(true_points) == 3.0


def test_a_camera_sees_points_on_the_surface():
    points, hit = surface("snowman", toybox_camera(0.3, np.deg2rad(70.0), size=64))
    nearest = np.asarray(distance_to("snowman", points))
    assert np.all(np.abs(nearest[np.asarray(hit)]) < 4e-3) and np.all(nearest[~np.asarray(hit)] > 4e-3)
    # The points face the camera, and the object fills its view.
    assert points[np.asarray(hit)].mean(axis=0)[0] > 0.1 and 0.1 < np.mean(hit) < 0.6


def splats(positions, opacity=0.95):
    count = len(positions)
    colors, scales = np.full((count, 3), 0.9), np.full((count, 3), 0.006)
    return make_gaussians(positions, colors, scales, np.full(count, opacity), capacity=count)


@pytest.fixture(scope="module")
def on_the_surface():
    """Splats at the snowman's surface points seen by eight cameras."""
    points = []
    for azimuth in turntable_azimuths(8):
        places, hit = surface("snowman", toybox_camera(azimuth, np.deg2rad(70.0), size=64))
        points.append(np.asarray(places)[np.asarray(hit)][::2])
    return np.concatenate(points)


def test_splats_on_the_true_surface_are_like_it(on_the_surface):
    cameras = cameras_around(turntable_azimuths(2), Viewpoint(size=64))
    found = measure_likeness(splats(on_the_surface), SENTENCE, cameras)
    # A splat extends over a pixel, and pixels are large in such a small picture.
    assert found["overlap"] > 0.78 and found["chamfer"] < 0.02 and found["specks"] == 0.0
    # The splats are uniformly gray, so they lack the dark hat and the nose, but not the outline.
    assert 10 < found["psnr"] < 20 and found["tint"] < 0.01
    larger = measure_likeness(splats(1.3 * on_the_surface), SENTENCE, cameras)
    assert larger["overlap"] < 0.7 and larger["chamfer"] > 0.03 and larger["psnr"] < found["psnr"]


def test_specks_are_the_share_of_the_opacity_outside(on_the_surface):
    inside, outside = on_the_surface[:30], np.asarray([[0.9, 0.0, 0.0]] * 10)
    both = splats(np.concatenate([inside, outside]))
    faint = both.replace(opacity_logits=both.opacity_logits.at[30:].set(jax.scipy.special.logit(0.475)))
    assert specks(both, "snowman", 1.5) == pytest.approx(10 / 40)
    assert specks(faint, "snowman", 1.5) == pytest.approx(5 / 35)
    # Unused splats are not specks, and splats within 5 % of the size count as part of the object.
    assert specks(both.replace(mask=jnp.arange(40) < 30), "snowman", 1.5) == 0.0
    near = splats(np.asarray([[0.0, 0.0, -0.74 - 0.049], [0.0, 0.0, -0.74 - 0.051]]))
    assert specks(near, "snowman", 1.0) == pytest.approx(0.5)


def flat_views(depth, alpha):
    """One view of 4 by 4 pixels."""
    depths, alphas = (np.broadcast_to(np.asarray(each, float), (1, 4, 4)) for each in (depth, alpha))
    return Views(np.ones((1, 4, 4, 3)), alphas, depths, np.zeros((1, 3)))


def test_depths_differ_where_both_cover():
    rows = np.asarray([1.0, 1.0, 0.5, 0.0])[:, None]
    assert depth_difference(flat_views(3.0, rows), flat_views(3.2, 1.0)) == pytest.approx(0.2)
    steps = np.asarray([3.0, 3.3, 9.0, 0.0])[:, None]
    assert depth_difference(flat_views(steps, rows), flat_views(3.2, 1.0)) == pytest.approx(0.15)
    assert depth_difference(flat_views(3.2, 1.0), flat_views(steps, rows)) == pytest.approx(0.15)
    assert depth_difference(flat_views(3.0, rows), flat_views(3.0, 1.0 - rows)) is None


@pytest.fixture(scope="module")
def two_cameras():
    return cameras_around(turntable_azimuths(2), Viewpoint(size=64))


@pytest.fixture(scope="module")
def truth(two_cameras):
    return true_views(SENTENCE, two_cameras)


def test_the_truth_is_like_itself(truth, on_the_surface):
    found = compare_views(truth, truth, splats(on_the_surface), SENTENCE)
    assert found["psnr"] == np.inf and found["ssim"] == pytest.approx(1.0)
    assert found["overlap"] == found["sharpness"] == 1.0 and found["tint"] < 0.01
    assert found["chamfer"] == found["depth"] == 0.0
    # Means are over the views, whose errors differ by a factor of ten.
    off = truth.pictures + np.asarray([0.1, 0.01], np.float32)[:, None, None, None]
    near = splats(np.asarray([[0.0, 0.0, -0.74 - 0.06], [0.0, 0.0, -0.74 - 0.09]]))
    apart = compare_views(dataclasses.replace(truth, pictures=off), truth, near, SENTENCE)
    assert apart["psnr"] == pytest.approx(30.0, abs=1e-2)
    alike = [float(ssim(*pair)) for pair in zip(off, truth.pictures, strict=True)]
    assert apart["ssim"] == pytest.approx(np.mean(alike), abs=1e-3) and alike[0] < alike[1] - 0.01
    # The snowman is 1.5 high, so that one of the splats is within 5 % of its size.
    assert apart["specks"] == pytest.approx(0.5)
    # Neutral is where the truth is, however little the object covers.
    faint = compare_views(
        dataclasses.replace(truth, alphas=0.0 * truth.alphas), truth, splats(on_the_surface), SENTENCE
    )
    assert faint["tint"] == found["tint"]


def test_true_depths_are_those_of_the_surface(truth, two_cameras):
    inside = truth.alphas == 1.0
    assert truth.depths.shape == (2, 64, 64) and not truth.depths[truth.alphas == 0.0].any()
    # The snowman is at least half a unit thick, and its center is 3.5 away.
    assert 2.7 < truth.depths[inside].min() < 3.3 and 3.3 < truth.depths[inside].max() < 3.7
    # Where an edge covers a part of a pixel, that part alone has a depth.
    edge = (truth.alphas > 0.3) & (truth.alphas < 0.8)
    assert edge.any() and truth.depths[edge].min() > 2.7
    # The point at a pixel center's depth lies on the surface.
    camera = jax.tree.map(lambda each: each[0], two_cameras)
    rows, columns = np.nonzero(inside[0])
    focal_x, focal_y, center_x, center_y = np.asarray(camera.intrinsics)
    depth = truth.depths[0][rows, columns]
    local = [(columns + 0.5 - center_x) / focal_x * depth, (rows + 0.5 - center_y) / focal_y * depth, depth]
    rotation = np.asarray(camera.world_to_camera)[:3, :3]
    points = np.stack(local, axis=-1) @ rotation + np.asarray(camera_center(camera))
    assert np.median(np.abs(distance_to("snowman", points))) < 3e-3


def test_an_object_and_the_truth_are_looked_at_apart(truth, two_cameras, on_the_surface):
    ours = object_views(splats(on_the_surface), two_cameras)
    assert ours.pictures.shape == truth.pictures.shape and ours.pictures.max() <= 1.0
    shared = (ours.alphas > 0.5) & (truth.alphas == 1.0)
    assert np.median(np.abs(ours.depths - truth.depths)[shared]) < 0.05
    apart = compare_views(ours, truth, splats(on_the_surface), SENTENCE)
    assert apart == measure_likeness(splats(on_the_surface), SENTENCE, two_cameras)
    assert apart["depth"] < 0.04 and 0.5 < apart["ssim"] < 0.95
    # Distances are relative to the object's size.
    size = size_of(truth.points)
    assert apart["depth"] == pytest.approx(depth_difference(ours, truth) / size)
    assert apart["chamfer"] == pytest.approx(chamfer(ours.points, truth.points) / size)


def test_points_are_seen_in_the_middle_of_their_pixels(two_cameras, on_the_surface):
    ball = splats(on_the_surface)
    ball = ball.replace(
        positions=jnp.zeros_like(ball.positions),
        log_scales=jnp.full_like(ball.log_scales, jnp.log(0.2)),
        mask=jnp.arange(len(on_the_surface)) < 1,
    )
    points = object_views(ball, two_cameras).points
    # Around the origin, from both sides; the object is one splat, whose depth is that of its center.
    assert np.ptp(points, axis=0).max() > 0.2
    np.testing.assert_allclose(points.mean(axis=0), 0.0, atol=1e-3)
    # Splats may be brighter than white, but pictures are not.
    assert object_views(ball.replace(sh=ball.sh + 3.0), two_cameras).pictures.max() == 1.0


def test_nothing_is_like_nothing(truth, two_cameras, on_the_surface):
    none = splats(on_the_surface)
    none = none.replace(mask=jnp.zeros_like(none.mask))
    found = compare_views(object_views(none, two_cameras), truth, none, SENTENCE)
    assert found["overlap"] == found["specks"] == 0.0
    assert found["depth"] is None and found["chamfer"] == np.inf
