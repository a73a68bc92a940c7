"""A table of images: one row per name, with columns grouped under headings."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_PAPER = (255, 255, 255)
_INK = (60, 60, 60)
_GAP = 2
_GROUP_GAP = 8
_TEXT_SIZE = 12
# A table with more pixels would exceed a megabyte as a file.
_MOST_PIXELS = 900_000
_LARGEST_EDGE, _SMALLEST_EDGE = 128, 40


def fitting_edge(rows: int, columns: int) -> int:
    """The edge length in pixels of a table's images that keeps the file below a megabyte."""
    edge = math.isqrt(_MOST_PIXELS // (rows * columns))
    return min(_LARGEST_EDGE, max(_SMALLEST_EDGE, edge))


def picture_table(
    pictures: Sequence[Sequence[Sequence[np.ndarray | None]]], rows: Sequence[str], columns: Sequence[str]
) -> np.ndarray:
    """Draw the table.

    Args:
        pictures: uint8 (H, W, 3) images, indexed by row, column group, and position in the group; None leaves
            the cell empty. Every row has the same number of columns in a group.
        rows: name of each row; an empty string for no name.
        columns: heading of each column group.

    Returns:
        The table, uint8 (H', W', 3).
    """
    widths = [max(len(row[index]) for row in pictures) for index in range(len(columns))]
    edge = fitting_edge(len(rows), sum(widths))
    font = ImageFont.load_default(size=_TEXT_SIZE)
    left = max(math.ceil(font.getlength(name)) for name in rows) + 2 * _GROUP_GAP
    places, across = [], left
    for width in widths:
        places.append(across)
        across += width * (edge + _GAP) + _GROUP_GAP
    headings = [
        _wrapped(heading, font, width * (edge + _GAP)) for heading, width in zip(columns, widths, strict=True)
    ]
    line = _TEXT_SIZE + 3
    top = line * max(len(heading) for heading in headings) + _GROUP_GAP
    table = Image.new("RGB", (across, top + len(rows) * (edge + _GAP) + _GROUP_GAP), _PAPER)
    draw = ImageDraw.Draw(table)
    for heading, place, width in zip(headings, places, widths, strict=True):
        for number, words in enumerate(heading):
            middle = place + width * (edge + _GAP) / 2
            draw.text((middle, 4 + number * line), words, fill=_INK, font=font, anchor="ma")
    for index, (name, row) in enumerate(zip(rows, pictures, strict=True)):
        down = top + index * (edge + _GAP)
        draw.text((left - _GROUP_GAP, down + edge / 2), name, fill=_INK, font=font, anchor="rm")
        for place, group in zip(places, row, strict=True):
            for number, picture in enumerate(group):
                if picture is not None:
                    small = Image.fromarray(picture).resize((edge, edge), Image.Resampling.LANCZOS)
                    table.paste(small, (place + number * (edge + _GAP), down))
    return np.asarray(table)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """Break text into lines no wider than `width`, except where a single word is wider."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
