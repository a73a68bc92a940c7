"""What people add to a model: LoRA files and textual inversions."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ge3d_jax.diffusion.networks.unet import UNetConfig
from ge3d_jax.diffusion.tokenizer import build_tokenizer
from ge3d_jax.diffusion.weights.lora import Targets, lora_edits
from ge3d_jax.diffusion.weights.tensor_files import open_tensors
from ge3d_jax.diffusion.weights.textual_inversion import add_words
from tests.fuzz_readers.attempts import Target
from tests.fuzz_readers.damage import Random, damage_json, damage_tensors


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
