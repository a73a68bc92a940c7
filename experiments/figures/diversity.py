"""Figure 8: objects from different seeds, and from seeds that share the first part of the run.

    python experiments/figures/diversity.py --size=small  # 2 minutes on two CPU cores
    python experiments/figures/diversity.py               # 28 minutes, for docs/results.md

An interrupted run continues where it stopped.

Expected: seeds that share the first part of the run, including the start, end up less diverse in shape than
seeds that differ throughout, but keep more of their diversity of texture. diversity.png shows the objects;
diversity.md has how far the seeds of a sentence are from each other in shape and texture, for which no truth
is needed, and how close they are to the truth.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("diversity")
