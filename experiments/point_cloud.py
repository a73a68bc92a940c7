"""Make a point cloud of a sentence with Point-E, what --start=point_e begins with.

    python experiments/point_cloud.py --prompt="a red mushroom"

The same as `ge3d point-cloud`: ge3d_jax/cli/commands/point_cloud.py has the flags, and says how long it takes
and what to expect, as --help does.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("point-cloud")
