"""Metrics of edited objects with known distances."""

import dataclasses

import numpy as np
import pytest

from ge3d_jax.metrics.likeness import FARTHEST, Views
from ge3d_jax.metrics.object_edits import measure_kept, measure_reached, measure_truth
from ge3d_jax.metrics.pictures import LOUDEST


def views(top=0.0, bottom=0.0, *, wide=4, shift=0.0, count=2):
    """A white picture with a square of two gray halves, and a square surface of edge length 2."""
    pictures, alphas = np.ones((count, 8, 8, 3), np.float32), np.zeros((count, 8, 8), np.float32)
    pictures[:, 2:4, 2 : 2 + wide], pictures[:, 4:6, 2 : 2 + wide] = top, bottom
    alphas[:, 2:6, 2 : 2 + wide] = 1.0
    corners = np.array([[0, 0, 0], [2, 0, 0], [0, 2, 0], [2, 2, 0]], float)
    return Views(pictures, alphas, alphas, corners + [0, 0, shift])


def test_the_shape_is_measured_against_the_source():
    assert measure_kept(views(), views()) == {"outline": 1.0, "moved": 0.0}
    kept = measure_kept(views(wide=3, shift=0.5), views())
    assert kept == {"outline": pytest.approx(12 / 16), "moved": pytest.approx(0.5 / 2)}
    # Distances are relative to the source's size.
    larger = dataclasses.replace(views(shift=0.5), points=2 * views().points)
    assert measure_kept(views(), larger)["moved"] == pytest.approx(measure_kept(larger, views())["moved"] / 2)


def test_an_object_that_is_gone_is_a_size_away():
    gone = dataclasses.replace(views(), points=np.zeros((0, 3)), alphas=0 * views().alphas)
    assert measure_kept(gone, views()) == {"outline": 0.0, "moved": FARTHEST}
    assert measure_truth(gone, views())["chamfer"] == FARTHEST == 1.0
    assert measure_kept(views(shift=9.0), views())["moved"] == FARTHEST


def test_the_edit_is_where_the_truths_differ():
    true_source, true_target = views(top=0.2, bottom=0.6), views(top=0.8, bottom=0.6)
    source = views(top=0.3, bottom=0.5)

    def reached(edited):
        return measure_reached(edited, source, true_target, true_source)

    assert reached(source) == {"rest_psnr": LOUDEST, "reached": 0.0, "way_left": pytest.approx(1.0)}
    # 0.1 of a distance of 0.5 remains, and the rest is off by 0.1.
    almost = reached(views(top=0.7, bottom=0.6))
    assert almost == {
        "rest_psnr": pytest.approx(20.0, abs=1e-3),
        "reached": 1.0,
        "way_left": pytest.approx(0.2, abs=1e-4),
    }
    # Slightly closer to the source than to the target, and vice versa.
    assert reached(views(top=0.49))["reached"] == 0.0
    assert reached(views(top=0.51))["reached"] == 1.0
    # Halfway is not closer.
    dark, light = views(top=0.25), views(top=0.75)
    assert measure_reached(views(top=0.5), dark, light, dark)["reached"] == 0.0
    # Pixels outside of either outline, or half covered, do not count as the rest.
    outside = views(top=0.8, bottom=0.5)
    outside.pictures[:, 0] = 0.0
    assert reached(outside)["rest_psnr"] == LOUDEST
    true_target.alphas[:, 0, :4], true_source.alphas[:, 0, 4:] = 1.0, 1.0
    true_target.alphas[:, 0, 4:], true_source.alphas[:, 0, :4] = 0.5, 0.5
    assert reached(outside)["rest_psnr"] == LOUDEST


def test_views_in_which_nothing_differs_do_not_count():
    true_source, true_target = views(top=0.2), views(top=0.8)
    true_target.pictures[1] = true_source.pictures[1]
    edited = views(top=0.8)
    found = measure_reached(edited, views(top=0.2), true_target, true_source)
    assert found["reached"] == 1.0 and found["way_left"] == 0.0


def test_without_a_rest_or_a_way_there_is_no_number():
    true_source, true_target = views(top=0.2, bottom=0.2), views(top=0.8, bottom=0.8)
    found = measure_reached(true_source, true_target, true_target, true_source)
    assert found == {"rest_psnr": None, "reached": 0.0, "way_left": None}


def test_truths_that_differ_by_hardly_anything_are_the_same():
    true_source, true_target = views(top=0.2, bottom=0.6), views(top=0.8, bottom=0.6 + 0.019)
    edited = views(top=0.8, bottom=0.5)
    assert measure_reached(edited, true_source, true_target, true_source)["rest_psnr"] == pytest.approx(
        20.0, abs=1e-3
    )
    true_target.pictures[:, 4:6, 2:6] = 0.6 + 0.021
    assert measure_reached(edited, true_source, true_target, true_source)["rest_psnr"] is None


def test_differences_of_one_channel_count():
    true_source, true_target = views(), views()
    # The smaller one is below the threshold when averaged over the channels.
    for blue in (0.5, 0.05):
        true_target.pictures[:, 2:4, 2:6, 2] = blue
        assert measure_reached(true_target, true_source, true_target, true_source)["way_left"] == 0.0


def test_the_distance_to_the_truth():
    assert measure_truth(views(), views()) == {"psnr": LOUDEST, "overlap": 1.0, "chamfer": 0.0}
    assert measure_truth(views(top=1e-6), views())["psnr"] == LOUDEST
    off = views(shift=1.0, wide=2)
    off.pictures[0], off.pictures[1] = views().pictures[0] + 0.1, views().pictures[1] + 0.01
    found = measure_truth(off, views())
    assert found == {
        "psnr": pytest.approx(30.0, abs=1e-3),
        "overlap": pytest.approx(0.5),
        "chamfer": pytest.approx(0.5),
    }
