"""Figure 15: the nodes of both trajectories, decoded, over the iterations of a run.

    python experiments/figures/node_gallery.py --size=small  # 75 seconds on two CPU cores
    python experiments/figures/node_gallery.py               # 2 minutes, for docs/results.md

An interrupted run continues where it stopped.

Expected: at every node, the way up preserves what the render shows. The way down draws the object that the
text asks for, in coarse and wrong colors at the top and in the right ones lower down. Its end changes little
over the run, and the renders approach it.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("node_gallery")
