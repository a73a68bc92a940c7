"""Convert a splat file to another format; the ending tells which.

    python experiments/convert_splats.py outputs/a-red-mushroom-0/object.ply mushroom.spz

.ply   3D Gaussian Splatting, what every tool reads: loses nothing but the length of quaternions, which has no
       meaning. --ascii writes it as text.
.splat 32 bytes a splat, for web viewers: colours and rotations in 8 bits, no view-dependent colour.
.spz   about a fifth of a .ply: colours, opacities and scales in 8 bits, rotations in 10, positions in 24.

A million splats take a few seconds. Coordinates stay as they are. So what is up in a .spz is what was up in
its .ply, often -y, where its specification has y up: a viewer that goes by that shows it upside down.
"""

from pathlib import Path

from absl import flags

from ge3d_jax.cli import script

_ASCII = flags.DEFINE_bool("ascii", False, "Write a .ply as text.")


def main(source: str, target: str) -> None:
    """Convert, and say what came of it."""
    from ge3d_jax.runs.convert import convert_splats

    gaussians = convert_splats(source, target, ascii=_ASCII.value)
    print(f"{gaussians.capacity} splats, colour of degree {gaussians.sh_degree}, from {source}")
    print(f"  {target}, {Path(target).stat().st_size / 1e6:.2f} MB")
    if gaussians.sh_degree > 0 and target.lower().endswith(".splat"):
        print("  A .splat file has no view-dependent colour; degree 0 was kept.")


if __name__ == "__main__":
    script.run(main, positional=("SOURCE", "TARGET"))
