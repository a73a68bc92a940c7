"""Figure 15: the nodes of both trajectories, decoded, over the iterations of a run.

    python experiments/figures/node_gallery.py --size=small  # 75 seconds on two CPU cores
    python experiments/figures/node_gallery.py               # 2 minutes, for docs/results.md

A stopped one goes on where it was.

Expected: the way up keeps at every node what the render shows. The way down draws the object that the text
asks for, at the top in coarse and wrong colors, lower down in right ones; its end changes little over the
run, and the renders come to it.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("node_gallery")
