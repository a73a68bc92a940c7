"""Figures 4 and 14: objects of GE3D and of ISM from all sides, side by side, with the truth; also as a video.

    python experiments/figures/compare_views.py --size=small

About two minutes (small) or an hour (full) on two CPU cores. The paper's scale takes Stable Diffusion:
--size=paper --model=FOLDER.
To be expected: from all sides GE3D's objects have more detail, and colors that are nearer to the truth.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("compare_views")
