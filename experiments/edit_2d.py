"""Edit one picture, as GE3D edits the views of an object or by a method that is made for pictures.

    python experiments/edit_2d.py --source_prompt="a red mushroom" --prompt="a blue mushroom"
    python experiments/edit_2d.py --method=direct,npi --source_prompt="a red car" --prompt="a red pig"

The same as `ge3d edit`: ge3d_jax/cli/commands/edit.py has the flags, and says how long it
takes and what to expect, as --help does.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("edit")
