"""Figures 5, 6 and 7: how objects get better with time and with iterations, GE3D with and without DBC.

    python experiments/figures/convergence.py --size=small  # 2 minutes on two CPU cores
    python experiments/figures/convergence.py               # 40 minutes, for docs/results.md

A stopped one goes on where it was. The first figure on a machine takes two minutes more, to trace what
objects are recognized by. Needs requirements-figures.txt.

At full size three sentences by twelve losses and GE3D without its dynamic balancing coefficient, 60 seconds
each, judged eleven times on the way; one process on each of two cores. --only_done shows what there is, and
the other flags are those of compare_losses.py.

Expected, after the paper: GE3D is good sooner than the others, with DBC sooner than without.
"""

from ge3d_jax.cli import loss_flags

if __name__ == "__main__":
    loss_flags.run_loss_figure("convergence")
