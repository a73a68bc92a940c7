"""Figure 15: the nodes of both trajectories, decoded, over the iterations of a run.

    python experiments/figures/node_gallery.py --size=small

About a minute (small) or three (full) on two CPU cores. The paper's scale takes Stable Diffusion:
--size=paper --model=FOLDER.
To be expected: early on, the way up forgets the blurred render and the way down draws a clean object in its
place; later both ways show the same object, and what still differs are details.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("node_gallery")
