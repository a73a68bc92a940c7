"""Check whether a model is loaded correctly, without a reference to compare it with.

    python experiments/check_model.py --model=stable-diffusion-2-1-base

This is `ge3d check-model`. Its flags, how long it takes, and what to expect are in
ge3d_jax/cli/commands/check_model.py, and in --help.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("check-model")
