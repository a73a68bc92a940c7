"""The bundled world: procedural objects, their sentences and images, and a model trained on them."""

from pathlib import Path


def model_folder() -> Path:
    """The folder of the bundled model, in diffusers layout."""
    return Path(__file__).parent / "weights"
