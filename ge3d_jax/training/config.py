"""All settings of a run, as a tree of frozen dataclasses.

The defaults are the settings of the published runs (arXiv 2412.05929 and its public implementation);
`training.presets` has others. Settings are addressed by dotted name, e.g. `cameras.radius_begin`. Ranges are
(low, high); a range changes over the run from its `…_begin` to its `…_end`.
"""

import dataclasses
import math

from ge3d_jax.core.errors import UserError, shown
from ge3d_jax.core.settings import check_at_least, choice
from ge3d_jax.guidance.base import Loss
from ge3d_jax.guidance.losses import GE3D, LOSSES
from ge3d_jax.guidance.prompts import PUBLISHED_WEIGHT, WEIGHT_RULES
from ge3d_jax.scenes.base import Scene
from ge3d_jax.scenes.scenes import SCENES, Splats
from ge3d_jax.training.reconstruction_config import Reconstruction

Range = tuple[float, float]
Color = tuple[float, float, float]

PUBLISHED_NEGATIVE_PROMPT = (
    "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, low-resolution."
)


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """Settings of the text conditioning.

    With `use_perp_neg`, guided predictions avoid the other views of the object; `perp_neg_weight` is the
    strongest weight, and `perp_neg_rule`, "original" or "threestudio", determines the weight of each view.
    With `use_overhead`, the text describes the camera's elevation, for models trained on such captions.
    """

    use_perp_neg: bool = True
    perp_neg_weight: float = PUBLISHED_WEIGHT
    perp_neg_rule: str = "original"
    negative_prompt: str = PUBLISHED_NEGATIVE_PROMPT
    use_overhead: bool = False

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        if self.perp_neg_weight > 0:
            raise UserError(
                f"The setting prompts.perp_neg_weight is {self.perp_neg_weight}, which would guide toward "
                "the views to avoid; give a number of at most 0."
            )
        if self.perp_neg_rule not in WEIGHT_RULES:
            raise UserError(
                f"The setting prompts.perp_neg_rule is {shown(self.perp_neg_rule)}; use one of "
                f"{', '.join(WEIGHT_RULES)}."
            )


@dataclasses.dataclass(frozen=True)
class CameraConfig:
    """Cameras on a sphere around the origin; polar angle from +z, azimuth 0 in front of the object.

    Starting at iteration `widen_from`, the ranges are multiplied by the `widen_…` factors every `widen_every`
    iterations until they reach their `…_end`. `concentration` is the exponent in
    middle ± half-range·u^exponent. Jitters are in world units: uniform within ± for the center, normal for
    the target and the up vector.
    """

    radius_begin: Range = (5.2, 5.5)
    radius_end: Range = (3.5, 5.0)
    fov_radians_begin: Range = (0.32, 0.60)
    fov_radians_end: Range = (0.16, 0.60)
    polar_degrees: Range = (45.0, 90.0)
    azimuth_degrees_begin: float = 80.0
    azimuth_degrees_end: float = 180.0
    widen_from: int = 100
    widen_every: int = 100
    widen_radius: float = 0.95
    widen_fov: Range = (0.75, 1.1)
    widen_azimuth: float = 1.5
    concentration: float = 1.5
    jitter_center: float = 0.025
    jitter_target: float = 0.05
    jitter_up: float = 0.01

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_at_least(**{"cameras.widen_every": (self.widen_every, 1)})
        for name in ("radius_begin", "radius_end"):
            radii = getattr(self, name)
            if radii[0] <= 0:
                raise UserError(f"The setting cameras.{name} starts at {radii[0]}; give radii above 0.")
        for name in ("fov_radians_begin", "fov_radians_end"):
            fovs = getattr(self, name)
            if not 0 < min(fovs) <= max(fovs) < math.pi:
                raise UserError(f"The setting cameras.{name} is {fovs}; give angles between 0 and π.")


@dataclasses.dataclass(frozen=True)
class BackgroundConfig:
    """Background color, replaced with probability `replaced`.

    The replacement is a random color with probability `random_share`, otherwise black. If replacements are
    rare, white parts of an object dissolve.
    """

    color: Color = (1.0, 1.0, 1.0)
    replaced: float = 0.66
    random_share: float = 0.5


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run except the model, the prompt, and the seed.

    `guidance` is the loss, `scene` is what it optimizes, and `reconstruction` is an optional final stage.
    `flip_probability` is the probability of flipping all images of an iteration horizontally,
    `total_variation` is the weight of the images' total variation, and `picture_weight` controls how strongly
    renders are pulled toward the decoded target latents of the loss, if the loss defines them; 0 disables
    this and needs no decoder. With `shared_nodes`, the timesteps of an iteration are the same for every seed,
    as in a sweep, whose seeds are computed together. With `first_seed`, a run uses that seed's random numbers
    for the start and for the first `first_seed_share` of the iterations, and its own from then on, so that
    seeds diverge from a common object.

    Three settings trade time for memory and change nothing else. With `vae_rematerialize`, the VAE encodes
    one view at a time (one per device) and recomputes intermediate values for the gradient instead of keeping
    them for all views. `views_per_batch` is the number of views that go through all networks at a time (null:
    all of them); if it is 1, `vae_rematerialize` has no further effect. On GPUs without fast attention, at
    most `attention_chunk` queries are processed at a time, fewer for large batches.
    """

    iterations: int = 3000
    views: int = 4
    image_size: int = 512
    views_per_batch: int | None = None
    attention_chunk: int = 1024
    vae_rematerialize: bool = True
    flip_probability: float = 0.5
    total_variation: float = 1.0
    shared_nodes: bool = False
    first_seed: int | None = None
    first_seed_share: float = 0.5
    picture_weight: float = 0.0
    guidance: Loss = choice(lambda: LOSSES, GE3D())
    prompts: PromptConfig = PromptConfig()
    cameras: CameraConfig = CameraConfig()
    background: BackgroundConfig = BackgroundConfig()
    scene: Scene = choice(lambda: SCENES, Splats())
    reconstruction: Reconstruction = Reconstruction()

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_at_least(
            iterations=(self.iterations, 1),
            views=(self.views, 1),
            image_size=(self.image_size, 1),
            views_per_batch=(self.views_per_pass, 1),
            attention_chunk=(self.attention_chunk, 1),
            picture_weight=(self.picture_weight, 0),
        )
        if self.first_seed is not None and not 0 <= self.first_seed < 2**32:
            raise UserError(
                f"The setting first_seed is {self.first_seed}; give a whole number from 0 to {2**32 - 1}."
            )
        if not 0 <= self.first_seed_share <= 1:
            raise UserError(
                f"The setting first_seed_share is {self.first_seed_share}; give a fraction of the "
                "iterations, from 0 to 1."
            )
        if self.views % self.views_per_pass:
            raise UserError(
                f"The setting views_per_batch is {self.views_per_batch}, which does not divide views, "
                f"{self.views}; give one that does, such as 1."
            )
        if self.picture_weight and self.guidance.steps_to_target is None:
            raise UserError(
                f"The setting picture_weight is {self.picture_weight}, but this loss does not define target "
                "images; set it to 0."
            )
        together = self.guidance.views_together
        for name, value in (("views", self.views), ("views_per_batch", self.views_per_pass)):
            if value % together:
                raise UserError(
                    f"The setting {name} is {value}, but this loss works on groups of {together} views; give "
                    f"a multiple of {together}."
                )
        if self.flip_probability > 0 and not self.guidance.may_mirror:
            raise UserError(
                f"The setting flip_probability is {self.flip_probability}, but this loss depends on the "
                "cameras, which a flipped image would contradict; set it to 0."
            )

    @property
    def views_per_pass(self) -> int:
        """Number of views that go through the networks at a time."""
        return self.views if self.views_per_batch is None else self.views_per_batch

    @property
    def parts(self) -> int:
        """Number of parts into which the views of one pass through the networks can be divided."""
        return self.views_per_pass // self.guidance.views_together

    @property
    def distilled_iterations(self) -> int:
        """Number of iterations of the distillation: all of them unless a reconstruction stage follows."""
        share = self.reconstruction.start
        return self.iterations if share is None else max(1, round(share * self.iterations))
