"""A small CLIP with random weights and OpenCLIP's names, and what OpenCLIP computes with it."""

from pathlib import Path

import numpy as np

from tests.reference_models import random_array, random_tensor

GOLDEN_FILE = Path(__file__).parent / "golden" / "open_clip.npz"
# OpenCLIP's config; the image encoder has one width of those with a head size of their own.
CONFIG = {
    "embed_dim": 12,
    "vision_cfg": {
        "image_size": 16,
        "patch_size": 8,
        "layers": 1,
        "width": 1280,
        "head_width": 80,
        "mlp_ratio": 0.1,
    },
    "text_cfg": {"context_length": 12, "vocab_size": 40, "width": 128, "heads": 2, "layers": 2},
}
# The last token, with the greatest id, is the end token.
IDS = np.array([[38, 1, 7, 39, 0, 0, 0, 0, 0, 0, 0, 0], [38, 5, 2, 9, 11, 39, 0, 0, 0, 0, 0, 0]])
ENDS = np.array([3, 5])
ACTIVATIONS = ("gelu", "quick_gelu")


def tensor(name, shape):
    """A tensor by OpenCLIP's name."""
    if name.endswith(("embedding", "token_embedding.weight", "proj", "text_projection")):
        return 0.3 * random_array(name, shape)
    if name.endswith("bias"):
        return 0.2 * random_array(name, shape)
    return random_tensor(name, shape)


def stored():
    """The golden file: features by activation and kind, and the shapes by name."""
    with np.load(GOLDEN_FILE) as file:
        return dict(file)


def tensors(width=None):
    """All tensors of the model by OpenCLIP's names; `width` replaces both encoders' widths, and multiples."""
    shapes = {name[6:]: tuple(each) for name, each in stored().items() if name.startswith("shape/")}
    if width is not None:
        widths = {factor * wide: factor * width for wide in (128, 1280) for factor in (1, 3)} | {512: width}
        shapes = {
            name: tuple(widths.get(int(length), int(length)) for length in shape)
            for name, shape in shapes.items()
        }
    return {name: np.asarray(tensor(name, shape), np.float32) for name, shape in shapes.items()}


def pictures():
    """(2, 16, 16, 3), as prepared for the model."""
    return np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
