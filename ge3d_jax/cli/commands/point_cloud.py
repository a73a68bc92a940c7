"""Make a point cloud of a sentence with Point-E, as --start=point_e begins with.

    ge3d point-cloud --prompt="a red mushroom"
    ge3d point-cloud --model=point_e --prompt="a corgi"

With the small Point-E of the Toybox world this takes seconds on two CPU cores. The published one, a folder
with base_40m_textvec.pt and upsample_40m.pt, takes many minutes there. The folder
outputs/cloud-a-red-mushroom-0/ then holds the points (cloud.ply, z up and facing +x, which --start takes),
eight views (views.png), a page to turn the cloud in a browser (viewer.html), and config.json.
"""

from absl import flags

_PROMPT = flags.DEFINE_string("prompt", None, 'What to make, e.g. "a red mushroom".', required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Same seed, same cloud.")
_MODEL = flags.DEFINE_string("model", None, "A folder with the published Point-E's files.")
_CLIP = flags.DEFINE_string(
    "clip", None, "The text encoder that goes with it: the folder of a CLIP, or a hub id."
)
_MIRRORED = flags.DEFINE_bool("mirrored", False, "Exchange left and right, as the paper's public code does.")
_OUT = flags.DEFINE_string("out", None, "Folder to write to; by default outputs/cloud-<prompt>-<seed>.")


def main() -> None:
    """Make the cloud, and print where it is."""
    from ge3d_jax.runs.point_cloud import point_cloud

    cloud, folder = point_cloud(
        _PROMPT.value,
        seed=_SEED.value,
        model=_MODEL.value,
        clip=_CLIP.value,
        mirrored=_MIRRORED.value,
        out=_OUT.value,
    )
    print(f"{len(cloud.positions)} points in {folder / 'cloud.ply'}")
    print(f"  Look at them:  {folder / 'views.png'}")
    print(f"  Turn them:     open {folder / 'viewer.html'} in a browser")
