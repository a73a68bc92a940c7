"""Show a splat file: a turntable, a camera path, a sheet of views, one image, or an interactive page.

    python experiments/render_splats.py --splats=outputs/a-red-mushroom-0/object.ply

The same as `ge3d show`: ge3d_jax/cli/commands/show.py has the flags, and says how long it
takes and what to expect, as --help does.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("show")
