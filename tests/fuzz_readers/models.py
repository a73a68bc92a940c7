"""Model folders, tokenizers, and weights in other programs' formats."""

import json
from pathlib import Path

import numpy as np
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict
from safetensors.numpy import save

from ge3d_jax.diffusion.tokenizer import build_tokenizer, prompt_ids
from ge3d_jax.diffusion.weights.checkpoint import load_model
from ge3d_jax.diffusion.weights.clip import load_text_tower, load_vision_tower
from ge3d_jax.diffusion.weights.flax_files import open_flax
from ge3d_jax.diffusion.weights.folder import load_tokenizer
from ge3d_jax.diffusion.weights.single_file import open_single_file
from ge3d_jax.diffusion.weights.torch_files import open_torch_tensors
from tests import open_clip_model, torch_archives
from tests.fuzz_readers.attempts import Target
from tests.fuzz_readers.damage import Random, damage_bytes, damage_json, damage_tensors
from tests.single_files import FIRST, SECOND, original_tensors
from tests.tiny_model import write_tiny_model


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
