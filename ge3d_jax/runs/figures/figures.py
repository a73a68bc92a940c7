"""The paper's tables and figures by name. A new one is a file beside this one and a line here."""

from ge3d_jax.runs.figures import dbc_curves, node_gallery, repeat_edit
from ge3d_jax.runs.figures.base import Figure

FIGURES: dict[str, Figure] = {
    "dbc_curves": dbc_curves.FIGURE,
    "node_gallery": node_gallery.FIGURE,
    "repeat_edit": repeat_edit.FIGURE,
}
