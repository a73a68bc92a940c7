"""Evaluation of the bundled model: the recognizer on ground truth, the model's samples, made objects.

All functions return plain numbers, ready for JSON: fractions are in [0, 1], angles in degrees, times in
seconds; the entries of `likeness` are explained in `metrics.likeness`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.metrics.likeness import measure_likeness, sharpness, tint
from ge3d_jax.metrics.nearest_truth import nearest_truth
from ge3d_jax.metrics.pictures import psnr
from ge3d_jax.metrics.recognition import (
    GALLERY_SIZE,
    Gallery,
    confusion_matrix,
    estimate_background,
    recognize,
    recognized_front,
    wrap_angle,
)
from ge3d_jax.splatting.cameras import Camera, camera_center
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.toybox.world.captions import Sentence, caption, parse
from ge3d_jax.toybox.world.objects import COLORS, KINDS
from ge3d_jax.toybox.world.render import FIELD_OF_VIEW, IMAGE_SIZE, RADIUS, random_camera, render_sentence
from ge3d_jax.viewer.turntable import Viewpoint, cameras_around, render_around, turntable_azimuths

WHITE = (1.0, 1.0, 1.0)
# Number of azimuths for judging an object; every second one is a side: front, left, back, right.
VIEWS = 8
_VIEWS_PER_SIDE = VIEWS // 4
_POLAR = np.deg2rad(70.0)
_COLOR_NAMES = tuple(COLORS)
# A larger azimuth error means another side of the object rather than a coarse grid.
_TURNED_DEGREES = 45.0
# Image size for likeness, independent of the size used for generation, so that numbers are comparable.
_LIKENESS_SIZE = 128

# (prompts, key) → images (B, H, W, 3) in [0, 1].
Sampler = Callable[[Sequence[str], jax.Array], np.ndarray]


def _share(flags: Any) -> float:
    return round(float(np.mean(flags)), 4)


def measure_recognizer(gallery: Gallery, *, seed: int = 0, repeats: int = 3) -> dict[str, Any]:
    """Test the recognizer on ground-truth images, on white, from random cameras off the gallery's grid.

    Args:
        gallery: the gallery, whose kinds are shown in every color, `repeats` times each.
        seed: random seed of the cameras.
        repeats: number of cameras per kind and color.

    Returns:
        Fractions of correct kinds, colors, and both; confusion matrices, with a row for each true class; the
        azimuth error, the images mistaken for another side, and the fraction of correct front decisions, all
        over correctly recognized images of kinds with a front.
    """
    kinds = np.repeat(np.arange(len(gallery.kinds)), len(COLORS) * repeats)
    colors = np.tile(np.repeat(np.arange(len(COLORS)), repeats), len(gallery.kinds))
    pictures, azimuths = [], []
    for key, kind, color in zip(
        jax.random.split(jax.random.key(seed), len(kinds)), kinds, colors, strict=True
    ):
        # The recognizer uses no larger images.
        camera = random_camera(key, size=GALLERY_SIZE)
        center = np.asarray(camera_center(camera))
        azimuths.append(np.arctan2(center[1], center[0]))
        sentence = Sentence(gallery.kinds[kind], _COLOR_NAMES[color])
        pictures.append(np.asarray(render_sentence(sentence, camera, background=jnp.asarray(WHITE))))
    named = recognize(gallery, np.stack(pictures), np.asarray(WHITE))
    kind_right, color_right = named.kinds == kinds, named.colors == colors
    has_front = np.asarray([KINDS[kind].has_front for kind in gallery.kinds])[kinds]
    judged = kind_right & color_right & has_front
    off = np.abs(np.rad2deg(wrap_angle(named.azimuths - np.asarray(azimuths))))[judged]
    fronts = recognized_front(named.azimuths) == recognized_front(np.asarray(azimuths))
    turned = np.flatnonzero(judged)[off > _TURNED_DEGREES]
    return {
        "pictures": len(kinds),
        "cameras_per_kind_and_color": repeats,
        "seed": seed,
        "right_kind": _share(kind_right),
        "right_color": _share(color_right),
        "right_kind_and_color": _share(kind_right & color_right),
        "azimuth_error_degrees": {
            "pictures": len(off),
            "median": round(float(np.median(off)), 2),
            "percentile_95": round(float(np.percentile(off, 95)), 2),
            "largest": round(float(off.max()), 2),
        },
        "turned": [
            {
                "prompt": caption(Sentence(gallery.kinds[kinds[index]], _COLOR_NAMES[colors[index]])),
                "azimuth_degrees": round(float(np.rad2deg(azimuths[index]))),
                "named_azimuth_degrees": round(float(np.rad2deg(named.azimuths[index]))),
            }
            for index in turned
        ],
        "right_front_decision": _share(fronts[judged]),
        "kinds": list(gallery.kinds),
        "colors": list(COLORS),
        "kind_confusion": confusion_matrix(kinds, named.kinds, len(gallery.kinds)).tolist(),
        "color_confusion": confusion_matrix(colors, named.colors, len(COLORS)).tolist(),
    }


def measure_model(gallery: Gallery, sample: Sampler, *, seed: int = 0) -> tuple[dict[str, Any], np.ndarray]:
    """Sample every kind of the gallery in every color and recognize the samples.

    A sample may have any background; the gallery is painted over the color at the sample's edge.

    Args:
        gallery: the candidates.
        sample: samples images for prompts.
        seed: random seed of the samples.

    Returns:
        The results, and the images (kinds · colors, H, W, 3), with colors varying fastest.
    """
    rows, pictures = [], []
    for index, kind in enumerate(gallery.kinds):
        prompts = [caption(Sentence(kind, color)) for color in COLORS]
        images = np.asarray(sample(prompts, jax.random.fold_in(jax.random.key(seed), index)))
        behind = estimate_background(images)
        named = recognize(gallery, images, behind)
        truths, outlines = nearest_truth(gallery, named, images, behind)
        pictures.append(images)
        rows += [
            {
                "prompt": prompt,
                "named_kind": gallery.kinds[named.kinds[i]],
                "named_color": _COLOR_NAMES[named.colors[i]],
                "right_kind": bool(named.kinds[i] == index),
                "right_color": bool(named.colors[i] == i),
                "squared_error": round(float(named.errors[i]), 6),
                "likeness": _rounded(
                    {
                        "psnr": float(psnr(images[i], truths[i])),
                        "sharpness": sharpness(images[i], truths[i]),
                        "tint": tint(images[i], truths[i], outlines[i]),
                    }
                ),
            }
            for i, prompt in enumerate(prompts)
        ]
    figures = {
        "pictures": len(rows),
        "seed": seed,
        "right_kind": _share([row["right_kind"] for row in rows]),
        "right_color": _share([row["right_color"] for row in rows]),
        "right_kind_and_color": _share([row["right_kind"] and row["right_color"] for row in rows]),
        "likeness": mean_likeness(rows),
        "samples": rows,
    }
    return figures, np.concatenate(pictures)


_VIEWPOINT = Viewpoint(radius=RADIUS, polar=_POLAR, fov=FIELD_OF_VIEW, size=IMAGE_SIZE)


def object_pictures(gaussians: Gaussians, views: int = VIEWS, size: int = _VIEWPOINT.size) -> np.ndarray:
    """Render an object on white from all around, starting at the front: (V, size, size, 3) in [0, 1]."""
    viewpoint = replace(_VIEWPOINT, size=size)
    frames = render_around(gaussians, turntable_azimuths(views), viewpoint=viewpoint, background=WHITE)
    return frames.astype(np.float32) / 255.0


def true_pictures(prompt: str, views: int = VIEWS, viewpoint: Viewpoint = _VIEWPOINT) -> np.ndarray:
    """Render the ground truth of a sentence, as `object_pictures` does for an object.

    Args:
        prompt: a sentence of the Toybox world.
        views: number of views, spread over a full turn.
        viewpoint: the remaining camera parameters.
    """
    sentence, behind = parse(prompt), jnp.asarray(WHITE)
    around = cameras_around(turntable_azimuths(views), viewpoint)
    cameras = [jax.tree.map(itemgetter(index), around) for index in range(views)]
    return np.stack([render_sentence(sentence, camera, background=behind) for camera in cameras])


def measure_object(gallery: Gallery, prompt: str, pictures: np.ndarray) -> dict[str, Any]:
    """Recognize the views of an object, and find the sides that show a front.

    A side shows a front if the nearest ground truth is a kind with a front, seen from within 45° of +x.
    `one_front` further requires the prompt's kind on the +x side; it is None for a kind without a front.

    Args:
        gallery: the candidates.
        prompt: the prompt of the object.
        pictures: (VIEWS, H, W, 3), from `object_pictures`.

    Returns:
        Fractions of views with the correct kind, color, and both; `one_front`; and every view's result.
    """
    sentence = parse(prompt)
    named = recognize(gallery, pictures, np.asarray(WHITE))
    kinds = [gallery.kinds[kind] for kind in named.kinds]
    colors = [_COLOR_NAMES[color] for color in named.colors]
    shows_front = recognized_front(named.azimuths) & [KINDS[kind].has_front for kind in kinds]
    sides = [bool(shown) for shown in shows_front[::_VIEWS_PER_SIDE]]
    one_front = sides == [True, False, False, False] and kinds[0] == sentence.kind
    right_kind, right_color = (
        np.asarray([name == wanted for name in names])
        for names, wanted in ((kinds, sentence.kind), (colors, sentence.color))
    )
    return {
        "prompt": prompt,
        "right_kind": _share(right_kind),
        "right_color": _share(right_color),
        "right_kind_and_color": _share(right_kind & right_color),
        "one_front": one_front if KINDS[sentence.kind].has_front else None,
        "fronts_at_degrees": [90 * side for side, shown in enumerate(sides) if shown],
        "views": [
            {
                "azimuth_degrees": 360 // VIEWS * view,
                "named_kind": kinds[view],
                "named_color": colors[view],
                "named_azimuth_degrees": round(float(np.rad2deg(named.azimuths[view]))),
                "squared_error": round(float(named.errors[view]), 6),
            }
            for view in range(len(pictures))
        ],
    }


def summarize_objects(objects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average results over objects.

    Args:
        objects: results of `measure_object` with an additional entry "seconds".

    Returns:
        The means; "multi_faced" is the fraction of objects, among kinds with a front, that show a front on
        several sides.
    """
    fronts = [one["one_front"] for one in objects if one["one_front"] is not None]
    faces = [len(one["fronts_at_degrees"]) > 1 for one in objects if one["one_front"] is not None]
    return {
        "objects": len(objects),
        "right_kind": _share([one["right_kind"] for one in objects]),
        "right_color": _share([one["right_color"] for one in objects]),
        "right_kind_and_color": _share([one["right_kind_and_color"] for one in objects]),
        "objects_with_front": len(fronts),
        "one_front": _share(fronts) if fronts else None,
        "multi_faced": _share(faces) if faces else None,
        "mean_seconds": round(float(np.mean([one["seconds"] for one in objects])), 1),
    }


def _rounded(numbers: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 4) for name, value in numbers.items()}


def mean_likeness(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Means of the likeness metrics, each over the rows that have a value."""
    values = {name: [row["likeness"][name] for row in rows] for name in rows[0]["likeness"]}
    known = {name: [value for value in column if value is not None] for name, column in values.items()}
    return _rounded({name: float(np.mean(column)) if column else None for name, column in known.items()})


def likeness_cameras() -> Camera:
    """The cameras for comparing objects with the truth: VIEWS in a full turn, starting at the front."""
    return cameras_around(turntable_azimuths(VIEWS), replace(_VIEWPOINT, size=_LIKENESS_SIZE))


def object_likeness(prompt: str, gaussians: Gaussians) -> dict[str, float | None]:
    """Measure how close an object is to the ground truth of its prompt; see `metrics.likeness`."""
    return _rounded(measure_likeness(gaussians, parse(prompt), likeness_cameras()))
