"""Every setting of a fit, as one tree of frozen dataclasses.

Lengths are in scene radii: half of what the cameras' pictures show of the plane through the origin. So the
same settings serve scenes of any size.
"""

import dataclasses
from typing import Any

from ge3d_jax.core.errors import UserError
from ge3d_jax.training.config import BackgroundConfig, DensityConfig, OptimizerConfig, StartConfig


@dataclasses.dataclass(frozen=True)
class FitLossConfig:
    """(1 − dssim)·mean absolute difference + dssim·(1 − SSIM), as Kerbl et al. 2023."""

    dssim: float = 0.2

    def __post_init__(self) -> None:
        """Check what types cannot say. Raises UserError."""
        if not 0 <= self.dssim <= 1:
            raise UserError(f"The setting loss.dssim is {self.dssim}; give a number from 0 to 1.")


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """All settings of a fit but the pictures and the seed.

    `views` pictures make an iteration. `splat_capacity` bounds the number of splats; their buffer grows
    towards it by itself. `buffer_capacity` is where the intersection buffer of one view starts, it grows too.
    The degree of the colour's spherical harmonics begins at 0 and rises by one every `sh_every` iterations up
    to `start.sh_degree`. `background` lies behind pictures with transparent parts.
    """

    iterations: int = 2000
    views: int = 2
    splat_capacity: int = 8_000
    buffer_capacity: int = 2**15
    sh_every: int = 400
    background: BackgroundConfig = BackgroundConfig(replaced=0.5, random_share=1.0)
    start: StartConfig = StartConfig(count=3000, radius=1.0, opacity=0.1, sh_degree=2)
    optimizer: OptimizerConfig = OptimizerConfig(
        position=(4e-3, 1e-4),
        color=(2e-2, 5e-3),
        opacity=(5e-2, 2e-2),
        scale=(1e-2, 2e-3),
        rotation=(5e-3, 1e-3),
        higher_bands=0.05,
    )
    density: DensityConfig = DensityConfig(
        first=200,
        last=1400,
        every=100,
        gradient_threshold=1e-3,
        clone_scale=0.03,
        # Waits for a `reset_every`: where opacities are not reset, splats are not pruned for their size.
        prune_scale=0.3,
        reset_every=0,
        noise=1e5,
    )
    loss: FitLossConfig = FitLossConfig()

    def __post_init__(self) -> None:
        """Check what types cannot say. Raises UserError."""
        least = {
            "iterations": (self.iterations, 1),
            "views": (self.views, 1),
            "buffer_capacity": (self.buffer_capacity, 1),
            "sh_every": (self.sh_every, 1),
            "start.count": (self.start.count, 1),
            "splat_capacity": (self.splat_capacity, self.start.count),
        }
        for name, (value, bound) in least.items():
            if value < bound:
                raise UserError(f"The setting {name} is {value}, but at least {bound} is needed; raise it.")
        if not 0 < self.start.opacity < 1:
            raise UserError(
                f"The setting start.opacity is {self.start.opacity}; give a number between 0 and 1."
            )


def settings_in_use(config: FitConfig) -> dict[str, Any]:
    """All settings as a tree, less those that nothing reads while opacities are not reset."""
    settings = dataclasses.asdict(config)
    if config.density.is_mcmc or config.density.reset_every == 0:
        for name in ("prune_scale", "reset_opacity"):
            del settings["density"][name]
    return settings
