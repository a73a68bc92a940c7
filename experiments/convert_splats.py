"""Convert a splat file to another format, which the suffix chooses.

    python experiments/convert_splats.py outputs/a-red-mushroom-0/object.ply mushroom.spz

This is `ge3d convert`. Its flags, how long it takes, and what to expect are in
ge3d_jax/cli/commands/convert.py, and in --help.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("convert")
