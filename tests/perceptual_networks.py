"""Random weights for Inception and LPIPS, and pictures, that tests and the reference share."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.reference_models import random_array, random_tensor

GOLDEN_FILE = Path(__file__).parent / "golden" / "perceptual.npz"


def inception_tensor(name, shape):
    """A tensor of the published file of Inception; every unit keeps its values near one."""
    if name.endswith("running_var"):
        return 0.5 + 0.2 * np.abs(random_array(name, shape))
    return random_tensor(name, shape)


def save_inception(file, shapes):
    """Write the tensors to a safetensors file; `shapes` gives the file's shapes by name."""
    tensors = {name: inception_tensor(name, shape) for name, shape in shapes.items()}
    # PyTorch counts the batches of training; the network has no use for that.
    save_file({**tensors, "Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros((), np.int64)}, file)
    return file


def lpips_tensor(module, kind, shape):
    """A parameter of LPIPS in Flax's axes; weightings are never negative."""
    values = random_array(f"{module}.{kind}", shape)
    if module.startswith("NetLinLayer"):
        return np.abs(values)
    return values / np.float32(np.sqrt(np.prod(shape[:-1]) / 2.0)) if kind == "kernel" else 0.1 * values


def inception_pictures():
    """(2, 79, 91, 3) in [−1, 1]: wider than high, so that swapped axes show."""
    return np.random.default_rng(0).uniform(-1.0, 1.0, (2, 79, 91, 3)).astype(np.float32)


def lpips_pictures():
    """Three pairs (3, 32, 40, 3) in [0, 1]: unrelated, slightly different, and brighter."""
    random = np.random.default_rng(1)
    first, noise = random.random((2, 3, 32, 40, 3)).astype(np.float32)
    second = np.stack([noise[0], first[1] + 0.1 * (noise[1] - 0.5), 0.5 * first[2] + 0.5])
    return first, np.clip(second, 0.0, 1.0)
