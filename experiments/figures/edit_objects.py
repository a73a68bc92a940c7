"""Beyond the paper: objects edited by a sentence, by four ways.

    python experiments/figures/edit_objects.py --size=small  # 2 minutes on two CPU cores
    python experiments/figures/edit_objects.py               # 35 minutes, for docs/results.md

A stopped one goes on where it was. The first figure on a machine takes two minutes more, to trace what
objects are recognized by.

Color, part and kind of an object each; at small size the color alone.

Expected: compared with the views of the untouched source, what the edit does not name stays nearer to it
than by restyling, and the target is reached all the same; direct inversion and NPI break the shape.
edit_objects.md has the tables, and there is a picture of each edit from eight sides.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("edit_objects")
