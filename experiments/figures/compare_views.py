"""Figures 4 and 14: objects of GE3D and ISM from all sides, next to the truth; and as a video.

    python experiments/figures/compare_views.py --size=small  # 2 minutes on two CPU cores
    python experiments/figures/compare_views.py               # 17 minutes, for docs/results.md

An interrupted run continues where it stopped.

Expected: from all sides, GE3D's objects have more detail, and colors closer to the truth.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("compare_views")
