"""Convert a splat file to another format; the suffix chooses the format.

    ge3d convert outputs/a-red-mushroom-0/object.ply mushroom.spz

.ply   3D Gaussian Splatting, read by every tool: lossless except for the length of quaternions, which has no
       meaning. --ascii writes it as text.
.splat 32 bytes per splat, for web viewers: colors and rotations in 8 bits, no view-dependent color.
.spz   about a fifth of a .ply: colors, opacities and scales in 8 bits, rotations in 10, positions in 24.

Files of other writers are read, too, e.g. SuperSplat's compressed .ply; a line says what was left out. The
mark that splats were trained with antialiasing is kept. A million splats take a few seconds. Coordinates are
left unchanged: up in a .spz is what was up in its .ply, often -y, whereas the specification of .spz says y. A
viewer that follows it shows such a file upside down.
"""

from pathlib import Path

from absl import flags

_ASCII = flags.DEFINE_bool("ascii", False, "Write a .ply as text.")


def main(source: str, target: str) -> None:
    """Convert, and print a summary."""
    from ge3d_jax.runs.convert import convert_splats

    gaussians = convert_splats(source, target, ascii=_ASCII.value)
    print(f"{gaussians.capacity} splats, color of degree {gaussians.sh_degree}, from {source}")
    print(f"  {target}, {Path(target).stat().st_size / 1e6:.2f} MB")
    if gaussians.sh_degree > 0 and target.lower().endswith(".splat"):
        print("  A .splat file has no view-dependent color; only degree 0 was kept.")
