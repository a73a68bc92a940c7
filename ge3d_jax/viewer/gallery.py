"""A web page that shows many objects, with turntables and facts, and lets the user sort and filter them."""

import html
import importlib.resources
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ge3d_jax.core.files import atomic_path

# Sort keys: name of the value → label of its button.
SORTED_BY = {
    "prompt": "prompt",
    "seed": "seed",
    "seconds": "time",
    "loss": "loss",
    "splats": "splats",
    "iterations": "iterations",
    "status": "status",
}


def _card(one: Mapping[str, Any]) -> str:
    """The HTML of one object."""
    told = {name: "" if one[name] is None else html.escape(str(one[name])) for name in one}
    data = " ".join(f'data-{name}="{told[name]}"' for name in SORTED_BY)
    folder = quote(one["folder"])
    has_picture = one["status"] in ("finished", "diverged")
    picture = (
        f'<a href="{folder}/viewer.html"><img src="{folder}/turntable.gif" loading="lazy" '
        f'alt="{told["prompt"]}, seed {told["seed"]}" width="256" height="256"></a>'
        if has_picture
        else f'<div class="empty">{told["status"]}</div>'
    )
    numbers = [f"seed {told['seed']}"]
    if has_picture:
        numbers += [f"{one['seconds']:.0f} s", f"{one['splats']} splats", f"{one['iterations']} iterations"]
        numbers += [] if one["loss"] is None else [f"loss {one['loss']:.4g}"]
    lines = [f"<b>{told['prompt']}</b>", " · ".join(numbers)]
    lines += [f"<code>{told['settings']}</code>"] if one["settings"] else []
    if one["status"] != "finished":
        lines.append(
            f'<span class="reason">{": ".join(filter(None, (told["status"], told["reason"])))}</span>'
        )
    return f"<figure {data}>{picture}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"


def save_gallery(path: str | os.PathLike[str], objects: Sequence[Mapping[str, Any]]) -> None:
    """Write the page. It opens from disk and loads nothing but the turntables next to it.

    Args:
        path: file to write, in the folder that contains the objects' folders.
        objects: for each object its `prompt`, `seed`, `settings`, `status`, `reason`, `iterations`, `splats`,
            `loss` (or None), `seconds`, and `folder` (the name of its folder).
    """
    page = importlib.resources.files(__package__).joinpath("gallery.html").read_text(encoding="utf-8")
    buttons = "".join(f'<button data-by="{name}">{label}</button>' for name, label in SORTED_BY.items())
    for name, value in (
        ("BUTTONS", buttons),
        # Last: a prompt may contain anything, even the other placeholder.
        ("OBJECTS", "\n".join(map(_card, objects))),
    ):
        page = page.replace("{{" + name + "}}", value)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
