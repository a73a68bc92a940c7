"""The settings of the reconstructive stage: fixed cameras, edits of their pictures, and the fit to them.

The defaults are those of the published stage (DreamScene, arXiv 2404.03575); its pictures are edited by
GE3D's trajectories with the nodes that GE3D's published runs end with.
"""

import dataclasses
import math

from ge3d_jax.core.errors import UserError
from ge3d_jax.guidance.ge3d import GE3D
from ge3d_jax.guidance.trajectories import Nodes
from ge3d_jax.scenes.splats import SplatRates

# (polar angle in degrees from +z, how many cameras evenly around)
Ring = tuple[float, int]


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A last stage that fits the splats to edited pictures of themselves.

    Attributes:
        start: the share of the iterations that the distillation runs for before it; null for no stage.
        rings: (polar angle in degrees, number of cameras evenly around), of the fixed cameras.
        radius_share: their distance, as a share of the middle radius that the run's cameras end with.
        fov_radians: their field of view.
        held_out: about how many cameras between the rings only measure.
        guidance_scale: s, of the edit.
        node_count: nodes of its trajectories.
        node_jumps: (least, greatest) jump from one to the next; the greatest is left out.
        latest_node: no node passes it.
        passes: how often each picture is fitted.
        views_per_step: pictures of a step.
        loss_weight: of the mean squared error.
        densify_every: steps between the changes of the splats' number; 0 for none.
        densify_until: the last step with one.
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
                f"The setting reconstruction.start is {self.start}; give a share of the iterations between "
                "0 and 1, or null for no such stage."
            )
        if not self.rings or any(not 0 < polar < 180 or count < 1 for polar, count in self.rings):
            raise UserError(
                f"The setting reconstruction.rings is {self.rings}; give at least one ring, as [85, 12], "
                "with a polar angle between 0 and 180 degrees and at least one camera."
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
                f"The setting reconstruction.node_jumps is {self.node_jumps}; give a least jump of at "
                f"least 1 and a greater one up to reconstruction.latest_node, {self.latest_node}."
            )

    @property
    def pictures(self) -> int:
        """How many pictures are fitted."""
        return sum(count for _, count in self.rings)

    @property
    def steps(self) -> int:
        """How many steps the fit takes; the last one begins another pass where they do not divide."""
        return -(-self.passes * self.pictures // self.views_per_step)

    @property
    def editor(self) -> GE3D:
        """What edits the pictures: GE3D, with nodes that stay the same over the run."""
        shortest, longest = self.node_jumps
        nodes = Nodes(
            count=self.node_count,
            jump_max=(longest, longest),
            jump_min=(shortest, shortest),
            max_step=(self.latest_node, self.latest_node),
        )
        return GE3D(scale=self.guidance_scale, nodes=nodes)
