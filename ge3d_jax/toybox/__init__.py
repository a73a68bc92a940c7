"""The bundled world: procedural objects, their sentences and pictures, and a model trained on them."""

from pathlib import Path


def model_folder() -> Path:
    """Return the folder of the bundled model, in diffusers layout."""
    return Path(__file__).parent / "weights"
