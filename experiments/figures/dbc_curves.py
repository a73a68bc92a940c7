"""Section 8.1: the nodes' balancing weights over a run, and the share of the gradient that each node has.

    python experiments/figures/dbc_curves.py --size=small  # 75 seconds on two CPU cores
    python experiments/figures/dbc_curves.py               # 12 minutes, for docs/results.md

An interrupted run continues where it stopped. Needs requirements-figures.txt.

Expected: the coarsest node has most of the gradient at first, and the finest in the end. Without balancing,
all nodes have nearly equal shares throughout, the finest a little more toward the end.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("dbc_curves")
