"""The language of the Toybox world: sentences, their parser, and an explanation of unknown words.

    [The (front | side | back | overhead) view of] a|an COLOR KIND [with [a|an] COLOR PART]

e.g. "The front view of a red mushroom with a yellow stem". Case and a final period are ignored.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from ge3d_jax.core.errors import UserError, shown
from ge3d_jax.toybox.world.objects import COLORS, KINDS

OVERHEAD = "overhead"
VIEWS = ("front", "side", "back", OVERHEAD)


@dataclass(frozen=True)
class Sentence:
    """The content of a sentence.

    Attributes:
        kind: name of a kind, a key of KINDS.
        color: name of its color, a key of COLORS.
        second_color: name of the color of its part, if the sentence gives one.
        view: one of VIEWS, if the sentence gives one.
    """

    kind: str
    color: str
    second_color: str | None = None
    view: str | None = None


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption(sentence: Sentence) -> str:
    """Write a sentence out: "a red mushroom with a yellow stem"."""
    text = _with_article(f"{sentence.color} {sentence.kind}")
    if sentence.second_color is not None:
        part = KINDS[sentence.kind].part
        words = f"{sentence.second_color} {part}"
        text += f" with {words if part.endswith('s') else _with_article(words)}"
    if sentence.view is not None:
        text = f"The {sentence.view} view of {text}"
    return text


VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {"the", "view", "of", "a", "an", "with", *VIEWS, *COLORS, *KINDS}.union(
            kind.part for kind in KINDS.values()
        )
    )
)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _knowledge() -> str:
    return (
        f"It knows the objects {', '.join(KINDS)} in the colors {', '.join(COLORS)}, "
        'and sentences like "a red mushroom with a yellow stem"'
    )


def explain_unknown(text: str, *, without: Collection[str] = ()) -> str | None:
    """Return a message with the words that a bundled model does not know and what it knows; None if none.

    Args:
        text: the prompt.
        without: words of the vocabulary that this model was not trained on.
    """
    unknown = sorted({word for word in _words(text) if word not in VOCABULARY or word in without})
    if not unknown:
        return None
    words = ", ".join(f'"{word}"' for word in unknown)
    return f"The bundled model does not know {words} in the prompt {shown(text)}. {_knowledge()}."


def parse(text: str) -> Sentence:
    """Parse a sentence of the grammar; the inverse of `caption`.

    Raises:
        UserError: the text is not such a sentence; the message says what is allowed.
    """
    sentence = _match(_words(text))
    if sentence is None:
        raise UserError(f"The prompt {shown(text)} is not a sentence of the Toybox world. {_knowledge()}.")
    return sentence


def _match(words: list[str]) -> Sentence | None:
    view = None
    if len(words) > 4 and words[0] == "the" and words[1] in VIEWS and words[2:4] == ["view", "of"]:
        view, words = words[1], words[4:]
    if len(words) < 3 or words[0] not in ("a", "an") or words[1] not in COLORS or words[2] not in KINDS:
        return None
    sentence = Sentence(kind=words[2], color=words[1], view=view)
    rest = words[3:]
    if not rest:
        return sentence
    if rest[0] != "with":
        return None
    rest = [word for word in rest[1:] if word not in ("a", "an")]
    if len(rest) != 2 or rest[0] not in COLORS or rest[1] != KINDS[sentence.kind].part:
        return None
    return replace(sentence, second_color=rest[0])
