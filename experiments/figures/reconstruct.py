"""Section 7.2: objects before and after the reconstructive stage, with more and more iterations before it.

    python experiments/figures/reconstruct.py --size=small  # 2 minutes on two CPU cores
    python experiments/figures/reconstruct.py               # 30 minutes, for docs/results.md

An interrupted run continues where it stopped. The first figure on a machine takes two minutes more, to trace
the pictures that objects are recognized by. Needs requirements-figures.txt.

Expected: after few iterations, the stage takes an object nearly as far as the rest of the run would; after
many, it sharpens the object a little.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("reconstruct")
