"""Edit one picture, as GE3D edits the views of an object or by a method made for pictures.

    python experiments/edit_2d.py --source_prompt="a red mushroom" --prompt="a blue mushroom"
    python experiments/edit_2d.py --method=direct,npi --source_prompt="a red car" --prompt="a red pig"

This is `ge3d edit`. Its flags, how long it takes, and what to expect are in ge3d_jax/cli/commands/edit.py,
and in --help.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("edit")
