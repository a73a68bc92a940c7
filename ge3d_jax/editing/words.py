"""Align the tokens of two prompts, and find the tokens of a word.

Symbols: L tokens of a padded prompt, including its start and end tokens; M, α, e and g as in
`attention_control`; N steps. Source: Hertz et al., "Prompt-to-Prompt Image Editing with Cross Attention
Control", arXiv 2208.01626, and its public code (seq_aligner.py), whose arrays these equal.
"""

import difflib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.tokenizer import CLIPTokenizer, prompt_ids

# Alignment scores of two token sequences; gaps are free.
_MATCH, _MISMATCH, _GAP = 1, -1, 0
# Punctuation to strip from around a word.
_PUNCTUATION = ".,;:!?\"'()"
# A fraction of the steps, counted from the first, or (from, until).
Span = float | tuple[float, float]


def _word_positions(tokenizer: CLIPTokenizer, prompt: str) -> list[tuple[str, list[int]]]:
    """Split a prompt at spaces into words, each with the positions of its tokens."""
    words, first = [], 1  # after the start token
    for word in prompt.split():
        count = len(tokenizer.tokenize(word))
        words.append((word, list(range(first, first + count))))
        first += count
    return words


def token_words(tokenizer: CLIPTokenizer, prompt: str, length: int) -> list[tuple[str, list[int]]]:
    """Return a prompt's words with the positions of their tokens, up to the model's maximum length."""
    words = _word_positions(tokenizer, prompt)
    seen = [(word, [place for place in places if place < length - 1]) for word, places in words]
    return [(word, places) for word, places in seen if places]


def _plain(word: str) -> str:
    return word.strip(_PUNCTUATION).lower()


def find_words(tokenizer: CLIPTokenizer, prompt: str, phrase: str, length: int) -> np.ndarray:
    """Find every occurrence of a word or phrase in a prompt.

    Args:
        tokenizer: the model's tokenizer.
        prompt: the prompt.
        phrase: the words; case and punctuation are ignored.
        length: L.

    Returns:
        (L,) bool; all false if they are not in the prompt.
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
    """Return M for prompts that differ only in words replaced one by one.

    Changed words map to each other: token to token if both have equally many, otherwise each token of the
    source word gives 1/n of itself to each of the target word's n tokens. After the last changed word, every
    token maps to its own position, as in the public code, even if earlier words differ in length.

    Args:
        tokenizer: the model's tokenizer.
        source, target: prompts with the same number of words.
        length: L.

    Returns:
        (L, L) float32, source tokens in rows.

    Raises:
        UserError: the prompts differ in their number of words.
    """
    before, after = _word_positions(tokenizer, source), _word_positions(tokenizer, target)
    if len(before) != len(after):
        raise UserError(
            f"The prompt {source!r} has {len(before)} words and {target!r} has {len(after)}, so they cannot "
            "be replaced one by one; use the form refine instead, or write equally many words."
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
        # A prompt longer than the model's maximum length is truncated.
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
    """Return, for each token of `target`, its position in `source`, or −1 if it was inserted.

    Needleman–Wunsch: equal tokens score 1, different ones −1, gaps 0; ties prefer an insertion to a deletion,
    and a deletion to a pair.
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
            moves[i, j] = max(options, key=options.__getitem__)  # the first one in a tie
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
    """Return M and α for prompts with words added or dropped: what both share comes from the source.

    Args:
        tokenizer: the model's tokenizer.
        source, target: prompts.
        length: L.

    Returns:
        M (L, L) float32, source tokens in rows, with an empty column for an inserted token; α (L,) float32, 0
        for inserted tokens and 1 for all others.
    """
    ids = [tokenizer(prompt, verbose=False)["input_ids"] for prompt in (source, target)]
    positions = np.arange(length)
    aligned = np.array(align(*ids))[:length]
    positions[: len(aligned)] = aligned
    mapping = np.zeros((length, length), np.float32)
    # Aligned tokens beyond the end of a truncated prompt have no counterpart either.
    kept = np.flatnonzero((positions >= 0) & (positions < length))
    mapping[positions[kept], kept] = 1.0
    share = np.zeros(length, np.float32)
    share[kept] = 1.0
    return mapping, share


def matching(
    tokenizer: CLIPTokenizer, source: str, target: str, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return M and α as in EDICT's code: equal runs of tokens, and different runs of equal length.

    Args:
        tokenizer: the model's tokenizer.
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
    """Return e, (L,) float32: the factor of each given word's tokens, 1 for all others.

    Raises:
        UserError: a word is not in the prompt.
    """
    result = np.ones(length, np.float32)
    for word, factor in factors.items():
        result[_found_words(tokenizer, prompt, word, length)] = factor
    return result


def _found_words(tokenizer: CLIPTokenizer, prompt: str, phrase: str, length: int) -> np.ndarray:
    """Call `find_words`. Raises UserError if the words are not found."""
    found = find_words(tokenizer, prompt, phrase, length)
    if not found.any():
        raise UserError(f"The words {phrase!r} are not in the prompt {prompt!r}; name words that are.")
    return found


def _rows(span: Span, count: int) -> slice:
    first, last = span if isinstance(span, tuple) else (0.0, span)
    if not (math.isfinite(first) and math.isfinite(last) and 0 <= first <= last <= 1):
        raise UserError(f"The share of the steps {span} is not between 0 and 1; give one that is.")
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
    """Return g for each step: when the attention to each token of the target is edited.

    Args:
        tokenizer: the model's tokenizer.
        target: the target prompt.
        span: fractions of N + 1 steps, rounded down.
        spans: different spans for individual words.
        steps: N.
        length: L.

    Returns:
        (N + 1, L) float32 of 0 and 1; the last row is for a step that is never run, as in the public code.

    Raises:
        UserError: a fraction is out of range, or a word is not in the prompt.
    """
    gates = np.zeros((steps + 1, length), np.float32)
    gates[_rows(span, steps + 1)] = 1.0
    for word, own in spans.items():
        places = _found_words(tokenizer, target, word, length)
        gates[:, places] = 0.0
        gates[_rows(own, steps + 1), places] = 1.0
    return gates


def self_gates(span: Span, *, steps: int) -> np.ndarray:
    """Return (N,) float32, 1 at the steps whose self-attention comes from the source (of N, rounded down).

    Raises:
        UserError: a fraction is out of range.
    """
    gates = np.zeros(steps, np.float32)
    gates[_rows(span, steps)] = 1.0
    return gates
