"""Section 7.2: objects before and after the reconstructive stage, with more and more iterations before it.

    python experiments/figures/reconstruct.py --size=small

About two minutes (small) or an hour (full) on two CPU cores. The paper's scale takes Stable Diffusion:
--size=paper --model=FOLDER. Needs requirements-figures.txt.
To be expected: after few iterations the stage brings an object nearly to where the rest of the run would;
after many it sharpens it a little.
"""

from ge3d_jax.cli import figure_flags

if __name__ == "__main__":
    figure_flags.run_figure("reconstruct")
