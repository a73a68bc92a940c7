"""Small vocabularies for CLIP's tokenizer, and reading and writing its folder.

A CLIPTokenizer folder holds `vocab.json` (token → id) and `merges.txt` (pairs of tokens to merge, in order of
priority). Text is lower-cased, split into words by CLIP's pattern, spelled in 256 printable characters that
represent bytes, with `</w>` marking a word's last character, and then merged.
"""

import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Otherwise transformers warns at import that PyTorch is not installed, which is intended here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import numpy as np  # noqa: E402
from transformers import CLIPTokenizer  # noqa: E402  (imported after the variable that it reads)

from ge3d_jax.core.errors import UserError  # noqa: E402
from ge3d_jax.core.files import atomic_path  # noqa: E402

WORD_END = "</w>"
START_TOKEN = "<|startoftext|>"
END_TOKEN = "<|endoftext|>"
# Stable Diffusion 2 pads with this character; it comes first in the byte alphabet, so its id is 0.
PAD_TOKEN = "!"

# Other programs' syntax for weighting words in a prompt and for loading LoRA files.
_WEIGHTS = re.compile(
    r"\([^()]*:\s*-?[0-9.]+\s*\)"  # (red:1.3)
    r"|\(\([^()]*\)\)|\[\[[^][]*\]\]"  # ((red)), [[red]]
    r"|\)-?[0-9]+\.[0-9]+|\w\+\+"  # (red)1.3, red++
    r"|<(?:lora|lyco|hypernet):[^>]*>"
)

# Bytes that are printable in Latin-1; the others are written as characters from 256 up.
_PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))


def byte_alphabet() -> dict[int, str]:
    """Map each of the 256 bytes to the printable character that represents it, in CLIP's vocabulary order."""
    others = [byte for byte in range(256) if byte not in _PRINTABLE]
    letters = {byte: chr(byte) for byte in _PRINTABLE}
    return letters | {byte: chr(256 + index) for index, byte in enumerate(others)}


def _join(parts: list[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Byte-pair-encode one word: repeatedly join all pairs of the lowest rank."""
    while True:
        known = [pair for pair in zip(parts, parts[1:], strict=False) if pair in ranks]
        if not known:
            return parts
        best = min(known, key=ranks.__getitem__)
        joined: list[str] = []
        for part in parts:
            if joined and (joined[-1], part) == best:
                joined[-1] += part
            else:
                joined.append(part)
        parts = joined


def _merges_for(words: Iterable[str]) -> list[tuple[str, str]]:
    """Find merges that join each word to a single token.

    New merges rank after all earlier ones, and an earlier word always has one of its own merges to apply
    first, so words that are already one token stay one token.
    """
    letters = byte_alphabet()
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        spelled = [letters[byte] for byte in word.encode("utf-8")]
        parts = _join([*spelled[:-1], spelled[-1] + WORD_END], ranks)
        while len(parts) > 1:
            ranks[parts[0], parts[1]] = len(ranks)
            parts = _join(parts, ranks)
    return list(ranks)


def _write(folder: Path, name: str, text: str) -> None:
    with atomic_path(folder / name) as path:
        path.write_text(text, encoding="utf-8")


def _write_tokenizer(
    folder: Path,
    vocabulary: Mapping[str, int],
    merges: Iterable[Sequence[str]],
    special_tokens: Mapping[str, str],
    max_length: int,
) -> None:
    config: dict[str, Any] = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": max_length,
        "do_lower_case": True,
        **special_tokens,
    }
    _write(folder, "vocab.json", json.dumps(dict(vocabulary), ensure_ascii=False, indent=0) + "\n")
    _write(folder, "merges.txt", "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    _write(folder, "special_tokens_map.json", json.dumps(dict(special_tokens), indent=2) + "\n")
    _write(folder, "tokenizer_config.json", json.dumps(config, indent=2) + "\n")


def build_tokenizer(words: Iterable[str], folder: str | os.PathLike[str], max_length: int) -> CLIPTokenizer:
    """Write and open a tokenizer that knows each of `words` as one token and spells out all others.

    Args:
        words: lower-case words; order and duplicates do not matter: equal sets give equal files.
        folder: folder to write to.
        max_length: tokens in a padded text, including the start and end tokens.

    Returns:
        The tokenizer.

    Raises:
        UserError: CLIP's pattern splits a word into several pieces, e.g. "light-blue".
    """
    folder = Path(folder)
    ordered = sorted(set(words))
    if "" in ordered:
        raise UserError("The vocabulary holds an empty word; remove it.")
    merges = _merges_for(ordered)
    letters = list(byte_alphabet().values())
    tokens = [*letters, *(letter + WORD_END for letter in letters)]
    tokens += dict.fromkeys(first + second for first, second in merges)
    tokens += [START_TOKEN, END_TOKEN]
    special_tokens = {
        "bos_token": START_TOKEN,
        "eos_token": END_TOKEN,
        "unk_token": END_TOKEN,
        "pad_token": PAD_TOKEN,
    }
    vocabulary = {token: index for index, token in enumerate(tokens)}
    _write_tokenizer(folder, vocabulary, merges, special_tokens, max_length)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    for word in ordered:
        pieces = tokenizer.tokenize(word)
        if len(pieces) != 1:
            raise UserError(
                f"The word {word!r} cannot be one token: CLIP's tokenizer splits it into {len(pieces)}; "
                "give words of lower-case letters only."
            )
    return tokenizer


def save_tokenizer(tokenizer: CLIPTokenizer, folder: str | os.PathLike[str]) -> None:
    """Write `tokenizer` to `folder` in a format that both transformers 4 and 5 read."""
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    vocabulary = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    special_tokens = {name: str(getattr(tokenizer, name)) for name in names}
    _write_tokenizer(Path(folder), vocabulary, pairs, special_tokens, tokenizer.model_max_length)


def prompt_ids(tokenizer: CLIPTokenizer, prompts: Sequence[str], length: int) -> np.ndarray:
    """Return token ids as Stable Diffusion expects them: with start and end tokens, padded, and truncated.

    Args:
        tokenizer: the model's tokenizer.
        prompts: B texts, possibly empty.
        length: L, tokens per row, including the start and end tokens.

    Returns:
        (B, L) int32.

    Warns:
        UserWarning: a prompt has too many tokens (the warning names the words that the model will not see),
            or it weights words with another program's syntax.
    """
    for prompt in prompts:
        weighted = _WEIGHTS.search(prompt)
        if weighted:
            warnings.warn(
                f"The prompt has {weighted[0][:80]!r}, which other programs treat as a weight or a file; "
                "here it is treated as ordinary text.",
                stacklevel=2,
            )
    # verbose=False: transformers would warn about indexing errors, which truncation prevents.
    rows = [tokenizer(prompt, verbose=False)["input_ids"] for prompt in prompts]
    for row in rows:
        if len(row) > length:
            lost = tokenizer.decode(row[length - 1 : -1])
            warnings.warn(
                f"A prompt is longer than the {length} tokens that the model reads, so it will not see the "
                f"end {lost!r}; shorten the prompt.",
                stacklevel=2,
            )
    padded = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True)
    return np.asarray(padded["input_ids"], np.int32).reshape(len(prompts), length)
