"""Measure meshes of splats: against the splats' own pictures, and against the true surface of the toy world.

    python experiments/evaluate_mesh.py --out=docs/mesh \
        --object="a red mushroom=outputs/a-red-mushroom-0/object.ply"

--object is a sentence that the toy world knows and the splats that it describes; it may be repeated. Each
object takes about a minute on two CPU cores. The folder then holds table.md and meshes.png: for each object
the splats and, below them, the mesh, from cameras that had no part in making it. Meshes are written as .glb,
opened by trimesh, and drawn by a renderer made for this purpose.

closed     whether every edge belongs to two triangles, once vertices on the texture's borders are merged
PSNR       between pictures of the mesh and of the splats, 128 pixels on white: mean and least of six cameras
surface    mean distance between the mesh and the true surface, both ways, over the longest edge of the true
           object; in parentheses the same for the splats' own depths, by which the object itself differs
"""

from pathlib import Path

from absl import flags

from ge3d_jax.cli import script

_OBJECT = flags.DEFINE_multi_string("object", None, '"sentence=splats"; may be repeated.')
_OUT = flags.DEFINE_string("out", "outputs/meshes", "Folder to write to.")

_SIZE = 128
# Azimuth and polar angle of the cameras, radians.
_CAMERAS = ((0.25, 1.2), (1.3, 1.0), (2.4, 1.35), (3.4, 0.8), (4.5, 1.25), (5.6, 1.1))
_SAMPLES = 20_000
_HEADER = (
    "| object | splats | closed | PSNR, mean (least) | surface (splats) | triangles | .glb | time |\n"
    "|---|---|---|---|---|---|---|---|\n"
)


def _measure(prompt: str, splats: str, folder: Path) -> tuple[str, list]:
    """A row of the table, and pictures: those of the splats, then those of the mesh."""
    import time

    import jax
    import jax.numpy as jnp
    import numpy as np
    import trimesh
    from benchmarks.mesh_pictures import draw_mesh, open_mesh

    from ge3d_jax.formats.splats import load_splats
    from ge3d_jax.metrics.likeness import chamfer, measure_likeness, size_of
    from ge3d_jax.metrics.pictures import psnr
    from ge3d_jax.runs.mesh import export_mesh
    from ge3d_jax.splatting.cameras import orbit_camera
    from ge3d_jax.splatting.rasterize import render_image
    from ge3d_jax.toybox.world.captions import parse
    from ge3d_jax.toybox.world.render import FIELD_OF_VIEW, surface

    sentence = parse(prompt)
    begin = time.perf_counter()
    path, _ = export_mesh(splats, folder / f"{Path(splats).resolve().parent.name}.glb")
    seconds = time.perf_counter() - begin
    mesh, gaussians = open_mesh(path), load_splats(splats)
    cameras = [
        orbit_camera(azimuth=azimuth, polar=polar, radius=3.5, fov=FIELD_OF_VIEW, size=_SIZE)
        for azimuth, polar in _CAMERAS
    ]
    shown, drawn, true_points = [], [], []
    for camera in cameras:
        rendered = render_image(gaussians, camera, background=jnp.ones(3))
        shown.append(np.clip(rendered.rgb, 0.0, 1.0))
        matrix, intrinsics = np.asarray(camera.world_to_camera), np.asarray(camera.intrinsics)
        drawn.append(draw_mesh(mesh, matrix, intrinsics, size=_SIZE))
        points, hit = surface(sentence.kind, camera)
        true_points.append(np.asarray(points)[np.asarray(hit)])
    likeness = [
        float(psnr(jnp.asarray(ours), jnp.asarray(theirs))) for ours, theirs in zip(drawn, shown, strict=True)
    ]
    true = np.concatenate(true_points)
    samples, _ = trimesh.sample.sample_surface(mesh.closed, _SAMPLES, seed=0)
    off = chamfer(np.asarray(samples), true) / size_of(true)
    own = measure_likeness(gaussians, sentence, jax.tree.map(lambda *one: jnp.stack(one), *cameras))[
        "chamfer"
    ]
    row = (
        f"| {prompt} | {gaussians.capacity} | {'yes' if mesh.closed.is_watertight else 'no'} "
        f"| {np.mean(likeness):.1f} ({min(likeness):.1f}) dB | {100 * off:.1f} % "
        f"({100 * (own or 0.0):.1f} %) "
        f"| {len(mesh.triangles)} | {path.stat().st_size / 1e6:.1f} MB | {seconds:.0f} s |\n"
    )
    return row, [*shown, *drawn]


def main() -> None:
    """Measure each object; write the table and the picture."""
    from ge3d_jax.core.errors import UserError
    from ge3d_jax.core.files import atomic_path
    from ge3d_jax.mesh.packages import check_packages
    from ge3d_jax.runs.folder import prepare_folder
    from ge3d_jax.viewer.sheet import image_grid, save_png, to_uint8

    check_packages()
    pairs = [text.partition("=") for text in _OBJECT.value or ()]
    if not pairs or not all(equals for _, equals, _ in pairs):
        raise UserError('--object is missing or has no "="; give --object="a red mushroom=object.ply".')
    folder = prepare_folder(_OUT.value)
    rows, pictures, labels = [], [], []
    for prompt, _, splats in pairs:
        row, some = _measure(prompt, splats, prepare_folder(folder / "files"))
        print(row, end="", flush=True)
        rows.append(row)
        pictures += some
        labels += ["splats"] * len(_CAMERAS) + ["mesh"] * len(_CAMERAS)
        # After each object, since there may be many.
        with atomic_path(folder / "table.md") as temporary:
            temporary.write_text(_HEADER + "".join(rows), encoding="utf-8")
        save_png(
            folder / "meshes.png",
            image_grid([to_uint8(one) for one in pictures], labels, columns=len(_CAMERAS)),
        )
    print(f"  {folder / 'table.md'}, {folder / 'meshes.png'}")


if __name__ == "__main__":
    script.run(main)
