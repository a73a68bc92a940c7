"""The paper's tables and figures by name. A new one is a file beside this one and a line here."""

from ge3d_jax.runs.figures import (
    ablate_timesteps,
    diversity,
    edit_objects,
    exact_inversion,
    only_x0,
)
from ge3d_jax.runs.figures.base import Figure

FIGURES: dict[str, Figure] = {
    "diversity": diversity.FIGURE,
    "ablate_timesteps": ablate_timesteps.FIGURE,
    "only_x0": only_x0.FIGURE,
    "edit_objects": edit_objects.FIGURE,
    "exact_inversion": exact_inversion.FIGURE,
}
