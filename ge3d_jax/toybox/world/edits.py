"""Edits of Toybox images: what an image shows, what it should show, and exact renderings of both.

Each kind of edit draws pairs of sentences. To add a kind, write a function and add one line to `EDITS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ge3d_jax.toybox.world.captions import Sentence, caption
from ge3d_jax.toybox.world.objects import COLORS, KINDS, Rgb
from ge3d_jax.toybox.world.render import render_sentence, toybox_camera

# Cameras: the middle of the world's height range, and not so far around that the front is out of sight.
_POLAR_DEGREES = 70.0
_MOST_DEGREES = 60.0
_WHITE: Rgb = (1.0, 1.0, 1.0)


class Drawn(NamedTuple):
    """The random draws that a kind of edit chooses from.

    Attributes:
        kinds: two different kinds, the first of which has a front.
        colors: four different colors, none of them the default for a part of these kinds.
    """

    kinds: tuple[str, str]
    colors: tuple[str, str, str, str]


Pair = tuple[Sentence, Sentence]


def _color(drawn: Drawn) -> Pair:
    source = Sentence(drawn.kinds[0], drawn.colors[0])
    return source, replace(source, color=drawn.colors[1])


def _part(drawn: Drawn) -> Pair:
    source = Sentence(drawn.kinds[0], drawn.colors[0], drawn.colors[1])
    return source, replace(source, second_color=drawn.colors[2])


def _both_colors(drawn: Drawn) -> Pair:
    first, second, third, fourth = drawn.colors
    return Sentence(drawn.kinds[0], first, second), Sentence(drawn.kinds[0], third, fourth)


def _swap(drawn: Drawn) -> Pair:
    first, second = drawn.colors[:2]
    return Sentence(drawn.kinds[0], first, second), Sentence(drawn.kinds[0], second, first)


def _add(drawn: Drawn) -> Pair:
    source = Sentence(drawn.kinds[0], drawn.colors[0])
    return source, replace(source, second_color=drawn.colors[1])


def _take_away(drawn: Drawn) -> Pair:
    without, with_it = _add(drawn)
    return with_it, without


def _kind(drawn: Drawn) -> Pair:
    source = Sentence(drawn.kinds[0], drawn.colors[0])
    return source, replace(source, kind=drawn.kinds[1])


def _kind_and_color(drawn: Drawn) -> Pair:
    return Sentence(drawn.kinds[0], drawn.colors[0]), Sentence(drawn.kinds[1], drawn.colors[1])


def _view(drawn: Drawn) -> Pair:
    source = Sentence(drawn.kinds[0], drawn.colors[0], view="front")
    return source, replace(source, view="side")


EDITS: Mapping[str, Callable[[Drawn], Pair]] = {
    "color": _color,
    "part": _part,
    "both colors": _both_colors,
    "swap": _swap,
    "add": _add,
    "take away": _take_away,
    "kind": _kind,
    "kind and color": _kind_and_color,
    "view": _view,
    # Another color edit, but in front of a background that no sentence mentions.
    "background": _color,
}
_WITH_BACKGROUND = ("background",)
_AZIMUTH_OF_VIEW = {"front": 0.0, "side": 90.0}


@dataclass(frozen=True)
class Edit:
    """An edit of one image.

    Attributes:
        name: kind of edit, a key of `EDITS`.
        source: what the image shows.
        target: what it should show.
        azimuths: degrees, for the cameras of both; 0 is in front of the object.
        background: RGB in [0, 1] behind both.
    """

    name: str
    source: Sentence
    target: Sentence
    azimuths: tuple[float, float]
    background: Rgb

    @property
    def prompts(self) -> tuple[str, str]:
        """Both sentences, as text."""
        return caption(self.source), caption(self.target)

    def pictures(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Render the image and the ground truth of its edit exactly, (size, size, 3) in [0, 1] each."""
        behind = jnp.asarray(self.background)
        source, target = (
            np.asarray(
                render_sentence(
                    sentence,
                    toybox_camera(np.deg2rad(azimuth), np.deg2rad(_POLAR_DEGREES), size=size),
                    background=behind,
                )
            )
            for sentence, azimuth in zip((self.source, self.target), self.azimuths, strict=True)
        )
        return source, target


def draw_edits(seed: int, per_kind: int) -> list[Edit]:
    """Draw a number of edits of every kind; those of a kind do not depend on how many there are.

    Args:
        seed: seed of sentences, cameras, and backgrounds.
        per_kind: number of edits per kind.
    """
    return [
        _draw(name, np.random.default_rng([seed, index, number]))
        for number in range(per_kind)
        for index, name in enumerate(EDITS)
    ]


def _draw(name: str, random: np.random.Generator) -> Edit:
    with_front = [kind for kind, content in KINDS.items() if content.has_front]
    first = str(random.choice(with_front))
    second = str(random.choice([kind for kind in KINDS if kind != first]))
    usual = {KINDS[kind].part_color for kind in (first, second)}
    unusual = [color for color in COLORS if color not in usual]
    a, b, c, d = (str(color) for color in random.choice(unusual, size=4, replace=False))
    source, target = EDITS[name](Drawn((first, second), (a, b, c, d)))
    azimuth = float(np.round(random.uniform(-_MOST_DEGREES, _MOST_DEGREES), 1))
    before, after = (_AZIMUTH_OF_VIEW.get(sentence.view or "", azimuth) for sentence in (source, target))
    red, green, blue = np.round(random.uniform(size=3), 3).tolist()
    background = (red, green, blue) if name in _WITH_BACKGROUND else _WHITE
    return Edit(name, source, target, (before, after), background)
