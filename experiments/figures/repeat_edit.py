"""Figure 2: one picture edited again and again, by SDS, by GE3D with one node, and with several.

    python experiments/figures/repeat_edit.py --size=small  # 60 seconds on two CPU cores
    python experiments/figures/repeat_edit.py               # 15 minutes, for docs/results.md

An interrupted run continues where it stopped. The first figure on a machine takes two minutes more, to trace
the pictures that objects are recognized by. Needs requirements-figures.txt.

Expected: SDS oversaturates the colors, at once with its own scale and soon with 7.5, and so does GE3D with a
single node. With several nodes, the picture stays near the true edit however often it is edited.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("repeat_edit")
