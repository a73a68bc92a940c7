"""What a run starts from: point clouds, meshes, and Point-E's folder."""

import json
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image

from ge3d_jax.formats.mesh_points import read_mesh, sample_mesh
from ge3d_jax.formats.point_clouds import PointCloud, read_cloud, save_cloud
from ge3d_jax.scenes.start.point_e.files import open_point_e
from tests.fuzz_readers.attempts import Target
from tests.fuzz_readers.damage import Random, damage_bytes, damage_json, damage_tensors
from tests.scenes.start.point_e import small


class Clouds(Target):
    """Point clouds in text and in bytes."""

    def prepare(self) -> None:
        rng = np.random.default_rng(0)
        cloud = PointCloud(rng.normal(size=(9, 3)).astype(np.float32), rng.random((9, 3), np.float32))
        save_cloud(self.folder / "good.ply", cloud)
        binary = (self.folder / "good.ply").read_bytes()
        rows = [f"{x} {y} {z} 255 128 0" for x, y, z in cloud.positions]
        head = binary[: binary.index(b"end_header")].replace(b"binary_little_endian", b"ascii")
        text = head + "\n".join(["end_header", *rows, ""]).encode()
        self.files = [(".ply", binary), (".ply", text), (".xyz", "\n".join(rows).encode())]

    def damage(self, rng: Random) -> list[Path]:
        (suffix, data), (_, other) = (self.files[int(rng.integers(3))] for _ in range(2))
        self.file = self.folder / f"cloud{suffix}"
        self.file.write_bytes(damage_bytes(rng, data, other))
        return [self.file]

    def read(self) -> None:
        assert np.isfinite(read_cloud(self.file).positions).all()


class Meshes(Target):
    """Meshes of all formats, with colors and with a texture."""

    def prepare(self) -> None:
        box = trimesh.creation.box()
        box.visual.vertex_colors = np.arange(32, dtype=np.uint8).reshape(8, 4)
        textured = trimesh.creation.box()
        picture = Image.new("RGB", (4, 4), (200, 100, 50))
        textured.visual = trimesh.visual.TextureVisuals(uv=textured.vertices[:, :2], image=picture)
        kinds = (("glb", textured), ("glb", box), ("obj", box), ("ply", box), ("stl", box))
        self.files = [(f".{kind}", _exported(mesh, kind)) for kind, mesh in kinds]

    def damage(self, rng: Random) -> list[Path]:
        suffix, data = self.files[int(rng.integers(len(self.files)))]
        other = self.files[int(rng.integers(len(self.files)))][1]
        self.file = self.folder / f"mesh{suffix}"
        if suffix == ".glb" and rng.random() < 0.8:
            length = int.from_bytes(data[12:16], "little")
            text = damage_json(rng, json.loads(data[20 : 20 + length]), ("matrix", "normalized", "min"))
            text += b" " * (-len(text) % 4)
            data = data[:12] + len(text).to_bytes(4, "little") + data[16:20] + text + data[20 + length :]
            data = data[:8] + len(data).to_bytes(4, "little") + data[12:]
        else:
            data = damage_bytes(rng, data, other)
        self.file.write_bytes(data)
        return [self.file]

    def read(self) -> None:
        cloud = sample_mesh(read_mesh(self.file), 20, np.random.default_rng(0))
        assert np.isfinite(cloud.positions).all()


def _exported(mesh: trimesh.Trimesh, kind: str) -> bytes:
    data = mesh.export(file_type=kind)
    return data.encode() if isinstance(data, str) else data


class PointE(Target):
    """Point-E's folder: its settings, and the headers of its weights."""

    def prepare(self) -> None:
        self.model = self.folder / "point_e"
        small.save(self.model)
        files = [file for file in sorted(self.model.iterdir()) if file.is_file()]
        self.good = {file.name: file.read_bytes() for file in files}

    def damage(self, rng: Random) -> list[Path]:
        self.restore()
        weights = [name for name in self.good if name.endswith(".safetensors")]
        name = "config.json" if rng.random() < 0.7 else weights[int(rng.integers(len(weights)))]
        data = self.good[name]
        if name == "config.json":
            data = damage_json(rng, json.loads(data), ("layers", "extra"))
        else:
            data = damage_tensors(rng, data, ("x.weight",))
        self.file = self.model / name
        self.file.write_bytes(data)
        return [self.file]

    def restore(self) -> None:
        for name, data in self.good.items():
            (self.model / name).write_bytes(data)

    def read(self) -> None:
        open_point_e(self.model, "")
