"""Make a 3D object from a sentence.

    python experiments/generate.py --prompt="a red mushroom"

This is `ge3d generate`. Its flags, how long it takes, and what to expect are in
ge3d_jax/cli/commands/generate.py, and in --help.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("generate")
