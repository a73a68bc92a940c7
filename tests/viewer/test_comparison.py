"""The page that overlays two images, as text and in a real browser."""

import base64
import re

import numpy as np
import pytest

from ge3d_jax.viewer.comparison import save_comparison
from ge3d_jax.viewer.sheet import save_png
from tests.viewer.browser import needs_browser, visit

# What lies under the pointer left and right of the slider; then the user moves it, and changes an image.
ACTIONS = """
  const [left, right] = document.querySelectorAll("select");
  const slider = document.querySelector("input");
  const under = share => {
    const box = document.querySelector(".pair").getBoundingClientRect();
    const hit = document.elementFromPoint(box.left + share * box.width, box.top + box.height / 2);
    const shown = [...left.options].find(option => option.value === hit.src);
    return `${hit.id} ${shown.textContent}`;
  };
  const move = value => { slider.value = value; slider.dispatchEvent(new Event("input")); };
  const choose = (select, index) => {
    select.selectedIndex = index;
    select.dispatchEvent(new Event("change"));
  };
  addEventListener("load", () => {
    const notes = [];
    const look = () => notes.push(`${under(0.25)}, ${under(0.75)}`);
    look();
    move(10); look();
    move(90); look();
    choose(left, 1); choose(right, 0); move(50); look();
    notes.push([...document.images].map(picture => picture.naturalWidth).join(","));
    tell(notes);
  });
"""


@pytest.fixture
def page(tmp_path):
    """A page of three images that starts with the first on the left and the last on the right."""
    files = {}
    for index, name in enumerate(("source", "inverted", "edited")):
        files[name] = tmp_path / f"{name}.png"
        save_png(files[name], np.full((8, 8, 3), 100 * index, np.uint8))
    save_comparison(
        tmp_path / "page.html",
        title="<b>a cat</b> {{ROWS}}",
        pictures=files,
        first_right="edited",
        rows=[("method", 'a & "b"')],
    )
    return tmp_path / "page.html"


def test_it_holds_all_images_and_fetches_nothing(page):
    text = page.read_text(encoding="utf-8")
    # A prompt stays as it was written.
    assert text.count("&lt;b&gt;a cat&lt;/b&gt; {{ROWS}}") == 2
    assert "<th>method</th><td>a &amp; &quot;b&quot;</td>" in text
    assert not re.search(r"https?://|\bfetch\(|\bimport\b|@import|<link", text)
    # Either side offers every image.
    for name in ("source", "inverted", "edited"):
        data = base64.b64encode(page.with_name(f"{name}.png").read_bytes()).decode("ascii")
        assert text.count(f'<option value="data:image/png;base64,{data}">{name}</option>') == 2


@needs_browser
def test_the_slider_divides_the_two_images_that_are_chosen(page):
    assert visit(page, ACTIONS) == [
        "left source, right edited",
        "right edited, right edited",
        "left source, left source",
        "left inverted, right source",
        "8,8",
    ]
