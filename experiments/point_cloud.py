"""Make a point cloud of a sentence with Point-E, as --start=point_e begins with.

    python experiments/point_cloud.py --prompt="a red mushroom"

This is `ge3d point-cloud`. Its flags, how long it takes, and what to expect are in
ge3d_jax/cli/commands/point_cloud.py, and in --help.
"""

from ge3d_jax.cli.program import run_command

if __name__ == "__main__":
    run_command("point-cloud")
