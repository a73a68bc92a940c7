"""The paper's tables and figures by name. A new one is a file beside this one and a line here."""

from ge3d_jax.runs.figures import edit_objects
from ge3d_jax.runs.figures.base import Figure

FIGURES: dict[str, Figure] = {
    "edit_objects": edit_objects.FIGURE,
}
