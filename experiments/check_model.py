"""Check whether a model is loaded correctly, without a reference to compare it with.

    python experiments/check_model.py --model=stable-diffusion-2-1-base

The same as `ge3d check-model`: ge3d_jax/cli/commands/check_model.py has the flags, and says how long it
takes and what to expect, as --help does.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("check-model")
