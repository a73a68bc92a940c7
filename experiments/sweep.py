"""Make an object of every prompt with every seed, and a page that shows them all.

    python experiments/sweep.py --prompt="a red mushroom" --seeds=0-7

The same as `ge3d sweep`: ge3d_jax/cli/commands/sweep.py has the flags, and says how long it
takes and what to expect, as --help does.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("sweep")
