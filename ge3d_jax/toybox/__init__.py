"""The bundled world: procedural objects, their sentences and images, and a model trained on them."""

from pathlib import Path

# The bundled models; the presets of their names use them. The first is for pictures of 128 pixels.
MODELS = ("toybox", "toybox64")


def model_folder(name: str = MODELS[0]) -> Path:
    """The folder of a bundled model, one of MODELS, in diffusers layout."""
    return Path(__file__).parent / "weights" / name
