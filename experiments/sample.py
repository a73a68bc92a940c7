"""Make pictures from sentences, to see whether a model works.

    python experiments/sample.py --prompt="a red mushroom" --count=4

The same as `ge3d sample`: ge3d_jax/cli/commands/sample.py has the flags, and says how long it
takes and what to expect, as --help does.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("sample")
