"""The diffusion model of a run: its weights, compute dtype, LoRA files, and textual inversions."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ge3d_jax.core.devices import compute_dtype
from ge3d_jax.diffusion.networks.kernel_order import in_read_order
from ge3d_jax.diffusion.pipeline import StableDiffusion
from ge3d_jax.diffusion.weights.checkpoint import load_model
from ge3d_jax.runs.request import check_adapters, find_model
from ge3d_jax.toybox import MODELS

FilePath = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """A user's choice of model.

    Attributes:
        model: a folder in diffusers layout, a single .safetensors file, a hub id, which is downloaded, or
            the name of a bundled model; None means the first bundled model.
        dtype: compute dtype of the networks: "float32", "bfloat16", or "auto", which is bfloat16 on devices
            that support it well.
        loras: LoRA files to apply to the model, with strengths; strength 1 is as trained.
        textual_inversions: files with embeddings of new words that may be used in the prompt.
    """

    model: FilePath | None = None
    dtype: str = "auto"
    loras: Sequence[tuple[FilePath, float]] = ()
    textual_inversions: Sequence[FilePath] = ()

    @classmethod
    def of(cls, model: "ModelChoice | FilePath | None") -> "ModelChoice":
        """Convert the `model` argument of a function to a choice."""
        return model if isinstance(model, ModelChoice) else cls(model)

    @classmethod
    def described(cls, description: Mapping[str, Any]) -> "ModelChoice":
        """Restore a choice from the output of `describe`; missing entries take their defaults."""
        return cls(
            model=description.get("model"),
            dtype=description.get("dtype", "auto"),
            loras=tuple((file, strength) for file, strength in description.get("loras", ())),
            textual_inversions=tuple(description.get("textual_inversions", ())),
        )

    def check(self) -> Path:
        """Find the model and its files before any long computation.

        Returns:
            The location of the model, for `load`.

        Raises:
            UserError: something does not exist or is of an unsupported type.
        """
        place = find_model(self.model)
        compute_dtype(self.dtype)
        check_adapters([*(file for file, _ in self.loras), *self.textual_inversions])
        return place

    def load(self, place: Path) -> StableDiffusion:
        """Load the model from `place`, as returned by `check`."""
        return load_model(
            place,
            dtype=compute_dtype(self.dtype),
            loras=self.loras,
            textual_inversions=self.textual_inversions,
            arrange=in_read_order,
        )

    def describe(self) -> dict[str, Any]:
        """The description of the model for config.json."""
        return {
            "model": MODELS[0] if self.model is None else str(self.model),
            "dtype": compute_dtype(self.dtype).name,
            "loras": [[str(file), strength] for file, strength in self.loras],
            "textual_inversions": [str(file) for file in self.textual_inversions],
        }
