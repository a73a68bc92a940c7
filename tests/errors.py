"""Difference between two arrays."""

import numpy as np


def relative_error(value: np.ndarray, expected: np.ndarray, floor: float = 1e-8) -> float:
    """‖value − expected‖₂ / max(‖expected‖₂, floor)."""
    return float(np.linalg.norm(value - expected) / max(np.linalg.norm(expected), floor))
