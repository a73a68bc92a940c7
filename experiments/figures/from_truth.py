"""Beyond the paper: splats that are fitted to the truth, and what each loss makes of them from there.

    python experiments/figures/from_truth.py --size=small  # 2 minutes on two CPU cores
    python experiments/figures/from_truth.py               # 25 minutes, for docs/results.md

A stopped one goes on where it was. The first figure on a machine takes two minutes more, to trace what
objects are recognized by. Needs requirements-figures.txt.

Expected: a loss stays near the truth as far as it wants it. One that leaves it does not lack time.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("from_truth")
