"""Starting from Point-E's points instead of a gray ball.

    python experiments/figures/compare_starts.py --size=small  # 2 minutes on two CPU cores
    python experiments/figures/compare_starts.py               # 40 minutes, for docs/results.md

An interrupted run continues where it stopped. The first figure on a machine takes two minutes more, to trace
the pictures that objects are recognized by. Needs requirements-figures.txt.

At full size these are the evaluation's 24 sentences with the bundled Point-E, 45 seconds each, judged seven
times along the way, made by one process on each of two cores.

Expected: objects that start from Point-E's points are recognized at once and reach the right shape sooner.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("compare_starts")
