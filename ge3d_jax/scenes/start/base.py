"""What a run of splats can begin with: the protocol, and the sizes of splats at points."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import cKDTree

from ge3d_jax.core.errors import UserError
from ge3d_jax.splatting.gaussians import MAX_SH_DEGREE, Gaussians

# Neighbours whose distance sets a splat's size where none is given.
_NEIGHBORS = 3


class Start(Protocol):
    """Settings of a start, and the splats it gives; a frozen dataclass."""

    # Settings that go with it, by preset and the name within the start.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    # Whether it is all in a file, whose path is the setting `file`.
    reads_file: ClassVar[bool]

    @property
    def count(self) -> int:
        """How many splats it gives at least, as far as the settings tell."""

    @property
    def sh_degree(self) -> int:
        """Degree of their color, as far as the settings tell."""

    def check(self) -> None:
        """Refuse, before a run begins, what is not there. Raises UserError."""

    def words_of(self, prompt: str) -> tuple[str, Path] | None:
        """What a model is asked to make in a run of that prompt, and its folder; None without one."""

    def asked_for(self, prompt: str) -> "Start":
        """The same start for a prompt, where it has none of its own."""

    def gaussians(self, key: jax.Array) -> Gaussians:
        """The splats, without padding. Raises UserError."""


def check_look(opacity: float, sh_degree: int) -> None:
    """Check the settings on how splats look. Raises UserError."""
    if not 0 < opacity < 1:
        raise UserError(f"The setting start.opacity is {opacity}; give a number between 0 and 1.")
    if not 0 <= sh_degree <= MAX_SH_DEGREE:
        raise UserError(f"The setting start.sh_degree is {sh_degree}; give one from 0 to {MAX_SH_DEGREE}.")


def nearest_neighbor_scales(positions: jax.Array | np.ndarray) -> jax.Array:
    """RMS distance of each of (N, 3) positions to its three nearest others; (N,), on the host."""
    points = np.asarray(positions)
    if len(points) <= _NEIGHBORS:
        raise UserError(
            f"The start has {len(points)} splats, too few to size them by their neighbors; "
            f"set start.scale or take more than {_NEIGHBORS}."
        )
    distances, _ = cKDTree(points).query(points, k=_NEIGHBORS + 1)
    return jnp.asarray(np.sqrt(np.mean(distances[:, 1:] ** 2, axis=1)), jnp.float32)
