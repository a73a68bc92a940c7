"""Figures 5, 6 and 7: how objects improve with time and with iterations, GE3D with and without DBC.

    python experiments/figures/convergence.py --size=small  # 2 minutes on two CPU cores
    python experiments/figures/convergence.py               # 40 minutes, for docs/results.md

An interrupted run continues where it stopped. The first figure on a machine takes two minutes more, to trace
the pictures that objects are recognized by. Needs requirements-figures.txt.

At full size these are three sentences with twelve losses, and GE3D without its dynamic balancing coefficient,
60 seconds each, judged eleven times along the way, made by one process on each of two cores. --only_done
shows what there is so far; the other flags are those of compare_losses.py.

Expected from the paper: GE3D gets good sooner than the other losses, and sooner with DBC than without.
"""

from ge3d_jax.cli import loss_flags

if __name__ == "__main__":
    loss_flags.run_loss_figure("convergence")
