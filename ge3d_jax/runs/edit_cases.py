"""Benchmark cases for image editing, from the Toybox world or from a folder in PIE-Bench's layout.

PIE-Bench (Ju et al., arXiv 2310.01506) has a mapping_file.json with an entry for each image in
annotation_images/: `image_path`, `original_prompt`, `editing_prompt` with brackets around what is new,
`editing_type_id`, `blended_word` (two words or none), and `mask` (runs of the edited region).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.weights.tensor_files import read_json
from ge3d_jax.editing.control import WordEdit
from ge3d_jax.formats.pictures import load_image, read_picture
from ge3d_jax.metrics.edits import mask_from_runs
from ge3d_jax.toybox.world.captions import Sentence
from ge3d_jax.toybox.world.edits import Edit
from ge3d_jax.viewer.sheet import to_uint8

_MAPPING, _PICTURES = "mapping_file.json", "annotation_images"
# Published names of `editing_type_id`.
PIE_KINDS = (
    "random",
    "change object",
    "add object",
    "delete object",
    "change content",
    "change pose",
    "change color",
    "change material",
    "change background",
    "change style",
)
# Attention factor of the new word in the published runs.
_PIE_FACTOR = 2.0
# Ground-truth colors that differ by less than this are equal: half a step of eight bits.
_SAME = 0.5 / 255.0


@dataclass(frozen=True)
class Case:
    """One image to edit.

    Attributes:
        name: name of the case.
        kind: kind of edit.
        prompts: the source prompt and the target prompt.
        picture: the source image, uint8 (H, W, 3).
        kept: (H, W) bool, where the edit should change nothing.
        truth: the true edited image, uint8 (H, W, 3); None if unknown.
        target: what the true edited image shows, if that can be recognized.
        words: how to edit attention.
        blend: words of both prompts that mark where the image may change; empty for everywhere.
    """

    name: str
    kind: str
    prompts: tuple[str, str]
    picture: np.ndarray
    kept: np.ndarray
    truth: np.ndarray | None
    target: Sentence | None
    words: WordEdit
    blend: tuple[str, ...]


def toybox_cases(edits: Sequence[Edit], size: int, words: WordEdit) -> list[Case]:
    """Cases from the Toybox world, with images (size, size, 3)."""
    cases = []
    for index, edit in enumerate(edits):
        picture, truth = edit.pictures(size)
        kept = np.abs(picture - truth).max(axis=-1) < _SAME
        cases.append(
            Case(
                f"{index:03d}",
                edit.name,
                edit.prompts,
                to_uint8(picture),
                kept,
                to_uint8(truth),
                edit.target,
                words,
                (),
            )
        )
    return cases


def pie_cases(folder: Path, size: int, words: WordEdit, *, count: int | None = None) -> list[Case]:
    """Cases from a folder in PIE-Bench's layout.

    As in the published runs, a new word gets twice the attention, and both blended words mark where the image
    may change.

    Args:
        folder: contains the mapping and the images.
        size: edge length of the model's images, pixels; the masks are for images of that size.
        words: how to edit attention otherwise.
        count: number of cases, cycling through the kinds of edit; None for all.

    Raises:
        UserError: a file is missing, an entry is incomplete, or an image has another size.
    """
    file = folder / _MAPPING
    if not file.is_file():
        raise UserError(f"{folder} has no {_MAPPING}; give the folder that PIE-Bench was unpacked to.")
    entries = read_json(file)
    if not entries:
        raise UserError(f"{file} holds no entries; give PIE-Bench's own file.")
    names = list(entries) if count is None else _spread(entries)[:count]
    return [_pie_case(folder, name, entries[name], size, words) for name in names]


def _spread(entries: dict[str, dict[str, object]]) -> list[str]:
    """Order the names so that they cycle through the kinds of edit."""
    place: dict[object, int] = {}
    order = []
    for name, entry in entries.items():
        kind = entry.get("editing_type_id")
        place[kind] = place.get(kind, -1) + 1
        order.append((place[kind], str(kind), name))
    return [name for _, _, name in sorted(order)]


def _pie_case(folder: Path, name: str, entry: dict[str, object], size: int, words: WordEdit) -> Case:
    wanted = ("image_path", "original_prompt", "editing_prompt", "editing_type_id", "blended_word", "mask")
    missing = [key for key in wanted if key not in entry]
    if missing:
        raise UserError(f"The entry {name} of {folder / _MAPPING} lacks {', '.join(missing)}; get it again.")
    file = folder / _PICTURES / str(entry["image_path"])
    height, width = read_picture(file)[0].shape[:2]
    if (height, width) != (size, size):
        raise UserError(
            f"{file} has {width} by {height} pixels, and the model makes {size} by {size}; the masks "
            "fit only pictures of the original size, so give a model of that size."
        )
    number = str(entry["editing_type_id"])
    kind = PIE_KINDS[int(number)] if number.isdigit() and int(number) < len(PIE_KINDS) else number
    source, target = (re.sub(r"[\[\]]", "", str(entry[key])) for key in ("original_prompt", "editing_prompt"))
    blend = tuple(str(entry["blended_word"]).split())
    if len(blend) == 2:
        words = replace(words, factors={blend[1]: _PIE_FACTOR})
    runs = [int(number) for number in entry["mask"]]  # type: ignore[attr-defined]
    edited = mask_from_runs(runs, height, width)
    picture = to_uint8(load_image(file, size=size))
    return Case(name, kind, (source, target), picture, ~edited, None, None, words, blend)
