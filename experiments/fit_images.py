"""Fit splats to pictures with known cameras: 3D Gaussian Splatting, without any diffusion.

    python experiments/fit_images.py --images=outputs/mushroom-images

The same as `ge3d fit`: ge3d_jax/cli/commands/fit.py has the flags, and says how long it
takes and what to expect, as --help does.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("fit")
