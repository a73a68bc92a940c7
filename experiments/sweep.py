"""Make an object of every prompt with every seed, and a page that shows them all.

    python experiments/sweep.py --prompt="a red mushroom" --seeds=0-7

This is `ge3d sweep`. Its flags, how long it takes, and what to expect are in ge3d_jax/cli/commands/sweep.py,
and in --help.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("sweep")
