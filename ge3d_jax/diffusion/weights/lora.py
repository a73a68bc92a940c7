"""LoRA files: low-rank changes of linear layers and convolutions, added to the weights as they are read.

A module's weight W becomes W + strength · (alpha / rank) · up · down, with down (rank, in, …) and up
(out, rank). There are three naming schemes: diffusers' and PEFT's (`unet.….to_q.lora_A.weight`, with older
suffixes), kohya's (`lora_unet_down_blocks_0_…_to_q.lora_down.weight`), and kohya's with the UNet's original
names (`lora_unet_input_blocks_1_1_…`).
"""

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.networks.unet import UNetConfig
from ge3d_jax.diffusion.weights.folder import TEXT_PREFIX
from ge3d_jax.diffusion.weights.hub import refuse_pickled
from ge3d_jax.diffusion.weights.parameters import Edit, some_names
from ge3d_jax.diffusion.weights.single_file import original_unet_name
from ge3d_jax.diffusion.weights.tensor_files import StoredTensor, open_tensors, read_json, read_metadata

# The suffixes of a module's name, which tell the factor. PEFT inserts the adapter's name, "default".
_SUFFIXES = re.compile(
    r"(?P<module>.+?)"
    r"(?:\.lora_(?P<peft>[AB])(?:\.default)?\.weight"
    r"|\.lora_(?P<kohya>down|up)\.weight"
    r"|(?:\.lora|\.lora_linear_layer|_lora)\.(?P<old>down|up)\.weight"
    r"|\.(?P<alpha>alpha))"
)
_PEFT_PREFIX = "base_model.model."
# Metadata with ranks and alphas: diffusers' in the header of a file, and PEFT's in a file next to it.
_HEADER_NOTES = "lora_adapter_metadata"
_PEFT_NOTES = "adapter_config.json"


@dataclasses.dataclass
class _Change:
    """The tensors of a file for one module."""

    down: StoredTensor | None = None
    up: StoredTensor | None = None
    alpha: StoredTensor | None = None


@dataclasses.dataclass(frozen=True)
class Targets:
    """The weights that a LoRA may change.

    Attributes:
        unet: the UNet's tensors by diffusers' names.
        text_encoder: the text encoder's tensors by diffusers' names.
        unet_config: needed for the UNet's original names.
    """

    unet: Mapping[str, StoredTensor]
    text_encoder: Mapping[str, StoredTensor]
    unet_config: UNetConfig


# A network, and the name of one of its tensors.
_Place = tuple[str, str]


def _aliases(targets: Targets) -> dict[str, _Place]:
    """All names that files use for the modules of both networks."""
    aliases: dict[str, _Place] = {}
    for part, tensors in (("text_encoder", targets.text_encoder), ("unet", targets.unet)):
        for name, tensor in tensors.items():
            if len(tensor.shape) < 2 or "embedding." in name or not name.endswith(".weight"):
                continue
            module, place = name.removesuffix(".weight"), (part, name)
            if part == "unet":
                kohya = [
                    f"lora_unet_{module}",
                    f"lora_unet_{original_unet_name(module, targets.unet_config)}",
                ]
                dotted = [module, f"unet.{module}"]
            else:
                kohya = [f"lora_te_{TEXT_PREFIX}{module}"]
                dotted = [
                    f"{TEXT_PREFIX}{module}",
                    f"text_encoder.{module}",
                    f"text_encoder.{TEXT_PREFIX}{module}",
                ]
            aliases |= dict.fromkeys(dotted, place)
            aliases |= {name.replace(".", "_"): place for name in kohya}
    return aliases


def _module(key: str) -> str:
    """A module's name without the additions of PEFT and old versions of diffusers."""
    name = key.removeprefix(_PEFT_PREFIX).replace(".processor.", ".")
    return f"{name}.0" if name.endswith(".to_out") else name


def _alpha_from_notes(notes: Mapping[str, Any], module: str, rank: int) -> float:
    """PEFT's alpha of a module, such that the scale is alpha / rank."""
    alpha = notes.get("lora_alpha", rank)
    for pattern, value in (notes.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = value
    return alpha * rank**0.5 if notes.get("use_rslora") else alpha


def _read_notes(file: Path, peft: bool) -> dict[str, dict[str, Any]]:
    """The metadata in the file's header or in PEFT's file next to it, for each network."""
    if peft:
        notes = read_json(file.parent / _PEFT_NOTES)
        return {"unet": notes, "text_encoder": notes}
    try:
        header = json.loads(read_metadata(file).get(_HEADER_NOTES, "{}"))
    except ValueError as error:
        raise UserError(
            f"The metadata {_HEADER_NOTES} of {file} is not JSON ({error}); save the file again."
        ) from error
    return {
        part: {key.removeprefix(f"{part}."): value for key, value in header.items() if key.startswith(part)}
        for part in ("unet", "text_encoder")
    }


def _read_changes(file: Path, aliases: Mapping[str, _Place]) -> tuple[dict[_Place, _Change], bool]:
    """A file's tensors grouped by the weight they change, and whether PEFT wrote them."""
    refuse_pickled(file)
    changes: dict[_Place, _Change] = {}
    unknown, peft = [], False
    for key, tensor in open_tensors(file).items():
        found = _SUFFIXES.fullmatch(key)
        place = aliases.get(_module(found["module"])) if found else None
        if found is None or place is None:
            unknown.append(key)
            continue
        peft = peft or key.startswith(_PEFT_PREFIX)
        change = changes.setdefault(place, _Change())
        if found["alpha"]:
            change.alpha = tensor
        elif (found["peft"] or found["kohya"] or found["old"]) in ("A", "down"):
            change.down = tensor
        else:
            change.up = tensor
    if unknown:
        raise UserError(
            f"The LoRA file {file} has {some_names(unknown)}, which this model does not have; use a LoRA "
            f"(not LoHa, LoKr or DoRA) for this kind of model."
        )
    return changes, peft


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a weight; a 1×1 convolution has the shape of the equivalent linear layer."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def _edit(tensor: StoredTensor, up: StoredTensor, down: StoredTensor, scale: float) -> Edit:
    def add(weight: np.ndarray) -> np.ndarray:
        rank = down.shape[0]
        left = up.read().astype(np.float32).reshape(-1, rank)
        right = down.read().astype(np.float32).reshape(rank, -1)
        return weight + scale * (left @ right).reshape(weight.shape)

    return add


def _one_file(
    file: Path, strength: float, targets: Targets, aliases: Mapping[str, _Place]
) -> Iterator[tuple[str, str, Edit]]:
    """Yield the network, the tensor and the edit for every tensor that a file changes."""
    changes, peft = _read_changes(file, aliases)
    notes = _read_notes(file, peft)
    for (part, name), change in changes.items():
        tensor = getattr(targets, part)[name]
        up, down = change.up, change.down
        if up is None or down is None:
            raise UserError(
                f"The LoRA file {file} has only one of the two factors of {name}; copy or download it again."
            )
        shape = (up.shape[0], *down.shape[1:])
        fits = _matrix_shape(up.shape)[1:] == down.shape[:1] and _matrix_shape(shape) == _matrix_shape(
            tensor.shape
        )
        if not fits:
            raise UserError(
                f"The LoRA file {file} changes {name} of {tensor.shape} by {up.shape} times {down.shape}; "
                f"use a LoRA that was made for this model."
            )
        rank = down.shape[0]
        alpha = (
            change.alpha.read().item()
            if change.alpha is not None
            else _alpha_from_notes(notes[part], name.removesuffix(".weight"), rank)
        )
        yield part, name, _edit(tensor, up, down, strength * alpha / rank)


def lora_edits(
    loras: Iterable[tuple[str | os.PathLike[str], float]], targets: Targets
) -> dict[str, dict[str, list[Edit]]]:
    """The edits that LoRA files make to the weights.

    Args:
        loras: files and strengths; 1 is as trained, 0 has no effect, negative values reverse it.
        targets: the weights of the model.

    Returns:
        For each network, the edits of each tensor, to be applied in order.

    Raises:
        UserError: a file cannot be read or was not made for this kind of model; names what does not match.
    """
    aliases = _aliases(targets)
    edits: dict[str, dict[str, list[Edit]]] = {"unet": {}, "text_encoder": {}}
    for file, strength in loras:
        for part, name, edit in _one_file(Path(file), strength, targets, aliases):
            edits[part].setdefault(name, []).append(edit)
    return edits
