"""LoRA files: low-rank updates of linear layers and convolutions, added to the weights as they are read.

A module's weight W becomes W + strength · (alpha / rank) · up · down, with down (rank, in, …) and up
(out, rank). There are three naming schemes: diffusers' and PEFT's (`unet.….to_q.lora_A.weight`, with older
suffixes), kohya's (`lora_unet_down_blocks_0_…_to_q.lora_down.weight`), and kohya's with the UNet's original
names (`lora_unet_input_blocks_1_1_…`). LyCORIS adds three forms: convolutions with a factor in between
(`lora_mid`, (rank, rank, height, width)), full differences of weights and biases (`diff`, `diff_b`), and full
differences of norms (`w_norm`, `b_norm`).
"""

import dataclasses
import functools
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ge3d_jax.core.errors import UserError, reason, shown
from ge3d_jax.diffusion.networks.unet import UNetConfig
from ge3d_jax.diffusion.weights.folder import TEXT_PREFIX
from ge3d_jax.diffusion.weights.hub import refuse_pickled
from ge3d_jax.diffusion.weights.parameters import Edit, some_names
from ge3d_jax.diffusion.weights.single_file import original_unet_name
from ge3d_jax.diffusion.weights.tensor_files import StoredTensor, open_tensors, read_json, read_metadata

# The suffixes of a module's name, which identify the factor. PEFT inserts the adapter's name, "default".
_SUFFIXES = re.compile(
    r"(?P<module>.+?)"
    r"(?:\.lora_(?P<peft>[AB])(?:\.default)?\.weight"
    r"|\.lora_(?P<kohya>down|up|mid)\.weight"
    r"|(?:\.lora|\.lora_linear_layer|_lora)\.(?P<old>down|up)\.weight"
    r"|\.(?P<whole>diff|diff_b|w_norm|b_norm)"
    r"|\.(?P<alpha>alpha))"
)
# Substrings of tensor names that identify other fine-tuning methods, and models other than 1.x and 2.x.
_OTHER_METHODS = {
    "hada_w": "LoHa",
    "lokr_w": "LoKr",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "oft_": "OFT",
    "on_input": "IA3",
    "ia3_": "IA3",
}
_OTHER_MODELS = {
    "lora_te2_": "SDXL",
    "text_encoder_2.": "SDXL",
    "label_emb": "SDXL",
    "double_blocks": "FLUX",
    "single_blocks": "FLUX",
    "single_transformer_blocks": "FLUX",
    "joint_blocks": "Stable Diffusion 3",
    "lora_transformer_": "Stable Diffusion 3 or FLUX",
    "transformer.transformer_blocks": "Stable Diffusion 3 or FLUX",
}
# Learned words that some trainers put into a LoRA file.
_BUNDLED = "bundle_emb."
# Matching a file's pattern must not take forever: this many repetitions per alternative, none of a group.
_MOST_REPETITIONS = 2
_LONGEST_PATTERN = 2000
_LARGEST_ALPHA = 1e9
_PEFT_PREFIX = "base_model.model."
# Metadata with ranks and alphas: diffusers' in the file's header, and PEFT's in a separate file next to it.
_HEADER_NOTES = "lora_adapter_metadata"
_PEFT_NOTES = "adapter_config.json"


@dataclasses.dataclass
class _Change:
    """A file's tensors for one module."""

    down: StoredTensor | None = None
    up: StoredTensor | None = None
    mid: StoredTensor | None = None
    alpha: StoredTensor | None = None
    weight: StoredTensor | None = None
    bias: StoredTensor | None = None


@dataclasses.dataclass(frozen=True)
class Targets:
    """The weights that a LoRA may change.

    Attributes:
        unet: the UNet's tensors by diffusers' names.
        text_encoder: the text encoder's tensors by diffusers' names.
        unet_config: needed to map the UNet's original names.
    """

    unet: Mapping[str, StoredTensor]
    text_encoder: Mapping[str, StoredTensor]
    unet_config: UNetConfig


# A network, and the name of one of its tensors.
_Place = tuple[str, str]


def _aliases(targets: Targets) -> dict[str, _Place]:
    """Return all names that files use for the modules of both networks."""
    aliases: dict[str, _Place] = {}
    for part, tensors in (("text_encoder", targets.text_encoder), ("unet", targets.unet)):
        for name in tensors:
            if name.startswith("embeddings.") or not name.endswith(".weight"):
                continue
            module, place = name.removesuffix(".weight"), (part, name)
            if part == "unet":
                kohya = [
                    f"lora_unet_{module}",
                    f"lora_unet_{original_unet_name(module, targets.unet_config)}",
                ]
                dotted = [module, f"unet.{module}"]
            else:
                kohya = [f"{prefix}{TEXT_PREFIX}{module}" for prefix in ("lora_te_", "lora_te1_")]
                dotted = [
                    f"{TEXT_PREFIX}{module}",
                    f"text_encoder.{module}",
                    f"text_encoder.{TEXT_PREFIX}{module}",
                ]
            aliases |= dict.fromkeys(dotted, place)
            aliases |= {name.replace(".", "_"): place for name in kohya}
    return aliases


def _module(key: str) -> str:
    """Strip the additions of PEFT and old versions of diffusers from a module's name."""
    name = key.removeprefix(_PEFT_PREFIX).replace(".processor.", ".")
    return f"{name}.0" if name.endswith(".to_out") else name


def _alpha_from_notes(notes: Mapping[str, Any], module: str, rank: int, file: Path) -> float:
    """Return PEFT's alpha of a module, adjusted so that the scale is alpha / rank."""
    alpha = notes.get("lora_alpha")
    patterns = notes.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise UserError(f"The LoRA file {file} has the alpha_pattern {shown(patterns)}; save the file again.")
    # As in PEFT, the first pattern that matches counts.
    matching = (value for pattern, value in patterns.items() if _pattern(pattern, file).fullmatch(module))
    alpha = next(matching, alpha)
    if alpha is None:
        alpha = rank
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < _LARGEST_ALPHA:
        raise UserError(f"The LoRA file {file} has the lora_alpha {shown(alpha)}; save the file again.")
    return alpha * rank**0.5 if notes.get("use_rslora") else alpha


@functools.lru_cache(maxsize=256)
def _pattern(text: str, file: Path) -> re.Pattern[str]:
    """Compile a pattern of module names, which comes from a file and must not take long to match."""
    most = max(len(re.findall(r"[*+?{]", alternative)) for alternative in text.split("|"))
    if len(text) > _LONGEST_PATTERN or most > _MOST_REPETITIONS or re.search(r"\)\s*[*+?{]", text):
        raise UserError(
            f"The LoRA file {file} has the alpha_pattern {shown(text)}, which is too complicated."
        )
    try:
        return re.compile(rf"(.*\.)?({text})")
    except re.error as error:
        raise UserError(
            f"The LoRA file {file} has the alpha_pattern {shown(text)}, which is not a valid pattern "
            f"({reason(error)}); save the file again."
        ) from error


def _read_notes(file: Path, peft: bool) -> dict[str, dict[str, Any]]:
    """Read the metadata for each network, from the file's header or from PEFT's file next to it."""
    if peft:
        notes = read_json(file.parent / _PEFT_NOTES)
        return {"unet": notes, "text_encoder": notes}
    try:
        header = json.loads(read_metadata(file).get(_HEADER_NOTES, "{}"))
        if not isinstance(header, dict):
            raise ValueError("it is not an object")
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"The metadata {_HEADER_NOTES} of {file} is not JSON ({reason(error)}); save the file again."
        ) from error
    return {
        part: {key.removeprefix(f"{part}."): value for key, value in header.items() if key.startswith(part)}
        for part in ("unet", "text_encoder")
    }


def _read_changes(file: Path, aliases: Mapping[str, _Place]) -> tuple[dict[_Place, _Change], bool]:
    """Group a file's tensors by the weight they change; also return whether PEFT wrote the file."""
    refuse_pickled(file)
    changes: dict[_Place, _Change] = {}
    unknown, peft, bundled = [], False, 0
    for key, tensor in open_tensors(file).items():
        if key.startswith(_BUNDLED):
            bundled += 1
            continue
        found = _SUFFIXES.fullmatch(key)
        place = aliases.get(_module(found["module"])) if found else None
        if found is None or place is None:
            unknown.append(key)
            continue
        peft = peft or key.startswith(_PEFT_PREFIX)
        change = changes.setdefault(place, _Change())
        factor = found["peft"] or found["kohya"] or found["old"]
        if found["alpha"]:
            change.alpha = tensor
        elif found["whole"] in ("diff", "w_norm"):
            change.weight = tensor
        elif found["whole"]:
            change.bias = tensor
        elif factor == "mid":
            change.mid = tensor
        elif factor in ("A", "down"):
            change.down = tensor
        else:
            change.up = tensor
    _explain_unknown(file, unknown)
    if bundled:
        warnings.warn(
            f"The LoRA file {file} also holds {bundled} tensors of new words ({_BUNDLED}*); "
            "they are left out.",
            stacklevel=5,
        )
    return changes, peft


def _explain_unknown(file: Path, unknown: Sequence[str]) -> None:
    """Reject tensors that have no counterpart in the model."""
    if not unknown:
        return
    for parts, what in (
        (_OTHER_MODELS, "is for {}"),
        (_OTHER_METHODS, "is not a LoRA but {}, which is not supported"),
    ):
        kind = next((kind for part, kind in parts.items() if any(part in key for key in unknown)), None)
        if kind is not None:
            raise UserError(
                f"The LoRA file {file} {what.format(kind)} (it has {some_names(unknown)}); "
                "use a LoRA for this kind of model."
            )
    raise UserError(
        f"The LoRA file {file} has {some_names(unknown)}, which this model does not have; use a LoRA "
        f"(not LoHa, LoKr or DoRA) for this kind of model."
    )


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a weight; a 1×1 convolution counts as the equivalent linear layer."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def _product(up: np.ndarray, down: np.ndarray, mid: np.ndarray | None) -> np.ndarray:
    """Multiply factors (out, rank, …) and (rank, in, …) into an update of the size of the weight."""
    left, right = up.astype(np.float32), down.astype(np.float32)
    if mid is None:
        rank = right.shape[0]
        return left.reshape(-1, rank) @ right.reshape(rank, -1)
    left, right = left.reshape(left.shape[:2]), right.reshape(right.shape[:2])
    return np.einsum("nmhw,on,mi->oihw", mid.astype(np.float32), left, right)


def _factors_edit(up: StoredTensor, down: StoredTensor, mid: StoredTensor | None, scale: float) -> Edit:
    def add(weight: np.ndarray) -> np.ndarray:
        change = _product(up.read(), down.read(), None if mid is None else mid.read())
        return weight + scale * change.reshape(weight.shape)

    return add


def _whole_edit(difference: StoredTensor, scale: float) -> Edit:
    return lambda weight: weight + scale * difference.read().astype(np.float32).reshape(weight.shape)


def _check_factors(file: Path, name: str, shape: tuple[int, ...], change: _Change) -> None:
    """Check that the factors of an update produce the shape of its weight."""
    up, down, mid = change.up, change.down, change.mid
    if up is None or down is None:
        raise UserError(
            f"The LoRA file {file} has only one of the two factors of {name}; copy or download it again."
        )
    fits = len(up.shape) >= 2 and len(down.shape) >= 2 and down.shape[0] >= 1
    if fits and mid is None:
        product = (up.shape[0], *down.shape[1:])
        fits = _matrix_shape(up.shape)[1:] == down.shape[:1] and _matrix_shape(product) == _matrix_shape(
            shape
        )
    elif fits and mid is not None:
        between = (up.shape[1], down.shape[0])
        small = [axis for factor in (up, down) for axis in factor.shape[2:]]
        fits = len(shape) == 4 and mid.shape == (*between, *shape[2:]) and set(small) <= {1}
        fits = fits and (up.shape[0], down.shape[1]) == shape[:2]
    if not fits:
        raise UserError(
            f"The LoRA file {file} changes {name} of {shape} by {up.shape} times {down.shape}; "
            f"use a LoRA that was made for this model."
        )


def _read_alpha(file: Path, name: str, alpha: StoredTensor) -> float:
    value = alpha.read() if math.prod(alpha.shape) == 1 else None
    if value is None or not abs(float(value.reshape(()))) < _LARGEST_ALPHA:
        raise UserError(
            f"The LoRA file {file} has an alpha of {name} that is not one finite number; download it again."
        )
    return value.item()


def _one_file(
    file: Path, strength: float, targets: Targets, aliases: Mapping[str, _Place]
) -> Iterator[tuple[str, str, Edit]]:
    """Yield the network, the tensor, and the edit for every tensor that a file changes."""
    changes, peft = _read_changes(file, aliases)
    notes = _read_notes(file, peft)
    for (part, name), change in changes.items():
        tensors = getattr(targets, part)
        bias = name.removesuffix("weight") + "bias"
        for target, difference in ((name, change.weight), (bias, change.bias)):
            if difference is None:
                continue
            here = tensors[target].shape if target in tensors else None
            if here is None or _matrix_shape(difference.shape) != _matrix_shape(here):
                raise UserError(
                    f"The LoRA file {file} changes {target} of {here} by {difference.shape}; "
                    "use a LoRA that was made for this model."
                )
            yield part, target, _whole_edit(difference, strength)
        if change.up is None and change.down is None and change.mid is None:
            continue
        _check_factors(file, name, tensors[name].shape, change)
        assert change.up is not None and change.down is not None  # checked above
        rank = change.down.shape[0]
        if change.alpha is not None:
            alpha = _read_alpha(file, name, change.alpha)
        else:
            # Patterns use transformers' own names of modules.
            module = (TEXT_PREFIX if part != "unet" else "") + name.removesuffix(".weight")
            alpha = _alpha_from_notes(notes[part], module, rank, file)
        yield part, name, _factors_edit(change.up, change.down, change.mid, strength * alpha / rank)


def lora_edits(
    loras: Iterable[tuple[str | os.PathLike[str], float]], targets: Targets
) -> dict[str, dict[str, list[Edit]]]:
    """Return the edits that LoRA files make to the weights.

    Args:
        loras: files and strengths; 1 is as trained, 0 has no effect, and negative values reverse the effect.
        targets: the weights of the model.

    Returns:
        For each network, the edits of each tensor, to be applied in order.

    Raises:
        UserError: a file cannot be read or does not fit this kind of model; the message names the mismatch.
    """
    aliases = _aliases(targets)
    edits: dict[str, dict[str, list[Edit]]] = {"unet": {}, "text_encoder": {}}
    for file, strength in loras:
        if not math.isfinite(strength):
            raise UserError(f"The strength of the LoRA file {file} is {strength}; give a finite number.")
        for part, name, edit in _one_file(Path(file), strength, targets, aliases):
            edits[part].setdefault(name, []).append(edit)
    return edits
