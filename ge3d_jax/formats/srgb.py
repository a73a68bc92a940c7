"""The transfer function of sRGB, for formats that store light instead of display values (IEC 61966-2-1)."""

import numpy as np


def to_linear(values: np.ndarray) -> np.ndarray:
    """Decode display values in [0, 1] to linear light, of the same type."""
    values = np.maximum(values, 0)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def from_linear(light: np.ndarray) -> np.ndarray:
    """Encode linear light in [0, 1] as display values, of the same type."""
    light = np.maximum(light, 0)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1.0 / 2.4) - 0.055)
