"""Figure 2: one picture edited again and again, by SDS, by GE3D with one node, and with several.

    python experiments/figures/repeat_edit.py --size=small

About a minute (small) or a quarter of an hour (full) on two CPU cores, and two minutes more where nothing
was recognized before. The paper's scale takes Stable Diffusion: --size=paper --model=FOLDER. Needs
requirements-figures.txt.
To be expected: SDS drives the colors up, at its own scale at once and at 7.5 soon, and so does GE3D with a
single node; with several nodes the picture stays near the true edit however often it is edited.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("repeat_edit")
