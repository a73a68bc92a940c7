"""Figure 11: GE3D beside the end of its path alone, with the same nodes and guidance.

    python experiments/figures/only_x0.py --size=small  # 2 minutes on two CPU cores
    python experiments/figures/only_x0.py               # 18 minutes, for docs/results.md

An interrupted run continues where it stopped.

Expected: with the end alone, surfaces are flatter or shapes less accurate. At full size there is a third
line: the end alone, with the settings that were found for it.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("only_x0")
