"""Which diffusion model a run uses, what it computes in, and what changes its weights and words."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ge3d_jax.core.devices import compute_dtype
from ge3d_jax.diffusion.pipeline import StableDiffusion
from ge3d_jax.diffusion.weights.checkpoint import load_model
from ge3d_jax.runs.request import check_adapters, find_model
from ge3d_jax.toybox import MODELS

FilePath = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """A model as a user asks for it.

    Attributes:
        model: a folder in diffusers layout, a single .safetensors file, a hub id, which is downloaded, or
            the name of a bundled model; None is the first of those.
        dtype: what the networks compute in: "float32", "bfloat16", or "auto", bfloat16 where the device is
            made for it.
        loras: LoRA files and strengths to change the model by; 1 is as they were trained.
        textual_inversions: files with the embeddings of new words, for use in the prompt.
    """

    model: FilePath | None = None
    dtype: str = "auto"
    loras: Sequence[tuple[FilePath, float]] = ()
    textual_inversions: Sequence[FilePath] = ()

    @classmethod
    def of(cls, model: "ModelChoice | FilePath | None") -> "ModelChoice":
        """The choice that a function's argument `model` stands for."""
        return model if isinstance(model, ModelChoice) else cls(model)

    @classmethod
    def described(cls, description: Mapping[str, Any]) -> "ModelChoice":
        """The choice that `describe` told; what is missing is as by default."""
        return cls(
            model=description.get("model"),
            dtype=description.get("dtype", "auto"),
            loras=tuple((file, strength) for file, strength in description.get("loras", ())),
            textual_inversions=tuple(description.get("textual_inversions", ())),
        )

    def check(self) -> Path:
        """Find the model and its files before any long work.

        Returns:
            where the model is, for `load`.

        Raises:
            UserError: something does not exist, or is of an unsupported kind.
        """
        place = find_model(self.model)
        compute_dtype(self.dtype)
        check_adapters([*(file for file, _ in self.loras), *self.textual_inversions])
        return place

    def load(self, place: Path) -> StableDiffusion:
        """Open the model at `place`, which `check` found."""
        return load_model(
            place,
            dtype=compute_dtype(self.dtype),
            loras=self.loras,
            textual_inversions=self.textual_inversions,
        )

    def describe(self) -> dict[str, Any]:
        """What config.json says of the model."""
        return {
            "model": MODELS[0] if self.model is None else str(self.model),
            "dtype": compute_dtype(self.dtype).name,
            "loras": [[str(file), strength] for file, strength in self.loras],
            "textual_inversions": [str(file) for file in self.textual_inversions],
        }
