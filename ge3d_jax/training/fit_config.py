"""All settings of a fit, as a tree of frozen dataclasses.

Lengths are in scene radii, so that the same settings work for scenes of any size. A scene radius is half the
extent of the plane through the origin that the cameras' images show.
"""

import dataclasses

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import check_at_least, choice
from ge3d_jax.scenes.base import Scene
from ge3d_jax.scenes.clone_and_split import CloneAndSplit
from ge3d_jax.scenes.scenes import SCENES, Splats
from ge3d_jax.scenes.splats import SplatRates
from ge3d_jax.scenes.start.ball import Ball
from ge3d_jax.training.config import BackgroundConfig


@dataclasses.dataclass(frozen=True)
class FitLossConfig:
    """weight·((1 − dssim)·mean absolute difference + dssim·(1 − SSIM)), as in Kerbl et al. 2023.

    With `squared`, the squared difference replaces the absolute difference.
    """

    dssim: float = 0.2
    squared: bool = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        if not 0 <= self.dssim <= 1:
            raise UserError(f"The setting loss.dssim is {self.dssim}; give a number from 0 to 1.")
        if self.weight <= 0:
            raise UserError(f"The setting loss.weight is {self.weight}; give a number above 0.")


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """All settings of a fit except the images and the seed.

    Each iteration uses `views` images. `background` is shown behind transparent parts of images.
    """

    iterations: int = 2000
    views: int = 2
    background: BackgroundConfig = BackgroundConfig(replaced=0.5, random_share=1.0)
    loss: FitLossConfig = FitLossConfig()
    scene: Scene = choice(
        lambda: SCENES,
        Splats(
            capacity=8_000,
            buffer_capacity=2**15,
            scale_noise=0.0,
            scale_penalty=0.0,
            sh_every=400,
            start=Ball(count=3000, radius=1.0, opacity=0.1, sh_degree=2),
            learning_rates=SplatRates(
                position=(4e-3, 1e-4),
                color=(2e-2, 5e-3),
                opacity=(5e-2, 2e-2),
                scale=(1e-2, 2e-3),
                rotation=(5e-3, 1e-3),
                higher_bands=0.05,
            ),
            density=CloneAndSplit(
                first=200,
                last=1400,
                every=100,
                gradient_threshold=1e-3,
                clone_scale=0.03,
                # Takes effect only with `reset_every`: without opacity resets, large splats are not pruned.
                prune_scale=0.3,
                reset_every=0,
            ),
        ),
    )

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_at_least(iterations=(self.iterations, 1), views=(self.views, 1))
