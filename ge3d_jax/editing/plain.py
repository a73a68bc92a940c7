"""Parse plain-language instructions for individual words of a prompt.

    blue x2, yellow stem until 0.6, mushroom from 0.1 until 0.5
    mushroom, stem, not red

The first form says how much weight words get and during which part of the steps their attention comes from
the source. The second says where an image may change and where it must not.
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
    """Add to `edit` per-word instructions such as "blue x2, stem from 0.1 until 0.6".

    Args:
        text: comma-separated items, each one or more words of the target prompt followed by a factor ("x2"),
            by fractions of the steps ("from 0.1", "until 0.6"), or by both.
        edit: all other attention settings.

    Raises:
        UserError: an item gives no instruction for its words.
    """
    factors: dict[str, float] = {}
    spans: dict[str, Span] = {}
    for item in _items(text, "words"):
        found = _WORD.fullmatch(item)
        assert found is not None  # `words` alone matches anything
        factor, first, last = found["factor"], found["first"], found["last"]
        if factor is None and first is None and last is None:
            raise UserError(
                f"words={item!r} does not say what to do with these words; add a factor or shares of the "
                'steps, e.g. "blue x2" or "stem until 0.6".'
            )
        if factor is not None:
            factors[found["words"]] = float(factor)
        if first is not None or last is not None:
            spans[found["words"]] = (float(first or 0.0), float(last or 1.0))
    return dataclasses.replace(edit, factors=factors, spans=spans)


def read_blend(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Parse words that mark where an image may change and where it must not: "mushroom, stem, not red".

    Raises:
        UserError: no word marks where it may change.
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
        raise UserError(f"blend={text!r} does not say where the picture may change; add words for that.")
    return tuple(may), tuple(must_not)
