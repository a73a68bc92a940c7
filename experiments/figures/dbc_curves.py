"""Section 8.1: the nodes' balancing weights over a run, and the share of the gradient that each node has.

    python experiments/figures/dbc_curves.py --size=small

About a minute (small) or twelve (full) on two CPU cores. The paper's scale takes Stable Diffusion:
--size=paper --model=FOLDER. Needs requirements-figures.txt.
To be expected: the coarsest node has most of the gradient at first and the finest at last; where nodes are
not balanced all have nearly equal shares throughout, the finest a little more towards the end.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("dbc_curves")
