"""Figures 5, 6 and 7: how objects get better with time and with iterations, GE3D with and without DBC.

    python experiments/figures/convergence.py

Four sentences by twelve losses and GE3D without its dynamic balancing coefficient, 90 seconds each, judged
eleven times on the way: about an hour on two CPU cores, one process on each. What is done is not done again,
and --only_done shows what there is. Flags are those of compare_losses.py.

To expect, after the paper: GE3D is good sooner than the others, with DBC sooner than without.
"""

from ge3d_jax.cli import loss_flags

if __name__ == "__main__":
    loss_flags.run_loss_figure("convergence")
