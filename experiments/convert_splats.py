"""Convert a splat file to another format; the suffix chooses the format.

    python experiments/convert_splats.py outputs/a-red-mushroom-0/object.ply mushroom.spz

The same as `ge3d convert`: ge3d_jax/cli/commands/convert.py has the flags, and says how long it
takes and what to expect, as --help does.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("convert")
