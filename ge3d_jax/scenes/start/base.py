"""The protocol of starts, which provide a run's initial splats, and the sizes of splats placed at points."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import cKDTree

from ge3d_jax.core.errors import UserError
from ge3d_jax.splatting.gaussians import MAX_SH_DEGREE, Gaussians

# Number of neighbors whose distance sets a splat's size if none is given.
_NEIGHBORS = 3


class Start(Protocol):
    """Settings of a start, and the splats that it provides; a frozen dataclass."""

    # Settings that go with the start, by preset and name within the start.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    # Whether the start is read entirely from a file, whose path is the setting `file`.
    reads_file: ClassVar[bool]
    # Whether its splats are learned already, so that all bands of their color count from the beginning.
    is_learned: ClassVar[bool]

    @property
    def count(self) -> int:
        """Minimum number of splats, as far as the settings determine it."""

    @property
    def sh_degree(self) -> int:
        """Degree of the color's spherical harmonics, as far as the settings determine it."""

    def check(self) -> None:
        """Check, before a run begins, that everything needed is available. Raises UserError."""

    def words_of(self, prompt: str) -> tuple[str, Path] | None:
        """Return the start model's prompt in a run of `prompt`, and its folder; None without a model."""

    def asked_for(self, prompt: str) -> "Start":
        """Return the same start for a prompt, unless it has a prompt of its own."""

    def gaussians(self, key: jax.Array) -> Gaussians:
        """Create the splats, without padding. Raises UserError."""


def check_look(opacity: float, scale: float | None, sh_degree: int) -> None:
    """Validate the settings of the splats' appearance. Raises UserError."""
    if scale is not None and scale <= 0:
        raise UserError(f"The setting start.scale is {scale}; give a number above 0, or null.")
    if not 0 < opacity < 1:
        raise UserError(f"The setting start.opacity is {opacity}; give a number between 0 and 1.")
    if not 0 <= sh_degree <= MAX_SH_DEGREE:
        raise UserError(
            f"The setting start.sh_degree is {sh_degree}; give a number from 0 to {MAX_SH_DEGREE}."
        )


def nearest_neighbor_scales(positions: jax.Array | np.ndarray) -> jax.Array:
    """Return the RMS distance of each position (N, 3) to its three nearest neighbors; (N,), on the host."""
    points = np.asarray(positions)
    if len(points) <= _NEIGHBORS:
        raise UserError(
            f"The start has {len(points)} splats, too few to size them by their neighbors; "
            f"set start.scale or take more than {_NEIGHBORS}."
        )
    distances, _ = cKDTree(points).query(points, k=_NEIGHBORS + 1)
    return jnp.asarray(np.sqrt(np.mean(distances[:, 1:] ** 2, axis=1)), jnp.float32)
