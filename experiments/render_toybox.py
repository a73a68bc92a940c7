"""Write posed images of an object of the Toybox world, for fit_images.py and other tools.

    python experiments/render_toybox.py --prompt="a red mushroom" --out=outputs/mushroom-images

The same as `ge3d render-toybox`: ge3d_jax/cli/commands/render_toybox.py has the flags, and says how long it
takes and what to expect, as --help does.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("render-toybox")
