"""The bundled world: procedural objects, sentences that describe them, and a model trained on them."""

from pathlib import Path

# The bundled models, which are also the names of their presets. The first is for 128-pixel images.
MODELS = ("toybox", "toybox64")


def model_folder(name: str = MODELS[0]) -> Path:
    """Return the folder of a bundled model, one of MODELS, in diffusers' layout."""
    return Path(__file__).parent / "weights" / name
