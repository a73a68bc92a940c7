"""Make a textured mesh of an object of splats, for programs that do not take splats.

    ge3d mesh outputs/a-red-mushroom-0/object.ply --out=mushroom.glb

.glb  one file, for Blender, game engines, three.js, and most viewers; its material is unlit, since the colors
      already include the light of the pictures.
.obj  with the material in a .mtl and the texture in a .png beside it, for everything else.

This takes about half a minute on two CPU cores. The splats are rendered from 64 sides, and the depths of
these views are fused into a closed surface, which is cleaned of specks, decimated, unwrapped, and painted
with the colors of the views. For a finer mesh: --resolution=256 --triangles=100000 --texture_size=2048.
Meshes have y up and the front at +z, as glTF requires; --up says which way is up in the splats, -y in most
captures. The object must be visible from all sides: of a room you only get the outside.

It needs packages of its own: pip install -r requirements-mesh.txt (2 MB), with Python 3.11 or 3.12.
"""

from absl import flags

_OUT = flags.DEFINE_string("out", None, "A .glb or .obj file; by default <name>-mesh.glb beside the splats.")
_RESOLUTION = flags.DEFINE_integer("resolution", 128, "Cells of the grid along the object's longest edge.")
_TRIANGLES = flags.DEFINE_integer(
    "triangles", 20_000, "Upper limit on the number of triangles, approximately."
)
_TEXTURE_SIZE = flags.DEFINE_integer("texture_size", 1024, "Edge of the texture, pixels.")
_VIEWS = flags.DEFINE_integer("views", 64, "Views that the mesh is made from.")
_UP = flags.DEFINE_string("up", "z", "Up direction of the splats: z, y or -y.")


def main(splats: str) -> None:
    """Make the mesh and print where it is."""
    from ge3d_jax.mesh.build import MeshSettings
    from ge3d_jax.mesh.surface import is_closed
    from ge3d_jax.runs.mesh import export_mesh

    settings = MeshSettings(
        views=_VIEWS.value,
        resolution=_RESOLUTION.value,
        triangles=_TRIANGLES.value,
        texture_size=_TEXTURE_SIZE.value,
    )
    path, mesh = export_mesh(splats, _OUT.value, settings=settings, up=_UP.value)
    print(f"{len(mesh.surface.triangles)} triangles in {path}, {path.stat().st_size / 1e6:.2f} MB")
    if not is_closed(mesh.surface):
        print("  The surface is not closed everywhere: parts of it touch.")
