"""The gallery page of many objects, as text and in a real browser."""

import re
from pathlib import Path

import numpy as np

from ge3d_jax.formats.video import save_gif
from ge3d_jax.viewer.gallery import save_gallery
from tests.viewer.browser import needs_browser, visit

# User actions, each followed by a record of what is visible, after waiting for the pictures.
ACTIONS = """
  const names = () => [...document.querySelectorAll("figure:not([hidden]) b")].map(b => b.textContent);
  const shown = () => names().join(",");
  const notes = [shown()];
  const click = name => { document.querySelector(`button[data-by=${name}]`).click(); notes.push(shown()); };
  click("seconds"); click("seconds"); click("loss"); click("prompt");
  const search = document.querySelector("input");
  const type = text => {
    search.value = text;
    search.dispatchEvent(new Event("input"));
    notes.push(shown());
  };
  type("pig"); type("failed"); type("SCALE=10 cat"); type("");
  const pictures = [...document.images];
  pictures.forEach(picture => picture.loading = "eager");
  // The "load" event waits for the pictures.
  addEventListener("load", () => {
    notes.push(pictures.map(picture => picture.naturalWidth).join(","));
    tell(notes);
  });
"""


def entry(prompt, **changes):
    told = {
        "prompt": prompt,
        "seed": 3,
        "settings": "",
        "folder": prompt.replace(" ", "-"),
        "status": "finished",
        "reason": "",
        "iterations": 250,
        "splats": 1600,
        "loss": 4.5,
        "seconds": 9.0,
    }
    return told | changes


OBJECTS = [
    entry("a red pig", seconds=100.0, loss=2.0),
    entry("a blue cat", seconds=9.5, settings="guidance.scale=10", loss=10.0),
    entry("a duck", status="failed", reason="No space left on device", seconds=0.0, loss=None),
]


def test_a_prompt_is_text_and_nothing_is_fetched(tmp_path):
    save_gallery(tmp_path / "index.html", [entry('</b><script>"x"&'), *OBJECTS])
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "{{" not in page and page.count("<script") == 1 and "&lt;script&gt;&quot;x&quot;&amp;" in page
    assert not re.search(r"https?://|\bfetch\(|\bimport\b|@import|<link", page)
    pictures = re.findall(r'\bsrc="([^"]*)"', page)
    assert {"a-red-pig/turntable.gif", "a-blue-cat/turntable.gif"} <= set(pictures)
    # A failed object has no picture, but a reason.
    assert "a-duck/turntable.gif" not in pictures and "failed: No space left on device" in page


def test_a_card_tells_numbers_settings_and_why_an_object_did_not_finish(tmp_path: Path) -> None:
    diverged = entry(
        "a 50% #1 cup", settings="lr=9", status="diverged", reason="NaN", loss=None, seconds=61.7
    )
    save_gallery(tmp_path / "index.html", [entry("a cup", loss=1.23456), diverged])
    first, second = re.findall(r"<figure.*?</figure>", (tmp_path / "index.html").read_text(encoding="utf-8"))
    assert "<br>seed 3 · 9 s · 1600 splats · 250 iterations · loss 1.235<" in first
    assert "<code>" not in first and "reason" not in first
    assert "<br>seed 3 · 62 s · 1600 splats · 250 iterations<br><code>lr=9</code><br>" in second
    assert '<span class="reason">diverged: NaN</span>' in second
    # Its picture exists; in an address, its folder's characters have no other meaning.
    assert '<a href="a-50%25-%231-cup/viewer.html"><img src="a-50%25-%231-cup/turntable.gif"' in second


@needs_browser
def test_it_is_sorted_by_a_click_and_its_pictures_load(tmp_path):
    for one in OBJECTS[:2]:
        frames = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), np.uint8)
        (tmp_path / one["folder"]).mkdir()
        save_gif(tmp_path / one["folder"] / "turntable.gif", frames, fps=20)
    save_gallery(tmp_path / "index.html", OBJECTS)
    pig, cat, duck = "a red pig", "a blue cat", "a duck"
    assert visit(tmp_path / "index.html", ACTIONS) == [
        ",".join((pig, cat, duck)),
        # Sorted by time, numerically, ascending and descending; the failed object took no time.
        ",".join((duck, cat, pig)),
        ",".join((pig, cat, duck)),
        # Objects without a loss come last.
        ",".join((pig, cat, duck)),
        ",".join((cat, duck, pig)),
        pig,
        duck,
        cat,
        ",".join((cat, duck, pig)),
        "32,32",
    ]
