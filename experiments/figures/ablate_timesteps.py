"""Figure 9: the farthest time of GE3D's nodes × the length of its jumps, without balancing the nodes.

    python experiments/figures/ablate_timesteps.py --size=small  # 2 minutes on two CPU cores
    python experiments/figures/ablate_timesteps.py               # 32 minutes, for docs/results.md

A stopped one goes on where it was. The first figure on a machine takes two minutes more, to trace what
objects are recognized by.

Expected: nodes that reach too near change too little, so that the shape stays wrong; short jumps keep more
detail than long ones, and take longer. ablate_timesteps.png has an object for each cell of the grid.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("ablate_timesteps")
