"""Unit quaternions without their largest component, which follows from the other three.

The sign is chosen such that the omitted component is positive, since q and -q are the same rotation. The
others are then between -√½ and √½. Compressed .ply and SOG store them, each in its own number of bits.
"""

import numpy as np

_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])


def split(quaternions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Omit the largest component.

    Args:
        quaternions: (N, 4) of unit length.

    Returns:
        (N,) int64, which component is omitted; and (N, 3) float64, the others in their order.
    """
    exact = quaternions.astype(np.float64)
    largest = np.abs(exact).argmax(axis=1)
    each = np.arange(len(exact))
    exact *= np.where(exact[each, largest] < 0, -1.0, 1.0)[:, None]
    return largest, exact[each[:, None], _OTHERS[largest]]


def join(largest: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Restore the omitted component.

    Args:
        largest: (N,) integers, which component is omitted; those not from 0 to 3 mean no rotation.
        others: (N, 3) the other components in their order.

    Returns:
        (N, 4) float64. Where `others` are longer than a unit vector, the omitted component is 0.
    """
    quaternions = np.zeros((len(others), 4))
    quaternions[:, 0] = 1.0
    for axis, places in enumerate(_OTHERS):
        here = largest == axis
        quaternions[np.ix_(here, places)] = others[here]
        quaternions[here, axis] = np.sqrt(np.maximum(0.0, 1.0 - np.square(others[here]).sum(axis=1)))
    return quaternions
