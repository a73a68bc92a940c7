"""Write posed images of an object of the Toybox world, for fit_images.py and other tools.

    python experiments/render_toybox.py --prompt="a red mushroom" --out=outputs/mushroom-images

This is `ge3d render-toybox`. Its flags, how long it takes, and what to expect are in
ge3d_jax/cli/commands/render_toybox.py, and in --help.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("render-toybox")
