"""Plots: positions and colors of lines, and the error without matplotlib."""

import sys

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.viewer.plot import Line, Panel, check_plotting, draw_plot

BLUE, ORANGE = (31, 119, 180), (255, 127, 14)
# Height of the legend above the panels, pixels.
LEGEND = 42


def pixels(image, color):
    """Rows and columns of pixels close to a color, because edges are antialiased."""
    return np.nonzero(np.all(np.abs(image.astype(int) - color) < 60, axis=-1))


def test_a_label_has_one_color_in_all_panels():
    first, second = Line("first", [0, 1], [0.0, 0.0]), Line("second", [0, 1], [1.0, 1.0])
    image = draw_plot([Panel("a", "x", "y", [first, second]), Panel("b", "x", "y", [second])])
    assert image.dtype == np.uint8 and image.shape[2] == 3
    middle = image.shape[1] // 2
    assert image.shape[1] > 1.9 * image.shape[0]
    below = slice(LEGEND, None)
    rows, columns = pixels(image[below], BLUE)
    assert len(columns) and columns.max() < middle
    orange_rows, orange_columns = pixels(image[below], ORANGE)
    assert orange_columns.min() < middle < orange_columns.max()
    # Larger values are higher up.
    assert orange_rows[orange_columns < middle].max() < rows.min()
    # The legend above shows both.
    legend = image[:LEGEND]
    assert len(pixels(legend, BLUE)[0]) and len(pixels(legend, ORANGE)[0])
    np.testing.assert_array_equal(
        image, draw_plot([Panel("a", "x", "y", [first, second]), Panel("b", "x", "y", [second])])
    )


def test_errors_are_a_band_on_both_sides():
    around = [Line("limits", [0, 1], [-3.0, -3.0]), Line("more limits", [0, 1], [3.0, 3.0])]
    narrow = draw_plot([Panel("", "", "", [*around, Line("seen", [0, 1], [0.0, 0.0])])])
    wide = draw_plot([Panel("", "", "", [*around, Line("seen", [0, 1], [0.0, 0.0], [1.0, 1.0])])])
    changed = np.nonzero((narrow != wide).any(axis=(1, 2)))[0]
    lines = [np.median(pixels(narrow[LEGEND:], color)[0]) + LEGEND for color in (BLUE, ORANGE)]
    unit = (lines[0] - lines[1]) / 6
    assert np.ptp(changed) == pytest.approx(2 * unit, abs=3)
    assert changed.mean() == pytest.approx(np.mean(lines), abs=3)


def test_panels_stand_in_rows_and_may_have_a_level():
    line = Line("one", [0, 5], [1.0, 2.0], dashed=True)
    beside, below = (
        draw_plot([Panel("", "", "", [line])] * 3),
        draw_plot([Panel("", "", "", [line])] * 3, columns=2),
    )
    assert below.shape[0] > 1.7 * beside.shape[0] and below.shape[1] < 0.7 * beside.shape[1]
    # The empty cell is blank, and there is a panel next to it.
    height, width = (int(0.6 * edge) for edge in below.shape[:2])
    assert (below[height:, width:] == 255).all() and (below[height:, :-width] < 255).any()
    plain, marked = (draw_plot([Panel("", "", "", [line], level)]) for level in (None, 1.5))
    assert len(np.nonzero((plain != marked).any(axis=(1, 2)))[0]) < 12
    solid = draw_plot([Panel("", "", "", [Line("one", [0, 5], [1.0, 2.0])])])
    assert len(pixels(solid[LEGEND:], BLUE)[0]) > 1.2 * len(pixels(plain[LEGEND:], BLUE)[0])


def test_more_than_ten_labels_have_colors_from_a_longer_list():
    cyan = (23, 190, 207)

    def drawn(count):
        return draw_plot(
            [Panel("", "", "", [Line(str(index), [0, 1], [index, index]) for index in range(count)])]
        )

    # The tenth color of the short palette appears later in the long one.
    assert len(pixels(drawn(10), cyan)[0]) and not len(pixels(drawn(11), cyan)[0])


def test_a_legend_of_many_long_labels_stands_within_the_picture():
    lines = [Line(f"a rather long label, number {index}", [0, 1], [index, index]) for index in range(8)]
    image = draw_plot([Panel("a", "x", "y", lines), Panel("b", "x", "y", lines)])
    # There is nothing to the left and right of the legend's frame.
    assert (image[:LEGEND, :3] == 255).all() and (image[:LEGEND, -3:] == 255).all()


def test_without_matplotlib_it_is_said_how_to_get_it(monkeypatch):
    check_plotting()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="A plot needs the package matplotlib; .*requirements-figures.txt"):
        check_plotting()
