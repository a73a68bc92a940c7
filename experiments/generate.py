"""Make a 3D object from a sentence.

    python experiments/generate.py --prompt="a red mushroom"

The same as `ge3d generate`: ge3d_jax/cli/commands/generate.py has the flags, and says how long it
takes and what to expect, as --help does.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("generate")
