"""A CLIP model with random weights in transformers' layout, small enough for every test."""

import json
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from ge3d_jax.diffusion.networks.text_encoder import CLIPTextConfig, CLIPTextFeatures
from ge3d_jax.diffusion.networks.vision_encoder import CLIPVisionConfig, CLIPVisionFeatures
from ge3d_jax.diffusion.tokenizer import build_tokenizer
from ge3d_jax.diffusion.weights.clip import text_shapes, vision_shapes
from ge3d_jax.diffusion.weights.parameters import tensor_name
from tests.reference_models import random_array

GOLDEN_FILE = Path(__file__).parent / "golden" / "clip.npz"
WORDS = ("red", "blue", "mushroom", "robot", "a", "with")
TEXTS = ["a red mushroom", "a blue robot with a red", ""]
PROJECTION = 12
VISION = CLIPVisionConfig(
    hidden_size=24,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=16,
    patch_size=8,
)


def text_config(vocabulary, activation="quick_gelu"):
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        hidden_act=activation,
    )


def _arrays(shapes):
    found = {}
    for path, leaf in flatten_dict(shapes).items():
        name = tensor_name(path)
        shape = leaf.shape
        if path[-1] == "kernel":
            shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        value = random_array(name, shape)
        # Norm scales are around 1, because activations would vanish otherwise.
        found[name] = (1.0 + 0.2 * value if path[-1] == "scale" else 0.3 * value).astype(np.float32)
    return found


def save(folder, activation="quick_gelu"):
    """Write a model folder; both towers use the same activation."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(WORDS, folder, 12)
    text = text_config(len(tokenizer), activation)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    vision = {**vars(VISION), "hidden_act": activation}
    config = {
        "model_type": "clip",
        "projection_dim": PROJECTION,
        "text_config": {**vars(text), **ends, "projection_dim": PROJECTION, "top_k": 50},
        "vision_config": {**vision, "projection_dim": PROJECTION},
    }
    (folder / "config.json").write_text(json.dumps(config))
    arrays = {
        **_arrays(text_shapes(CLIPTextFeatures(text, PROJECTION))),
        **_arrays(vision_shapes(CLIPVisionFeatures(VISION, PROJECTION))),
        "logit_scale": np.asarray(4.6, np.float32),
    }
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def pictures():
    """Three pictures, of which the last is wider than high."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((16, 16, 3), (24, 24, 3), (20, 33, 3))]
