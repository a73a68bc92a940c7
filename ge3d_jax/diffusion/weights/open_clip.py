"""Tensors with the names of OpenCLIP and of OpenAI's CLIP, by transformers' names.

| theirs | here |
|---|---|
| transformer.resblocks.N.attn.in_proj_* | encoder.layers.N.self_attn.{q,k,v}_proj.*, a third of the rows |
| text_projection, visual.proj | text_projection.weight, visual_projection.weight, transposed |
| visual.conv1, ln_pre, ln_post | embeddings.patch_embedding, pre_layrnorm, post_layernorm |
| token_embedding, ln_final | embeddings.token_embedding, final_layer_norm |
"""

import re
from collections.abc import Mapping

from ge3d_jax.diffusion.weights.tensor_files import StoredTensor

Tensors = Mapping[str, StoredTensor]

TEXT_PROJECTION, VISION_PROJECTION = "text_projection.weight", "visual_projection.weight"
_LAYER_PARTS = {
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_TEXT_PARTS = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding",
    "final_layer_norm": "ln_final",
    **_LAYER_PARTS,
}
_VISION_PARTS = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding": "conv1",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post",
    **_LAYER_PARTS,
}
# What texts and images are compared with, outside both encoders.
_HEADS = ("text_projection", "proj", "logit_scale", "logit_bias")


def replace_parts(name: str, parts: Mapping[str, str]) -> str:
    """Replace whole dot-separated parts of a name, each key by its value."""
    for found, wanted in parts.items():
        name = re.sub(rf"(?<![^.]){re.escape(found)}(?![^.])", wanted, name)
    return name


def count_layers(tensors: Tensors, pattern: str) -> int:
    """Return one more than the largest number that the group of `pattern` matches at the start of a name."""
    found = (re.match(pattern, name) for name in tensors)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _encoder_tensors(stored: Tensors, parts: Mapping[str, str]) -> dict[str, StoredTensor]:
    modern = {old: new for new, old in parts.items()}
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        fused = re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name)
        if name in _HEADS:
            continue
        if fused is None:
            tensors[replace_parts(name, modern)] = tensor
            continue
        width = tensor.shape[0] // 3
        for place, letter in enumerate("qkv"):
            new = f"encoder.layers.{fused[1]}.self_attn.{letter}_proj.{fused[2]}"
            tensors[new] = tensor.take_rows(place * width, (place + 1) * width)
    return tensors


def text_tensors(stored: Tensors) -> dict[str, StoredTensor]:
    """Return a text encoder's tensors, without its projection, by transformers' names without prefix."""
    return _encoder_tensors(stored, _TEXT_PARTS)


def vision_tensors(stored: Tensors) -> dict[str, StoredTensor]:
    """Return an image encoder's tensors, given and returned without prefix, without its projection."""
    return _encoder_tensors(stored, _VISION_PARTS)
