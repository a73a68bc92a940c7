"""Make a mesh with a texture of an object of splats, for any tool that takes no splats.

    python experiments/export_mesh.py outputs/a-red-mushroom-0/object.ply --out=mushroom.glb

The same as `ge3d mesh`: ge3d_jax/cli/commands/mesh.py has the flags, and says how long it
takes and what to expect, as --help does.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("mesh")
