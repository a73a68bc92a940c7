"""Convert a splat file to another format, which the suffix chooses.

    ge3d convert outputs/a-red-mushroom-0/object.ply mushroom.spz
    ge3d convert outputs/a-red-mushroom-0/object.ply mushroom.glb --up=z:-y
    ge3d convert garden.ksplat bench.ply --up=-y --crop=-1,-1,-1,1,1,1 --scale=0.5

.ply   3D Gaussian Splatting, read by every tool: lossless except for the length of quaternions, which has no
       meaning. --ascii writes it as text.
.compressed.ply  SuperSplat's: 16 bytes per splat, and one for each coefficient of view-dependent color.
.splat 32 bytes per splat, for web viewers: colors and rotations in 8 bits, no view-dependent color.
.spz   about a quarter of a .ply: colors, opacities, and scales in 8 bits, rotations in 10, positions in 24.
.sog   PlayCanvas', a third to a tenth of a .ply: positions in 16 bits, the rest in 8.
.glb   glTF with KHR_gaussian_splatting: float32 throughout.
.usd   OpenUSD (.usda, .usdc), float32 throughout; needs pip install usd-core. Written only.
.ksplat is read only, as is the meta.json of an unpacked .sog.

What was left out, and by how much values were rounded, is reported. The mark that splats were trained with
antialiasing is kept where the format has one. A million splats take a few seconds.

Formats differ in their axes. What is -y in a .ply (up in captures) is y in a .spz, .glb, or .usd, where up is
y by specification: coordinates are turned by half a turn, and back, as other converters do. --keep_axes
leaves the numbers alone. --up=-y turns the splats so that -y becomes z, and --up=z:-y so that z becomes -y:
objects of this project, which have z up, then stand upright in viewers. Directions and --crop refer to the
splats as a .ply; --crop applies before anything is turned or scaled.
"""

from pathlib import Path

from absl import flags

_ASCII = flags.DEFINE_bool("ascii", False, "Write a .ply as text.")
_KEEP_AXES = flags.DEFINE_bool(
    "keep_axes", False, "Do not turn coordinates where formats differ in their axes."
)
_UP = flags.DEFINE_string("up", None, "Turn this direction (x, -x, … -z) to z, or with e.g. z:-y z to -y.")
_SCALE = flags.DEFINE_float("scale", 1.0, "Factor to enlarge everything by.")
_CROP = flags.DEFINE_string(
    "crop", None, "Keep only splats with their center in a box: x,y,z,X,Y,Z, minimum and maximum."
)


def main(source: str, target: str) -> None:
    """Convert, and print a summary."""
    from ge3d_jax.formats.axes import NO_TURN, parse_box, parse_up
    from ge3d_jax.runs.convert import convert_splats

    done = convert_splats(
        source,
        target,
        ascii=_ASCII.value,
        keep_axes=_KEEP_AXES.value,
        turn=NO_TURN if _UP.value is None else parse_up(_UP.value),
        scale=_SCALE.value,
        crop=None if _CROP.value is None else parse_box(_CROP.value),
    )
    gaussians = done.gaussians
    print(f"{gaussians.capacity} splats, color of degree {gaussians.sh_degree}, from {source}")
    if done.cropped:
        print(f"  {done.cropped} outside the box were left out")
    print(f"  {target}, {Path(target).stat().st_size / 1e6:.2f} MB")
    for line in done.losses:
        print(f"  {line}")
