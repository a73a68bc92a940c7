"""Pictures, and cameras that go with them or without them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from ge3d_jax.formats.camera_paths import read_camera_path
from ge3d_jax.formats.pictures import read_picture
from ge3d_jax.formats.posed_images import read_posed_images
from tests.fuzz_readers.attempts import Target
from tests.fuzz_readers.damage import Random, damage_bytes, damage_json


def _cameras(count: int) -> list[list[list[float]]]:
    return [[[0, 0, 1, 4 + 0.1 * i], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]] for i in range(count)]


class Transforms(Target):
    """transforms.json with its pictures."""

    keys = (
        "fl_x",
        "camera_angle_y",
        "k1",
        "is_fisheye",
        "mask_path",
        "test_filenames",
        "train_filenames",
        "w",
    )

    def prepare(self) -> None:
        for name in ("a", "b", "c"):
            Image.new("RGBA", (12, 12), (200, 100, 50, 128)).save(self.folder / f"{name}.png")
        Image.new("L", (12, 12), 255).save(self.folder / "mask.png")
        frames = [
            {"file_path": name, "transform_matrix": matrix}
            for name, matrix in zip(("./a", "b.png", "c"), _cameras(3), strict=True)
        ]
        pixels = {
            "fl_x": 20.0,
            "fl_y": 21.0,
            "cx": 6.0,
            "cy": 6.0,
            "w": 12,
            "h": 12,
            "camera_model": "OPENCV",
        }
        own = [dict(frame, **pixels, mask_path="mask.png") for frame in frames]
        lists = {"train_filenames": ["./a", "c"], "test_filenames": ["b.png"], "ply_file_path": "x.ply"}
        self.contents = [
            {"camera_angle_x": 0.6, "frames": frames},
            {**pixels, "k1": 0.0, **lists, "frames": frames},
            {"frames": own, "aabb_scale": 4},
        ]

    def damage(self, rng: Random) -> list[Path]:
        content = self.contents[int(rng.integers(3))]
        data = damage_json(rng, content, self.keys)
        if rng.random() < 0.1:
            data = damage_bytes(rng, data, data)
        (self.folder / "transforms.json").write_bytes(data)
        return [self.folder / "transforms.json"]

    def read(self) -> None:
        read_posed_images(self.folder)


class CameraPaths(Target):
    """Camera paths of three kinds."""

    keys = ("fov", "frames", "camera_path", "render_width", "position", "default_fov", "camera_type", "fl_x")

    def prepare(self) -> None:
        flat = [[number for row in matrix for number in row] for matrix in _cameras(3)]
        steps = [{"camera_to_world": one, "fov": 50, "aspect": 1.5} for one in flat]
        size = {"render_height": 32, "render_width": 48, "default_fov": 75.0, "camera_type": "perspective"}
        camera = {"id": 0, "width": 32, "height": 32, "fx": 40.0, "fy": 41.0, "position": [0, 0, 4]}
        camera["rotation"] = [[1, 0, 0], [0, -1, 0], [0, 0, -1]]
        self.contents = [
            {"camera_angle_x": 0.6, "frames": [{"transform_matrix": one} for one in _cameras(3)]},
            {**size, "keyframes": [], "camera_path": steps},
            [camera, camera | {"fx": 50.0}],
        ]

    def damage(self, rng: Random) -> list[Path]:
        data = damage_json(rng, self.contents[int(rng.integers(3))], self.keys)
        if rng.random() < 0.1:
            data = damage_bytes(rng, data, data)
        (self.folder / "path.json").write_bytes(data)
        return [self.folder / "path.json"]

    def read(self) -> None:
        read_camera_path(self.folder / "path.json", size=(48, 32))


class Pictures(Target):
    """Pictures of many formats and modes."""

    def prepare(self) -> None:
        rng = np.random.default_rng(0)
        color = Image.fromarray(rng.integers(0, 256, (24, 20, 4), dtype=np.uint8))
        wide = Image.fromarray(rng.integers(0, 65536, (24, 20), dtype=np.uint16))
        tags = Image.Exif()
        tags[0x0112] = 6
        self.files: list[bytes] = []
        for image, kind, options in (
            (color, "PNG", {"exif": tags}),
            (color.convert("RGB"), "JPEG", {"exif": tags}),
            (color.convert("CMYK"), "JPEG", {}),
            (color, "WEBP", {"lossless": True, "exif": tags}),
            (
                color.convert("P"),
                "GIF",
                {"save_all": True, "append_images": [color.convert("L").convert("P")]},
            ),
            (wide, "PNG", {"transparency": 7}),
            (wide, "TIFF", {}),
            (color.convert("RGB"), "TIFF", {"compression": "tiff_lzw", "exif": tags}),
            (color.convert("CMYK"), "TIFF", {"compression": "tiff_adobe_deflate"}),
            (color.convert("RGB"), "BMP", {}),
            (color.convert("RGB"), "PPM", {}),
            (color, "TGA", {}),
            (color.convert("P"), "PNG", {"transparency": 0}),
            (color.convert("1"), "PNG", {}),
        ):
            image.save(stream := io.BytesIO(), format=kind, **options)
            self.files.append(stream.getvalue())

    def damage(self, rng: Random) -> list[Path]:
        data, other = (self.files[int(rng.integers(len(self.files)))] for _ in range(2))
        (self.folder / "picture").write_bytes(damage_bytes(rng, data, other))
        return [self.folder / "picture"]

    def read(self) -> None:
        read_picture(self.folder / "picture")
