"""Make a textured mesh of an object of splats, for programs that do not take splats.

    python experiments/export_mesh.py outputs/a-red-mushroom-0/object.ply --out=mushroom.glb

This is `ge3d mesh`. Its flags, how long it takes, and what to expect are in ge3d_jax/cli/commands/mesh.py,
and in --help.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("mesh")
