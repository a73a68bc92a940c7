"""Beyond the paper: objects edited by a sentence, in four ways.

    python experiments/figures/edit_objects.py --size=small  # 2 minutes on two CPU cores
    python experiments/figures/edit_objects.py               # 35 minutes, for docs/results.md

An interrupted run continues where it stopped.

One edit each of an object's color, part, and kind; at small size, the color alone.

Expected: with each iteration compared with the views of the untouched source, whatever the edit does not name
stays closer to it than with restyling, and the target is still reached. Direct inversion and NPI break the
shape. edit_objects.md has the tables, and there is a picture of each edit from eight sides.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("edit_objects")
