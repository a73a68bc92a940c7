"""The paper's tables and figures by name. To add one, create a file in this folder and add a line here."""

from ge3d_jax.runs.figures import (
    ablate_timesteps,
    compare_losses,
    compare_starts,
    compare_views,
    convergence,
    dbc_curves,
    diversity,
    edit_objects,
    exact_inversion,
    from_truth,
    node_gallery,
    only_x0,
    reconstruct,
    repeat_edit,
)
from ge3d_jax.runs.figures.base import Figure

FIGURES: dict[str, Figure] = {
    "compare_losses": compare_losses.FIGURE,
    "repeat_edit": repeat_edit.FIGURE,
    "convergence": convergence.FIGURE,
    "diversity": diversity.FIGURE,
    "ablate_timesteps": ablate_timesteps.FIGURE,
    "only_x0": only_x0.FIGURE,
    "node_gallery": node_gallery.FIGURE,
    "compare_views": compare_views.FIGURE,
    "dbc_curves": dbc_curves.FIGURE,
    "reconstruct": reconstruct.FIGURE,
    "edit_objects": edit_objects.FIGURE,
    "exact_inversion": exact_inversion.FIGURE,
    "from_truth": from_truth.FIGURE,
    "compare_starts": compare_starts.FIGURE,
}
