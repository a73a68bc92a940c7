"""Show a splat file: a turntable, a camera path, a sheet of views, one image, or an interactive page.

    python experiments/render_splats.py --splats=outputs/a-red-mushroom-0/object.ply

This is `ge3d show`. Its flags, how long it takes, and what to expect are in ge3d_jax/cli/commands/show.py,
and in --help.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("show")
