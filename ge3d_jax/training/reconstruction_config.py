"""Settings of the reconstruction stage: fixed cameras, edits of their images, and the fit to the edits.

The defaults are those of the published stage (DreamScene, arXiv 2404.03575), except that images are edited by
GE3D's trajectories, with the nodes at the end of GE3D's published runs.
"""

import dataclasses
import math

from ge3d_jax.core.errors import UserError
from ge3d_jax.guidance.ge3d import GE3D
from ge3d_jax.guidance.trajectories import Nodes
from ge3d_jax.scenes.splats import SplatRates

# (polar angle in degrees from +z, number of evenly spaced cameras)
Ring = tuple[float, int]


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A final stage that fits the splats to edited images of themselves.

    Attributes:
        start: fraction of the iterations that the distillation takes before this stage; null for no stage.
        rings: rings of fixed cameras: (polar angle in degrees, number of evenly spaced cameras).
        radius_share: distance of these cameras, as a fraction of the middle of the final radius range of the
            run's cameras.
        fov_radians: their field of view.
        held_out: approximate number of cameras between the rings that are used for evaluation only.
        guidance_scale: s, of the edit.
        node_count: number of nodes of the edit's trajectories.
        node_jumps: (smallest, largest) jump between nodes; the largest is exclusive.
        latest_node: upper bound of the nodes.
        passes: number of times each image is fitted.
        views_per_step: number of images per step.
        loss_weight: weight of the mean squared error.
        densify_every: steps between applications of density control; 0 for none.
        densify_until: last step with density control.
        densify_threshold: of the screen-space gradient, for density control by cloning and splitting.
        rates: learning rates.
    """

    start: float | None = None
    rings: tuple[Ring, ...] = ((100.0, 4), (85.0, 12), (75.0, 14), (55.0, 6))
    radius_share: float = 0.9
    fov_radians: float = 0.55
    held_out: int = 12
    guidance_scale: float = 7.5
    node_count: int = 6
    node_jumps: tuple[int, int] = (30, 50)
    latest_node: int = 300
    passes: int = 40
    views_per_step: int = 1
    loss_weight: float = 100.0
    densify_every: int = 100
    densify_until: int = 576
    densify_threshold: float = 1e-3
    rates: SplatRates = SplatRates(
        position=(8e-4, 8e-6),
        color=(5e-3, 4e-3),
        opacity=(0.05, 0.05),
        scale=(5e-3, 2e-3),
        rotation=(1e-3, 2e-4),
    )

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        if self.start is not None and not 0 < self.start < 1:
            raise UserError(
                f"The setting reconstruction.start is {self.start}; give a fraction of the iterations "
                "between 0 and 1, or null for no such stage."
            )
        if not self.rings or any(not 0 < polar < 180 or count < 1 for polar, count in self.rings):
            raise UserError(
                f"The setting reconstruction.rings is {self.rings}; give at least one ring, such as "
                "[85, 12], with a polar angle between 0 and 180 degrees and at least one camera."
            )
        if not 0 < self.fov_radians < math.pi:
            raise UserError(
                f"The setting reconstruction.fov_radians is {self.fov_radians}; give an angle between 0 "
                "and π."
            )
        for name in ("radius_share", "loss_weight"):
            if getattr(self, name) <= 0:
                raise UserError(
                    f"The setting reconstruction.{name} is {getattr(self, name)}; give a number above 0."
                )
        least = {"held_out": 1, "node_count": 1, "passes": 1, "views_per_step": 1, "densify_every": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UserError(
                    f"The setting reconstruction.{name} is {getattr(self, name)}, but at least {bound} is "
                    "needed; raise it."
                )
        shortest, longest = self.node_jumps
        if not 1 <= shortest < longest <= self.latest_node:
            raise UserError(
                f"The setting reconstruction.node_jumps is {self.node_jumps}; give a smallest jump of at "
                f"least 1 and a larger one up to reconstruction.latest_node, {self.latest_node}."
            )

    @property
    def pictures(self) -> int:
        """Number of images that are fitted."""
        return sum(count for _, count in self.rings)

    @property
    def steps(self) -> int:
        """Number of steps of the fit; if passes do not divide evenly, the last step begins another pass."""
        return -(-self.passes * self.pictures // self.views_per_step)

    @property
    def editor(self) -> GE3D:
        """The editor of the images: GE3D, with nodes that stay the same over the run."""
        shortest, longest = self.node_jumps
        nodes = Nodes(
            count=self.node_count,
            jump_max=(longest, longest),
            jump_min=(shortest, shortest),
            max_step=(self.latest_node, self.latest_node),
        )
        return GE3D(scale=self.guidance_scale, nodes=nodes)
