"""Which token of one prompt stands for which of another, and where the tokens of a word are.

Symbols: L tokens of a padded prompt, with its start and end; M, α, e and g as in `attention_control`; N
steps. Source: Hertz et al., "Prompt-to-Prompt Image Editing with Cross Attention Control", arXiv 2208.01626,
and its public code (seq_aligner.py), whose arrays these equal.
"""

import difflib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.tokenizer import CLIPTokenizer, prompt_ids

# Scores of the alignment of two token sequences; a gap costs nothing.
_MATCH, _MISMATCH, _GAP = 1, -1, 0
# What surrounds a word without belonging to it.
_PUNCTUATION = ".,;:!?\"'()"
# A share of the steps from the first on, or (from, until).
Span = float | tuple[float, float]


def _word_positions(tokenizer: CLIPTokenizer, prompt: str) -> list[tuple[str, list[int]]]:
    """The words of a prompt as spaces divide it, each with the positions of its tokens."""
    words, first = [], 1  # after the start token
    for word in prompt.split():
        count = len(tokenizer.tokenize(word))
        words.append((word, list(range(first, first + count))))
        first += count
    return words


def token_words(tokenizer: CLIPTokenizer, prompt: str, length: int) -> list[tuple[str, list[int]]]:
    """The words of a prompt with the positions of their tokens, as far as the model reads."""
    words = _word_positions(tokenizer, prompt)
    seen = [(word, [place for place in places if place < length - 1]) for word, places in words]
    return [(word, places) for word, places in seen if places]


def _plain(word: str) -> str:
    return word.strip(_PUNCTUATION).lower()


def find_words(tokenizer: CLIPTokenizer, prompt: str, phrase: str, length: int) -> np.ndarray:
    """Where a word or some words in a row are in a prompt, wherever they appear.

    Args:
        tokenizer: the model's.
        prompt: the prompt.
        phrase: the words, without regard to case and punctuation.
        length: L.

    Returns:
        (L,) bool; all false where they are not in the prompt.
    """
    wanted = [_plain(word) for word in phrase.split()]
    words = _word_positions(tokenizer, prompt)
    found = np.zeros(length, bool)
    for first in range(len(words) - len(wanted) + 1 if wanted else 0):
        here = words[first : first + len(wanted)]
        if [_plain(word) for word, _ in here] == wanted:
            for _, positions in here:
                found[[position for position in positions if position < length]] = True
    return found


def replacement(tokenizer: CLIPTokenizer, source: str, target: str, length: int) -> np.ndarray:
    """M where words are replaced one by one, and everything else is the same.

    Changed words map to each other: token to token where they have as many, else each token of the source's
    word gives 1/n of itself to all n of the target's. After the last changed word every token maps to its own
    position, as in the public code, even if the words before differ in length.

    Args:
        tokenizer: the model's.
        source, target: prompts of as many words each.
        length: L.

    Returns:
        (L, L) float32, source tokens in rows.

    Raises:
        UserError: the prompts do not have as many words.
    """
    before, after = _word_positions(tokenizer, source), _word_positions(tokenizer, target)
    if len(before) != len(after):
        raise UserError(
            f"The prompt {source!r} has {len(before)} words and {target!r} has {len(after)}, which cannot "
            "replace each other one by one; use the form that refines instead, or write as many words."
        )
    mapping = np.zeros((length, length), np.float32)
    row = column = 0
    for (old, rows), (new, columns) in zip(before, after, strict=True):
        if old == new:
            continue
        # Up to the next changed word.
        while row < rows[0] and max(row, column) < length:
            mapping[row, column] = 1.0
            row, column = row + 1, column + 1
        # A prompt that is longer than the model reads is cut.
        seen_rows = [place for place in rows if place < length]
        seen_columns = [place for place in columns if place < length]
        if len(rows) == len(columns):
            mapping[seen_rows, seen_columns] = 1.0
        else:
            mapping[np.ix_(seen_rows, seen_columns)] = 1.0 / len(columns)
        row, column = row + len(rows), column + len(columns)
    # The public code stops where either prompt ends: a longer source leaves the last columns empty.
    rest = column + np.arange(max(length - max(row, column), 0))
    mapping[rest, rest] = 1.0
    return mapping


def align(source: Sequence[int], target: Sequence[int]) -> list[int]:
    """Position in `source` of each token of `target`, −1 for tokens that were inserted.

    Needleman–Wunsch: equal tokens score 1, different ones −1, gaps 0; of equal scores an insertion goes
    before a deletion, and that before a pair.
    """
    scores = np.zeros((len(source) + 1, len(target) + 1), int)
    moves = np.full(scores.shape, "pair", object)
    moves[0, :], moves[:, 0] = "insert", "delete"
    for i, old in enumerate(source, start=1):
        for j, new in enumerate(target, start=1):
            options = {
                "insert": scores[i, j - 1] + _GAP,
                "delete": scores[i - 1, j] + _GAP,
                "pair": scores[i - 1, j - 1] + (_MATCH if old == new else _MISMATCH),
            }
            moves[i, j] = max(options, key=options.__getitem__)  # the first of equal ones
            scores[i, j] = options[moves[i, j]]
    i, j = len(source), len(target)
    positions = []
    while j > 0:
        move = moves[i, j]
        i, j = i - (move != "insert"), j - (move != "delete")
        if move != "delete":
            positions.append(i if move == "pair" else -1)
    return positions[::-1]


def refinement(
    tokenizer: CLIPTokenizer, source: str, target: str, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """M and α where words are added or dropped: what both prompts have in common comes from the source.

    Args:
        tokenizer: the model's.
        source, target: prompts.
        length: L.

    Returns:
        M (L, L) float32, source tokens in rows, an empty column for an inserted token; α (L,) float32, 0 for
        those and 1 for all others.
    """
    ids = [tokenizer(prompt, verbose=False)["input_ids"] for prompt in (source, target)]
    positions = np.arange(length)
    aligned = np.array(align(*ids))[:length]
    positions[: len(aligned)] = aligned
    mapping = np.zeros((length, length), np.float32)
    # Aligned tokens beyond the end of a cut prompt have no counterpart either.
    kept = np.flatnonzero((positions >= 0) & (positions < length))
    mapping[positions[kept], kept] = 1.0
    share = np.zeros(length, np.float32)
    share[kept] = 1.0
    return mapping, share


def matching(
    tokenizer: CLIPTokenizer, source: str, target: str, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """M and α as EDICT's code has them: equal stretches of tokens, and different ones of the same length.

    Args:
        tokenizer: the model's.
        source, target: prompts.
        length: L; unlike `refinement`, this also shifts the padding.

    Returns:
        M (L, L) float32, source tokens in rows; α (L,) float32, 1 for tokens with a counterpart.
    """
    ids = [row.tolist() for row in prompt_ids(tokenizer, (source, target), length)]
    mapping = np.zeros((length, length), np.float32)
    for name, first, end, begun, ended in difflib.SequenceMatcher(None, *ids).get_opcodes():
        if name == "equal" or (name == "replace" and end - first == ended - begun):
            mapping[np.arange(first, end), np.arange(begun, ended)] = 1.0
    return mapping, np.max(mapping, axis=0)


def emphasis(tokenizer: CLIPTokenizer, prompt: str, factors: Mapping[str, float], length: int) -> np.ndarray:
    """e, (L,) float32: the factor of each word's tokens, 1 for all others.

    Raises:
        UserError: a word is not in the prompt.
    """
    result = np.ones(length, np.float32)
    for word, factor in factors.items():
        result[_found_words(tokenizer, prompt, word, length)] = factor
    return result


def _found_words(tokenizer: CLIPTokenizer, prompt: str, phrase: str, length: int) -> np.ndarray:
    """`find_words`. Raises UserError where there are none."""
    found = find_words(tokenizer, prompt, phrase, length)
    if not found.any():
        raise UserError(f"The words {phrase!r} are not in the prompt {prompt!r}; name words that are.")
    return found


def _rows(span: Span, count: int) -> slice:
    first, last = span if isinstance(span, tuple) else (0.0, span)
    if not (math.isfinite(first) and math.isfinite(last) and 0 <= first <= last <= 1):
        raise UserError(f"The share of the steps {span} does not lie within 0 and 1; give one that does.")
    return slice(int(first * count), int(last * count))


def cross_gates(
    tokenizer: CLIPTokenizer,
    target: str,
    span: Span,
    spans: Mapping[str, Span],
    *,
    steps: int,
    length: int,
) -> np.ndarray:
    """g of each step: when the attention to each token of the target is edited.

    Args:
        tokenizer: the model's.
        target: the prompt.
        span: shares of N + 1 steps, rounded down.
        spans: other ones for some words.
        steps: N.
        length: L.

    Returns:
        (N + 1, L) float32 of 0 and 1; the last row is for a step that is never made, as in the public code.

    Raises:
        UserError: a share out of range, or a word that is not in the prompt.
    """
    gates = np.zeros((steps + 1, length), np.float32)
    gates[_rows(span, steps + 1)] = 1.0
    for word, own in spans.items():
        places = _found_words(tokenizer, target, word, length)
        gates[:, places] = 0.0
        gates[_rows(own, steps + 1), places] = 1.0
    return gates


def self_gates(span: Span, *, steps: int) -> np.ndarray:
    """(N,) float32, 1 at the steps at which self-attention is the source's: shares of N, rounded down.

    Raises:
        UserError: a share out of range.
    """
    gates = np.zeros(steps, np.float32)
    gates[_rows(span, steps)] = 1.0
    return gates
