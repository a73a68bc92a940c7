"""Figure 9: how far GE3D's nodes reach × how long its jumps are, without balancing the nodes.

    python experiments/figures/ablate_timesteps.py --size=small  # 2 minutes on two CPU cores
    python experiments/figures/ablate_timesteps.py               # 32 minutes, for docs/results.md

An interrupted run continues where it stopped.

Expected: nodes that reach only low noise change too little, so the shape stays wrong. Short jumps preserve
more detail than long ones, but take longer. ablate_timesteps.png has an object for each cell of the grid.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("ablate_timesteps")
