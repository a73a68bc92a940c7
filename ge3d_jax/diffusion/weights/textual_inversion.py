"""Textual inversion: new words whose embeddings were learned from images.

A file holds n vectors, as wide as the text encoder, for a single word, in diffusers' format (`<word>`:
vectors) or that of the AUTOMATIC1111 web UI (`emb_params`: vectors, where the word is the file's name). In a
prompt, the word becomes n tokens that are appended to the vocabulary.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, normalizers

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.tokenizer import CLIPTokenizer
from ge3d_jax.diffusion.weights.hub import refuse_pickled
from ge3d_jax.diffusion.weights.parameters import Edit, some_names
from ge3d_jax.diffusion.weights.tensor_files import open_tensors

# The tensor's name in files from the web UI, its converters, and others, whose word is the file's name.
_WEB_UI_NAMES = ("emb_params", "string_to_param.*", "clip_l")
# Tensors for the other text encoders of newer models.
_OTHER_MODELS = {"clip_g": "SDXL", "t5xxl": "Stable Diffusion 3 or FLUX"}
_LONGEST_WORD = 200
# The tokens are characters from Unicode's private use area, which prompts do not contain and have no case.
_FIRST_TOKEN = 0xE000
_LAST_TOKEN = 0xF8FF


def read_embedding(file: str | os.PathLike[str], width: int) -> tuple[str, np.ndarray]:
    """Read a textual-inversion file.

    Args:
        file: a .safetensors file.
        width: channels of the text encoder.

    Returns:
        The word, and its vectors (n, width) float32.

    Raises:
        UserError: the file cannot be read, has another layout, or is for a text encoder of another width.
    """
    file = Path(file)
    refuse_pickled(file)
    tensors = open_tensors(file)
    if len(tensors) != 1:
        kind = next((kind for name, kind in _OTHER_MODELS.items() if name in tensors), None)
        made_for = f" and is for {kind}" if kind else ""
        raise UserError(
            f"The textual inversion {file} holds {len(tensors)} tensors ({some_names(tensors)}){made_for}; "
            f"use one for Stable Diffusion 1.x or 2.x, which holds one."
        )
    [(name, tensor)] = tensors.items()
    word = file.stem if name in _WEB_UI_NAMES else name
    if tensor.shape[-1:] != (width,) or len(tensor.shape) > 2:
        raise UserError(
            f"The textual inversion {file} has vectors of shape {tensor.shape}, but this model's text "
            f"encoder takes {width} numbers each; use one that was made for this model."
        )
    if not word.strip() or len(word) > _LONGEST_WORD:
        raise UserError(f"The textual inversion {file} names no word; save it again with a name.")
    vectors = tensor.read().astype(np.float32).reshape(-1, width)
    if not len(vectors) or not np.isfinite(vectors).all():
        raise UserError(
            f"The textual inversion {file} holds no vectors of finite numbers; copy or download it again."
        )
    return word, vectors


def _pattern(word: str) -> Regex:
    """Return a pattern that matches a word in any case, but not inside another word."""
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", word) else ""
    return Regex(f"(?i){before}{re.escape(word)}{after}")


def add_words(
    tokenizer: CLIPTokenizer, files: Sequence[str | os.PathLike[str]], width: int, vocabulary: int
) -> tuple[Edit, int]:
    """Add the words of textual-inversion files to a tokenizer.

    Args:
        tokenizer: the tokenizer, modified in place.
        files: files with one word each.
        width: D, channels of the text encoder.
        vocabulary: V, rows of the text encoder's embedding table.

    Returns:
        The edit of that table, (V, D) → (V', D), and V'.

    Raises:
        UserError: see `read_embedding`; or two files have the same word.
    """
    words = dict[str, np.ndarray]()
    for file in files:
        word, vectors = read_embedding(file, width)
        if word.lower() in words:
            raise UserError(f"Two textual inversions have the word {word!r}; rename one or leave it out.")
        words[word.lower()] = vectors
    count = sum(len(vectors) for vectors in words.values())
    if count > _LAST_TOKEN - _FIRST_TOKEN:
        raise UserError(
            f"The textual inversions have {count} vectors in total, which is too many; leave some out."
        )
    replacements, rows, first = [], [], len(tokenizer)
    tokens: list[str] = []
    # Longer words first, since a word may contain a shorter one.
    for word, vectors in sorted(words.items(), key=lambda item: -len(item[0])):
        new = [chr(_FIRST_TOKEN + len(tokens) + index) for index in range(len(vectors))]
        replacements.append(normalizers.Replace(_pattern(word), "".join(new)))
        tokens += new
        rows.append(vectors)
    backend = tokenizer.backend_tokenizer
    # Before the added tokens, which are matched in the normalizer's output.
    backend.normalizer = normalizers.Sequence([*replacements, backend.normalizer])
    tokenizer.add_tokens([AddedToken(token, normalized=True) for token in tokens])
    table = np.concatenate(rows)

    def append(embeddings: np.ndarray) -> np.ndarray:
        grown = np.zeros((max(vocabulary, first + len(table)), width), np.float32)
        grown[:vocabulary] = embeddings
        grown[first : first + len(table)] = table
        return grown

    return append, max(vocabulary, first + len(table))


def has_learned_words(tokenizer: CLIPTokenizer) -> bool:
    """Whether `add_words` has changed this tokenizer."""
    return chr(_FIRST_TOKEN) in tokenizer.get_added_vocab()
