"""Fit splats to pictures with known cameras: 3D Gaussian Splatting, without any diffusion.

    python experiments/fit_images.py --images=outputs/mushroom-images

This is `ge3d fit`. Its flags, how long it takes, and what to expect are in ge3d_jax/cli/commands/fit.py,
and in --help.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("fit")
