"""Beyond the paper: where each loss settles when it starts from splats fitted to the truth.

    python experiments/figures/from_truth.py --size=small  # 2 minutes on two CPU cores
    python experiments/figures/from_truth.py               # 25 minutes, for docs/results.md

An interrupted run continues where it stopped. The first figure on a machine takes two minutes more, to trace
the pictures that objects are recognized by. Needs requirements-figures.txt.

Expected: a loss whose optimum is the truth stays there. The quality that another loss gives up from there
cannot be gained by longer runs or a better start.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("from_truth")
