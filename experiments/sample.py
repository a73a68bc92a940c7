"""Make pictures from sentences, to see whether a model works.

    python experiments/sample.py --prompt="a red mushroom" --count=4

This is `ge3d sample`. Its flags, how long it takes, and what to expect are in
ge3d_jax/cli/commands/sample.py, and in --help.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("sample")
