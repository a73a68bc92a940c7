"""Fuzzing of all readers except those of splat files (`tests/formats/fuzz.py`).

    python -m tests.fuzz_readers --reader=model --count=10000

Each input starts as a valid one. Its JSON values are replaced by ones of different type, size or sign, or are
removed, renamed or swapped, and bytes are flipped, cut and spliced. Reading must succeed or give a one-line
UserError, without other exceptions and without much time or memory. Faulty inputs are kept and counted. A
hundred thousand inputs take some minutes per reader, ten thousand models a quarter of an hour; the tests run
only a few.
"""

import argparse
import contextlib
import copy
import dataclasses
import io
import json
import math
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict
from PIL import Image
from safetensors.numpy import save

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import to_tree
from ge3d_jax.diffusion.networks.unet import UNetConfig
from ge3d_jax.diffusion.tokenizer import build_tokenizer, prompt_ids
from ge3d_jax.diffusion.weights.checkpoint import load_model
from ge3d_jax.diffusion.weights.clip import load_text_tower, load_vision_tower
from ge3d_jax.diffusion.weights.flax_files import open_flax
from ge3d_jax.diffusion.weights.folder import load_tokenizer
from ge3d_jax.diffusion.weights.lora import Targets, lora_edits
from ge3d_jax.diffusion.weights.single_file import open_single_file
from ge3d_jax.diffusion.weights.tensor_files import open_tensors
from ge3d_jax.diffusion.weights.textual_inversion import add_words
from ge3d_jax.diffusion.weights.torch_files import open_torch_tensors
from ge3d_jax.formats.camera_paths import read_camera_path
from ge3d_jax.formats.pictures import read_picture
from ge3d_jax.formats.posed_images import read_posed_images
from ge3d_jax.runs.asked import asked_by_file, asked_by_preset
from tests import open_clip_model, torch_archives
from tests.formats.fuzz import cut, double, edit_numbers, flip, splice
from tests.single_files import FIRST, SECOND, original_tensors
from tests.tiny_model import write_tiny_model

Random = np.random.Generator

# CPU time, far more than any input takes, and seconds after which a reader counts as hanging.
SLOWEST_SECONDS = 4.0
HANGS_SECONDS = 30
# Address space in addition to that of the starting process; an input takes a few kilobytes.
FREE_BYTES = 2**31

NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 64, 0.5, -0.5, 1e30, 10**30, -(10**30), 2**31, 2**63, 10**400),
    *(float("inf"), -float("inf"), float("nan"), 1e-300, 1e300, 1.0000001, 2.0),
    *("", "x", "1", "nan", "\0", "\ud800", "a" * 3000, "../x", "/etc/passwd", "C:\\x.png", "a\nb", "%00"),
    *([], {}, [[]], [1], [None], ["x"], {"a": 1}, [1, 2], [0] * 3000, [[1, 2], [3]], {"": {}}),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values within a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


def _parent(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        content = content[key]
    return content


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def damage_json(rng: Random, content: Any, keys: tuple[str, ...]) -> bytes:
    """Change one to three values of the JSON `content`; `keys` are names to add."""
    content = copy.deepcopy(content)
    for _ in range(int(rng.integers(1, 4))):
        places = list(_places(content))
        if not places:
            break
        path = places[int(rng.integers(len(places)))]
        parent, kind = _parent(content, path), rng.random()
        nasty = (
            NASTY[int(rng.integers(len(NASTY)))] if rng.random() < 0.97 else _nested(int(rng.integers(100)))
        )
        if kind < 0.6:
            parent[path[-1]] = copy.deepcopy(nasty)
        elif kind < 0.7:
            del parent[path[-1]]
        elif kind < 0.8 and isinstance(parent, dict) and keys:
            parent[keys[int(rng.integers(len(keys)))]] = copy.deepcopy(nasty)
        elif kind < 0.9:
            other = places[int(rng.integers(len(places)))]
            try:
                parent[path[-1]] = copy.deepcopy(_parent(content, other)[other[-1]])
            except (KeyError, IndexError, TypeError):
                continue
        elif isinstance(parent, list):
            parent[path[-1] : path[-1]] = [copy.deepcopy(parent[path[-1]])] * int(rng.integers(1, 30))
        elif isinstance(parent[path[-1]], float) or type(parent[path[-1]]) is int:
            factors = (-1, 0, 2, 0.1, 10**3, 10**9)
            with contextlib.suppress(OverflowError):
                parent[path[-1]] = parent[path[-1]] * factors[int(rng.integers(len(factors)))]
    text = json.dumps(content)
    if rng.random() < 0.01:
        text = text.replace(": ", ": " + "[" * 10**5, 1)
    encoding = rng.choice(["utf-8"] * 20 + ["utf-16", "utf-8-sig", "utf-32"])
    return text.encode(str(encoding))


def damage_bytes(rng: Random, data: bytes, other: bytes) -> bytes:
    """Change, cut, repeat or swap bytes."""
    ways = (flip, flip, cut, double, splice, edit_numbers)
    for _ in range(int(rng.integers(1, 3))):
        data = ways[int(rng.integers(len(ways)))](rng, data, other) or b"\0"
    return data


def damage_tensors(rng: Random, data: bytes, names: tuple[str, ...]) -> bytes:
    """Change the header's JSON or the bytes of a safetensors file."""
    if rng.random() < 0.4:
        return damage_bytes(rng, data, data)
    length = int.from_bytes(data[:8], "little")
    header = damage_json(rng, json.loads(data[8 : 8 + length]), (*names, "dtype", "shape", "data_offsets"))
    rest = data[8 + length :]
    if rng.random() < 0.2:
        rest = bytes(rng.integers(0, 256, len(rest), dtype=np.uint8))
    return len(header).to_bytes(8, "little") + header + rest


@dataclasses.dataclass
class Outcome:
    """Results of a run.

    Attributes:
        files: number of inputs tried. read: number of inputs that were readable nevertheless.
        tracebacks, hangs, overallocations, messages: faults, the last kind being messages of several lines or
            of great length; the first few are described in `examples`.
        slowest_seconds: maximum CPU time of an input.
        grown_bytes: growth of the process' resident memory.
    """

    files: int = 0
    read: int = 0
    tracebacks: int = 0
    hangs: int = 0
    overallocations: int = 0
    messages: int = 0
    slowest_seconds: float = 0.0
    grown_bytes: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)

    @property
    def faults(self) -> int:
        """Total number of faults."""
        return self.tracebacks + self.hangs + self.overallocations + self.messages


class Target:
    """A reader and its inputs, in a separate folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prepare()

    def prepare(self) -> None:
        """Write the files that valid inputs need."""

    def damage(self, rng: Random) -> list[Path]:
        """Write a damaged input; returns the files that differ from valid ones."""
        raise NotImplementedError

    def read(self) -> None:
        """Read the input as scripts do."""
        raise NotImplementedError

    def restore(self) -> None:
        """Undo the damage, unless the next damage does."""


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


class Models(Target):
    """The JSON files, tokenizer and weight headers of a model's folder."""

    keys = (
        "addition_embed_type",
        "trained_betas",
        "rescale_betas_zero_snr",
        "timestep_spacing",
        "dtype",
        "extra",
    )

    def prepare(self) -> None:
        write_tiny_model(self.folder / "model")
        self.model = self.folder / "model"
        (self.model / "toybox.json").unlink()
        self.good = {
            file.relative_to(self.model).as_posix(): file.read_bytes()
            for file in self.model.rglob("*")
            if file.is_file()
        }
        small = [name for name in sorted(self.good) if name.endswith(".json") and "tokenizer" not in name]
        # Files that define the model are used several times, the others once.
        self.order = small * 6 + sorted(self.good)

    def damage(self, rng: Random) -> list[Path]:
        self.restore()
        self.changed = []
        for _ in range(1 if rng.random() < 0.8 else 2):
            name = self.order[int(rng.integers(len(self.order)))]
            data = self.good[name]
            if name.endswith(".safetensors"):
                data = damage_tensors(rng, data, ("x.weight",))
            elif name.endswith(".json") and rng.random() < 0.95:
                data = damage_json(rng, json.loads(data), self.keys)
            else:
                data = damage_bytes(rng, data, data)
            (self.model / name).write_bytes(data)
            self.changed.append(name)
        return [self.model / name for name in self.changed]

    def restore(self) -> None:
        for name in getattr(self, "changed", ()):
            (self.model / name).write_bytes(self.good[name])

    def read(self) -> None:
        load_model(self.model)


class Tokenizers(Target):
    """A tokenizer's folder and a prompt."""

    def prepare(self) -> None:
        self.model = self.folder / "tokenizer"
        build_tokenizer(("a", "red", "mushroom"), self.model, max_length=12)
        (self.model / "added_tokens.json").write_text(json.dumps({"<frida>": 523}))
        self.good = {file.name: file.read_bytes() for file in self.model.iterdir()}

    def damage(self, rng: Random) -> list[Path]:
        for name, data in self.good.items():
            (self.model / name).write_bytes(data)
        name = sorted(self.good)[int(rng.integers(len(self.good)))]
        data = self.good[name]
        if name.endswith(".json") and name != "vocab.json" and rng.random() < 0.9:
            data = damage_json(
                rng, json.loads(data), ("unk_token", "extra_special_tokens", "added_tokens_decoder")
            )
        elif name == "vocab.json" and rng.random() < 0.7:
            data = damage_json(rng, json.loads(data), ())
        else:
            data = damage_bytes(rng, data, data)
        (self.model / name).write_bytes(data)
        return [self.model / name]

    def read(self) -> None:
        tokenizer = load_tokenizer(self.model)
        prompt_ids(tokenizer, ["a red <frida> mushroom", ""], int(min(tokenizer.model_max_length, 12)))


class Loras(Target):
    """LoRA files of several layouts, merged."""

    def prepare(self) -> None:
        unet = {
            "conv_in.weight": (16, 4, 3, 3),
            "conv_in.bias": (16,),
            "conv_norm_out.weight": (16,),
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": (16, 16),
        }
        text = {"encoder.layers.0.mlp.fc1.weight": (40, 12), "encoder.layers.0.mlp.fc1.bias": (40,)}
        weights = {}
        for part, shapes in (("unet", unet), ("text", text)):
            file = self.folder / f"{part}.safetensors"
            file.write_bytes(save({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}))
            weights[part] = open_tensors(file)
        self.targets = Targets(weights["unet"], weights["text"], UNetConfig())
        q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
        ones = np.ones
        first = {
            f"{q}.lora_down.weight": ones((2, 16), np.float32),
            f"{q}.lora_up.weight": ones((16, 2), np.float16),
            f"{q}.alpha": ones((), np.float32),
            "lora_unet_conv_in.lora_down.weight": ones((2, 4, 1, 1), np.float32),
            "lora_unet_conv_in.lora_up.weight": ones((16, 3, 1, 1), np.float32),
            "lora_unet_conv_in.lora_mid.weight": ones((3, 2, 3, 3), np.float32),
            "lora_te_text_model_encoder_layers_0_mlp_fc1.diff": ones((40, 12), np.float32),
            "lora_te_text_model_encoder_layers_0_mlp_fc1.diff_b": ones((40,), np.float32),
            "lora_unet_conv_norm_out.w_norm": ones((16,), np.float32),
        }
        second = {
            "unet.conv_in.lora_A.weight": ones((2, 4, 3, 3), np.float32),
            "unet.conv_in.lora_B.weight": ones((16, 2, 1, 1), np.float32),
        }
        notes = {"unet.lora_alpha": 4, "unet.alpha_pattern": {".*conv.*|fc1": 9}, "unet.use_rslora": True}
        self.files = [save(first), save(second, {"lora_adapter_metadata": json.dumps(notes)})]
        self.notes = notes

    def damage(self, rng: Random) -> list[Path]:
        if rng.random() < 0.2:
            text = damage_json(rng, self.notes, ()).decode(errors="replace")
            second = {"unet.conv_in.lora_A.weight": np.ones((2, 4, 3, 3), np.float32)}
            second["unet.conv_in.lora_B.weight"] = np.ones((16, 2, 1, 1), np.float32)
            data = save(second, {"lora_adapter_metadata": text})
        else:
            data = damage_tensors(
                rng, self.files[int(rng.integers(2))], ("unet.conv_in.hada_w1_a", "x.alpha")
            )
        (self.folder / "lora.safetensors").write_bytes(data)
        return [self.folder / "lora.safetensors"]

    def read(self) -> None:
        edits = lora_edits([(self.folder / "lora.safetensors", 0.5)], self.targets)
        for part, several in edits.items():
            for name, changes in several.items():
                shape = getattr(self.targets, part)[name].shape
                for change in changes:
                    assert change(np.zeros(shape, np.float32)).shape == shape


class Embeddings(Target):
    """Textual inversions, added to a tokenizer."""

    def prepare(self) -> None:
        self.tokenizer = build_tokenizer(("a", "red"), self.folder / "tokenizer", max_length=12)
        self.state = self.tokenizer.backend_tokenizer.normalizer
        three = np.ones((3, 12), np.float32)
        contents = ({"<cat>": three}, {"emb_params": three}, {"string_to_param.*": three[0]})
        self.files = [save(content) for content in contents]

    def damage(self, rng: Random) -> list[Path]:
        data = damage_tensors(rng, self.files[int(rng.integers(3))], ("<dog>", "clip_g"))
        (self.folder / "word.safetensors").write_bytes(data)
        return [self.folder / "word.safetensors"]

    def read(self) -> None:
        backend = self.tokenizer.backend_tokenizer
        try:
            edit, rows = add_words(self.tokenizer, [self.folder / "word.safetensors"], 12, 600)
            assert edit(np.zeros((600, 12), np.float32)).shape == (rows, 12)
        finally:
            backend.normalizer = self.state


class Flax(Target):
    """Weights for Flax."""

    def prepare(self) -> None:
        tree = unflatten_dict(
            {
                ("down_blocks_0", "resnets_0", "conv1", "kernel"): np.ones((3, 3, 2, 4), np.float32),
                ("down_blocks_0", "resnets_0", "conv1", "bias"): np.ones(4, np.float16),
                ("conv_norm_out", "scale"): np.ones(4, np.float32),
                ("layers", "0", "fc1", "kernel"): np.ones((2, 3), np.float32),
            }
        )
        self.files = [msgpack_serialize(tree), msgpack_serialize({"a/b/kernel": np.ones((2, 2))})]

    def damage(self, rng: Random) -> list[Path]:
        data, other = (self.files[int(rng.integers(2))] for _ in range(2))
        (self.folder / "model.msgpack").write_bytes(damage_bytes(rng, data, other))
        return [self.folder / "model.msgpack"]

    def read(self) -> None:
        for tensor in open_flax(self.folder / "model.msgpack").values():
            assert tensor.read().shape == tensor.shape


class SingleFiles(Target):
    """Single-file checkpoints: names, shapes and types in the header, and the files next to it."""

    def prepare(self) -> None:
        build_tokenizer(("a", "red"), self.folder / "tokenizer", max_length=12)
        self.files = {name: save(original_tensors(kind)) for name, kind in (("a", FIRST), ("b_512", SECOND))}

    def damage(self, rng: Random) -> list[Path]:
        for file in (*self.folder.glob("*.safetensors"), *self.folder.glob("*.yaml")):
            file.unlink()
        name = ("a", "b_512")[int(rng.integers(2))]
        self.file = self.folder / f"{name}.safetensors"
        self.file.write_bytes(damage_tensors(rng, self.files[name], ("v_pred", "ztsnr", "__metadata__")))
        if rng.random() < 0.2:
            notes = b"model:\n  params:\n    parameterization: 'v'\n"
            self.file.with_suffix(".yaml").write_bytes(damage_bytes(rng, notes, notes))
        return [self.file]

    def read(self) -> None:
        open_single_file(self.file)


class TorchFiles(Target):
    """Files of PyTorch: archives with damaged descriptions, and the bytes of all forms."""

    def prepare(self) -> None:
        arrays = {"a.weight": np.ones((3, 4), np.float32), "a.bias": np.ones(4, np.float16)}
        self.file, self.arrays = self.folder / "model.pt", arrays
        forms = (torch_archives.save_arrays, torch_archives.save_older_arrays)
        self.files = [write(self.file, arrays).read_bytes() for write in forms]
        tensors = {
            name: torch_archives.tensor(str(place), array.dtype.name, array.size, array.shape)
            for place, (name, array) in enumerate(arrays.items())
        }
        plain = torch_archives.mapping(tensors)
        module = torch_archives.name("__torch__", "Net") + b")\x81" + plain + b"b"
        self.contents = [plain, torch_archives.mapping({"state_dict": plain}), module]

    def damage(self, rng: Random) -> list[Path]:
        if rng.random() < 0.3:
            data, other = (self.files[int(rng.integers(2))] for _ in range(2))
            self.file.write_bytes(damage_bytes(rng, data, other))
        else:
            content, other = (self.contents[int(rng.integers(3))] for _ in range(2))
            members = {str(place): array.tobytes() for place, array in enumerate(self.arrays.values())}
            torch_archives.write(self.file, damage_bytes(rng, content, other), members)
        return [self.file]

    def read(self) -> None:
        for tensor in open_torch_tensors(self.file, inside="state_dict").values():
            assert tensor.read().shape == tensor.shape


class ClipFiles(Target):
    """CLIP in a single file: names, shapes and types in the header, and the notes next to it."""

    def prepare(self) -> None:
        build_tokenizer(("a", "red"), self.folder / "tokenizer", max_length=12)
        self.file, self.notes = self.folder / "laion.safetensors", self.folder / "open_clip_config.json"
        self.data = save(open_clip_model.tensors(width=64))
        self.config = {"model_cfg": {"embed_dim": 12, "quick_gelu": True, "text_cfg": {"layers": 2}}}

    def damage(self, rng: Random) -> list[Path]:
        self.notes.unlink(missing_ok=True)
        names = ("input_resolution", "transformer.resblocks.1.attn_mask", "visual.ln_pre.bias")
        self.file.write_bytes(damage_tensors(rng, self.data, names))
        if rng.random() < 0.2:
            self.notes.write_bytes(damage_json(rng, self.config, ("quick_gelu", "model_cfg")))
            return [self.file, self.notes]
        return [self.file]

    def read(self) -> None:
        load_text_tower(self.file)
        load_vision_tower(self.file)


class Runs(Target):
    """The config.json of an earlier run."""

    keys = ("start", "loras", "textual_inversions", "dtype", "kind", "density")

    def prepare(self) -> None:
        asked = asked_by_preset(None, guidance=None, density=None, overrides=None)
        settings = to_tree(asked.settings)
        self.content = {"prompt": "a red mushroom", "seed": 3, "preset": asked.preset, "settings": settings}
        self.content |= {
            "model": "toybox",
            "dtype": "float32",
            "loras": [["a.safetensors", 1.0]],
            "start": None,
        }

    def damage(self, rng: Random) -> list[Path]:
        data = damage_json(rng, self.content, self.keys)
        if rng.random() < 0.1:
            data = damage_bytes(rng, data, data)
        (self.folder / "config.json").write_bytes(data)
        return [self.folder / "config.json"]

    def read(self) -> None:
        asked_by_file(self.folder / "config.json", overrides=None)


READERS: dict[str, type[Target]] = {
    "run": Runs,
    "transforms": Transforms,
    "camera_path": CameraPaths,
    "picture": Pictures,
    "model": Models,
    "tokenizer": Tokenizers,
    "lora": Loras,
    "embedding": Embeddings,
    "flax": Flax,
    "single_file": SingleFiles,
    "torch": TorchFiles,
    "clip": ClipFiles,
}


class _Hang(Exception):
    pass


def _on_alarm(number: int, frame: object) -> None:
    raise _Hang


def attempt(read: Callable[[], None], outcome: Outcome, describe: Callable[[str], str]) -> None:
    """Read one input, and count its outcome."""
    start, fault = time.process_time(), None
    signal.alarm(HANGS_SECONDS)
    try:
        read()
        outcome.read += 1
    except UserError as error:
        if "\n" in str(error) or len(str(error)) > 1500:
            outcome.messages += 1
            fault = f"a message of {len(str(error))} characters: {str(error)[:300]!r}"
    except MemoryError:
        outcome.overallocations += 1
        fault = traceback.format_exc(limit=-3)
    except _Hang:
        outcome.hangs += 1
        fault = traceback.format_exc(limit=-3)
    except BaseException:
        outcome.tracebacks += 1
        fault = traceback.format_exc(limit=-3)
    finally:
        signal.alarm(0)
    seconds = time.process_time() - start
    if fault is None and seconds > SLOWEST_SECONDS:
        outcome.hangs += 1
        fault = f"{seconds:.1f} s"
    outcome.files += 1
    outcome.slowest_seconds = max(outcome.slowest_seconds, seconds)
    if fault is not None and len(outcome.examples) < 20:
        outcome.examples.append(describe(fault))


def fuzz(reader: str, count: int, folder: Path, seed: int = 0, seconds: float = math.inf) -> Outcome:
    """Read `count` damaged inputs, or as many as `seconds` allow, and keep faulty ones in `folder`/faults."""
    end = time.monotonic() + seconds
    rng, target, outcome = np.random.default_rng(seed), READERS[reader](folder), Outcome()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, _on_alarm)
    try:
        for number in range(count):
            if time.monotonic() > end:
                break
            files = target.damage(rng)

            def describe(fault: str, number: int = number, files: list[Path] = files) -> str:
                kept = folder / "faults" / str(number)
                kept.mkdir(parents=True, exist_ok=True)
                for file in files:
                    shutil.copy(file, kept)
                return f"{kept} ({', '.join(file.name for file in files)}): {fault}"

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                attempt(target.read, outcome, describe)
    finally:
        signal.signal(signal.SIGALRM, handler)
        target.restore()
    outcome.grown_bytes = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return outcome


def main() -> None:
    """Run with a limited address space, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reader", choices=READERS, required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after these")
    arguments = parser.parse_args()
    fuzz(arguments.reader, 3, Path(tempfile.mkdtemp(prefix="fuzz-")))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + FREE_BYTES, resource.RLIM_INFINITY))
    start = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{arguments.reader}-"))
    outcome = fuzz(arguments.reader, arguments.count, folder, arguments.seed, arguments.seconds)
    examples, outcome.examples = outcome.examples, []
    print(f"{arguments.reader}: {outcome}, {time.monotonic() - start:.0f} s")
    print("\n".join(examples))
    sys.exit(outcome.faults > 0)


if __name__ == "__main__":
    main()
