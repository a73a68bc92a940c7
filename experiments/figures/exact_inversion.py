"""Beyond the paper: inversions inside GE3D's iterations: plain DDIM, negative-prompt, and direct inversion.

    python experiments/figures/exact_inversion.py --size=small  # 80 seconds on two CPU cores
    python experiments/figures/exact_inversion.py               # 33 minutes, for docs/results.md

An interrupted run continues where it stopped.

At full size: four sentences, five ways.

Expected: exact inversions take more passes through the network and may bring objects closer to the truth.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("exact_inversion")
