"""Flags that choose the diffusion model, shared by all scripts; adopt them as the script's own key flags."""

from typing import TYPE_CHECKING, Any

from absl import flags

if TYPE_CHECKING:
    from ge3d_jax.runs.model_choice import ModelChoice

_MODEL = flags.DEFINE_string(
    "model", None, "Another model: a folder in diffusers layout, a .safetensors file, or a hub id."
)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["auto", "float32", "bfloat16"],
    "auto, the default: bfloat16 on a GPU, float32 on a CPU.",
)
_LORA = flags.DEFINE_multi_string("lora", [], "A LoRA file to add to the model; may be repeated.")
_LORA_STRENGTH = flags.DEFINE_multi_float(
    "lora_strength", [], "1, the default, is as it was trained; one for all LoRA files, or one for each."
)
_TEXTUAL_INVERSION = flags.DEFINE_multi_string(
    "textual_inversion", [], "A file with the embedding of a new word for the prompt; may be repeated."
)


def given() -> dict[str, Any]:
    """The flags' values, keyed by the field names of `ModelChoice`; None for a flag that was not given."""
    # Imported lazily: JAX takes a second to load, and a mistyped flag should fail immediately.
    from ge3d_jax.runs.request import pair_loras

    return {
        "model": _MODEL.value,
        "dtype": _DTYPE.value,
        "loras": pair_loras(_LORA.value, _LORA_STRENGTH.value) or None,
        "textual_inversions": _TEXTUAL_INVERSION.value or None,
    }


def model_choice() -> "ModelChoice":
    """The model selected by the flags."""
    from ge3d_jax.runs.model_choice import ModelChoice

    return ModelChoice(**{name: value for name, value in given().items() if value is not None})
