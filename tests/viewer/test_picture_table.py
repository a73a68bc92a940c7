"""Tables of pictures: positions and sizes."""

import numpy as np
import pytest

from ge3d_jax.viewer.picture_table import fitting_edge, picture_table


def plain(color):
    return np.full((128, 128, 3), color, np.uint8)


def test_pictures_stand_in_their_row_and_group():
    red, green, blue = (plain(color) for color in ((250, 0, 0), (0, 250, 0), (0, 0, 250)))
    table = picture_table(
        [[[red, green], [None]], [[blue, None], [green]]], ["one", "two"], ["first", "next"]
    )

    def box(color):
        rows, columns = np.nonzero((table == color).all(axis=-1))
        return rows.min(), rows.max(), columns.min(), columns.max()

    top, bottom, left, right = box((250, 0, 0))
    assert (bottom - top, right - left) == (127, 127)
    low, _, below_left, _ = box((0, 0, 250))
    assert low > bottom and below_left == left
    greens = (table == (0, 250, 0)).all(axis=-1)
    assert greens.sum() == 2 * 128**2
    beside, under = greens[: bottom + 1], greens[bottom + 1 :]
    assert np.nonzero(beside)[1].min() > right
    assert np.nonzero(under)[1].min() > np.nonzero(beside)[1].max()
    # Headings and names are dark on white, in the middle of their group or row.
    ink = (table < 100).all(axis=-1)
    heading = np.nonzero(ink[:top, left : np.nonzero(beside)[1].max()])[1]
    assert heading.min() + heading.max() == pytest.approx(np.nonzero(beside)[1].max() - left, abs=6)
    for start in (top, low):
        name = np.nonzero(ink[start : start + 128, : left - 2])[0]
        assert name.min() + name.max() == pytest.approx(127, abs=12)


def test_large_tables_have_small_pictures():
    assert fitting_edge(2, 4) == 128 and fitting_edge(1000, 1000) == 40
    edge = fitting_edge(13, 16)
    assert 13 * 16 * edge**2 <= 900_000 < 13 * 16 * (edge + 1) ** 2
    red = plain((250, 0, 0))
    table = picture_table([[[red] * 9, [red] * 7]] * 13, [""] * 13, ["first", "next"])
    assert (table == (250, 0, 0)).all(axis=-1).sum() == 13 * 16 * edge**2


def test_long_headings_are_wrapped():
    short, long = (picture_table([[[plain(0)]]], ["x"], [heading]) for heading in ("a cat", "a cat " * 20))
    assert long.shape[1] == short.shape[1] and long.shape[0] > short.shape[0] + 50
