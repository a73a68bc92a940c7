"""Compare inversions inside GE3D's iterations: plain DDIM, negative-prompt inversion, direct inversion.

    python experiments/figures/exact_inversion.py

Four prompts, two seeds, five ways: an hour and a half on two CPU cores; --size=small takes about a minute.
Expected: exact inversions take more passes through the network and may bring objects nearer to the truth.
docs/results then has exact_inversion.md (the table), .csv, .json and .png.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("exact_inversion")
