"""What to do with single words of a prompt, read from plain language.

    blue x2, yellow stem until 0.6, mushroom from 0.1 until 0.5
    mushroom, stem, not red

The first kind says how strongly words count and in which part of the steps they come from the source, the
second where a picture may change and where it must not.
"""

import dataclasses
import re

from ge3d_jax.core.errors import UserError
from ge3d_jax.editing.control import WordEdit
from ge3d_jax.editing.words import Span

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_WORD = re.compile(
    rf"(?P<words>.+?)(?:\s+x\s*(?P<factor>{_NUMBER}))?"
    rf"(?:\s+from\s+(?P<first>{_NUMBER}))?(?:\s+until\s+(?P<last>{_NUMBER}))?"
)
_NOT = re.compile(r"not\s+(?P<words>.+)", re.IGNORECASE)


def _items(text: str, flag: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise UserError(f"{flag}={text!r} has nothing before or after a comma; write words between commas.")
    return items


def read_words(text: str, edit: WordEdit) -> WordEdit:
    """`edit` with what a text says of single words: "blue x2, stem from 0.1 until 0.6".

    Args:
        text: items between commas, each some words of the target prompt, then a factor, "x2", or shares of
            the steps, "from 0.1" or "until 0.6", or both.
        edit: how attention is edited otherwise.

    Raises:
        UserError: an item that says nothing of its words.
    """
    factors: dict[str, float] = {}
    spans: dict[str, Span] = {}
    for item in _items(text, "words"):
        found = _WORD.fullmatch(item)
        assert found is not None  # the words themselves match anything
        factor, first, last = found["factor"], found["first"], found["last"]
        if factor is None and first is None and last is None:
            raise UserError(
                f"words={item!r} does not say what to do with it; write a factor or shares of the steps, as "
                '"blue x2" or "stem until 0.6".'
            )
        if factor is not None:
            factors[found["words"]] = float(factor)
        if first is not None or last is not None:
            spans[found["words"]] = (float(first or 0.0), float(last or 1.0))
    return dataclasses.replace(edit, factors=factors, spans=spans)


def read_blend(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Words where a picture may change, and where it must not: "mushroom, stem, not red".

    Raises:
        UserError: none of the first kind.
    """
    may: list[str] = []
    must_not: list[str] = []
    for item in _items(text, "blend"):
        found = _NOT.fullmatch(item)
        if found:
            must_not.append(found["words"])
        else:
            may.append(item)
    if not may:
        raise UserError(
            f"blend={text!r} does not say where the picture may change; name words for that, too."
        )
    return tuple(may), tuple(must_not)
