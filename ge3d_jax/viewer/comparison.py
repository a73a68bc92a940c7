"""A web page that overlays any two of several images, with a slider between them."""

import base64
import html
import importlib.resources
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ge3d_jax.core.files import atomic_path


def save_comparison(
    path: str | os.PathLike[str],
    *,
    title: str,
    pictures: Mapping[str, str | os.PathLike[str]],
    first_right: str,
    rows: Sequence[tuple[str, str]],
) -> None:
    """Write the page: a single file that loads nothing else.

    Args:
        path: file to write.
        title: what the images show.
        pictures: label → PNG file; the first image starts on the left.
        first_right: label of the image that starts on the right.
        rows: (name, value) pairs for the table below the images.
    """

    def option(label: str, file: str | os.PathLike[str]) -> str:
        data = base64.b64encode(Path(file).read_bytes()).decode("ascii")
        return f'<option value="data:image/png;base64,{data}">{html.escape(label)}</option>'

    page = importlib.resources.files(__package__).joinpath("comparison.html").read_text(encoding="utf-8")
    told = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    for name, value in (
        ("FIRST_RIGHT", str(list(pictures).index(first_right))),
        ("OPTIONS", "".join(option(label, file) for label, file in pictures.items())),
        ("ROWS", "".join(told)),
        # Last: a prompt may contain anything, even another placeholder.
        ("TITLE", html.escape(title)),
    ):
        page = page.replace("{{" + name + "}}", value)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
