"""Edit three objects by a sentence: compared with the source, by direct inversion, NPI and plain restyling.

    python experiments/figures/edit_objects.py

Color, part and kind of an object each: 35 minutes on two CPU cores; --size=small, a color alone, takes two
minutes.
Expected: compared with the views of the untouched source, what the edit does not name stays nearer to it than
by restyling, and the target is reached all the same; direct inversion and NPI break the shape.
docs/results then has edit_objects.md (the tables), .csv, .json and a picture of each edit from eight sides.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("edit_objects")
