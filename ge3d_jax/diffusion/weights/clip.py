"""CLIP encoders, for anything that needs features of texts or images; see `clip_files` for where from.

The text encoder of a Stable Diffusion model, `text_encoder/` with `tokenizer/` beside it, has no projection:
its feature is the hidden state of the end token.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.errors import UserError, shown
from ge3d_jax.diffusion.networks.text_encoder import CLIPTextConfig, CLIPTextFeatures
from ge3d_jax.diffusion.networks.vision_encoder import (
    CLIPVisionConfig,
    CLIPVisionFeatures,
    prepare_picture,
)
from ge3d_jax.diffusion.tokenizer import CLIPTokenizer, prompt_ids
from ge3d_jax.diffusion.weights.clip_files import CONFIG_FILE, VISION_PREFIX, folder_tensors, open_clip
from ge3d_jax.diffusion.weights.config_files import TEXT, VISION, naming, read_settings, whole
from ge3d_jax.diffusion.weights.folder import TEXT_PREFIX, load_tokenizer, plain_text_name
from ge3d_jax.diffusion.weights.open_clip import TEXT_PROJECTION, VISION_PROJECTION
from ge3d_jax.diffusion.weights.parameters import read_parameters
from ge3d_jax.diffusion.weights.tensor_files import StoredTensor, read_json, rename_tensors

# Images per batch.
_PICTURES = 16
_PROJECTION = whole(1, 2**15)


@dataclasses.dataclass(frozen=True)
class TextTower:
    """A text encoder.

    Attributes:
        module: its network.
        parameters: the network's parameters.
        tokenizer: its tokenizer.
    """

    module: CLIPTextFeatures
    parameters: Any
    tokenizer: CLIPTokenizer

    @property
    def width(self) -> int:
        """The size of a feature vector, D."""
        return self.module.width

    def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokenize B texts: ids (B, L) and the positions (B,) of their end tokens, int32."""
        ids = prompt_ids(self.tokenizer, texts, self.module.config.max_position_embeddings)
        return ids, np.argmax(ids == self.tokenizer.eos_token_id, axis=1).astype(np.int32)

    def features(self, texts: Sequence[str]) -> jax.Array:
        """Compute features (B, D) float32 of B texts; they are not normalized."""
        ids, ends = self.tokens(texts)
        return _text_features(self.parameters, ids, ends, module=self.module)


@partial(jax.jit, static_argnames="module")
def _text_features(
    parameters: Any, ids: jax.Array, ends: jax.Array, *, module: CLIPTextFeatures
) -> jax.Array:
    features: Any = module.apply({"params": parameters}, ids, ends)
    return features


def projection_of(config: Mapping[str, Any], file: Path) -> int:
    """Return the size of the features of both encoders. Raises UserError."""
    value = config.get("projection_dim", 512)
    try:
        return int(_PROJECTION(value))
    except ValueError as error:
        raise UserError(f"{file}: projection_dim is {shown(value)}; it must be {error}.") from error


def load_text_tower(model: str | os.PathLike[str]) -> TextTower:
    """Load a text encoder.

    Args:
        model: folder, file, or hub id of a CLIP model, or a folder with `text_encoder/` and `tokenizer/`.

    Raises:
        UserError: it is missing, damaged, or not a CLIP model.
    """
    if (Path(model) / "text_encoder").is_dir():
        folder = Path(model) / "text_encoder"
        tokenizer = load_tokenizer(Path(model) / "tokenizer")
        with naming(folder / CONFIG_FILE):
            config = CLIPTextConfig.from_dict(read_json(folder / CONFIG_FILE))
        tensors, source = folder_tensors(folder)
        return _tower(config, None, rename_tensors(tensors, plain_text_name), source, tokenizer)
    files = open_clip(model)
    with naming(files.place):
        config = CLIPTextConfig(
            **read_settings("text encoder", files.config["text_config"], used=TEXT, ignored=None)
        )
    own = {
        name: tensor
        for name, tensor in files.tensors.items()
        if name.startswith(TEXT_PREFIX) or name == TEXT_PROJECTION
    }
    projection = projection_of(files.config, files.place)
    return _tower(config, projection, rename_tensors(own, plain_text_name), files.source, files.tokenizer())


def _tower(
    config: CLIPTextConfig,
    projection: int | None,
    tensors: Mapping[str, StoredTensor],
    source: Path,
    tokenizer: CLIPTokenizer,
) -> TextTower:
    module = CLIPTextFeatures(config, projection)
    parameters = read_parameters(prefixed(tensors), text_shapes(module), source)
    return TextTower(module, parameters, tokenizer)


def prefixed(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Add the prefix of a text encoder's tensors to all but the projection's."""
    return {
        name if name == TEXT_PROJECTION else f"{TEXT_PREFIX}{name}": tensor
        for name, tensor in tensors.items()
    }


def text_shapes(module: CLIPTextFeatures) -> Mapping[str, Any]:
    """Return the tree of a text encoder's parameter shapes."""
    ids, ends = jnp.zeros((1, 2), jnp.int32), jnp.zeros(1, jnp.int32)
    return jax.eval_shape(module.init, jax.random.key(0), ids, ends)["params"]


@dataclasses.dataclass(frozen=True)
class VisionTower:
    """An image encoder.

    Attributes:
        module: its network.
        parameters: the network's parameters.
    """

    module: CLIPVisionFeatures
    parameters: Any

    def features(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Compute features (B, D) float32 of B uint8 images (H, W, 3) of any sizes, not normalized."""
        size = self.module.config.image_size
        prepared = np.stack([prepare_picture(picture, size) for picture in pictures])
        parts = [
            np.asarray(
                _vision_features(self.parameters, prepared[first : first + _PICTURES], module=self.module)
            )
            for first in range(0, len(prepared), _PICTURES)
        ]
        return np.concatenate(parts)


@partial(jax.jit, static_argnames="module")
def _vision_features(parameters: Any, pictures: jax.Array, *, module: CLIPVisionFeatures) -> jax.Array:
    features: Any = module.apply({"params": parameters}, pictures)
    return features


def vision_shapes(module: CLIPVisionFeatures) -> Mapping[str, Any]:
    """Return the tree of an image encoder's parameter shapes."""
    size = module.config.image_size
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"]


def load_vision_tower(model: str | os.PathLike[str]) -> VisionTower:
    """Load an image encoder.

    Args:
        model: folder, file, or hub id of a CLIP model.

    Raises:
        UserError: it is missing, damaged, or not a CLIP model.
    """
    files = open_clip(model)
    if not isinstance(files.config.get("vision_config"), dict):
        raise UserError(f"{files.place} does not belong to CLIP: no vision_config; give a whole CLIP.")
    with naming(files.place):
        config = CLIPVisionConfig(
            **read_settings("picture encoder", files.config["vision_config"], used=VISION, ignored=None)
        )
    module = CLIPVisionFeatures(config, projection_of(files.config, files.place))
    own = {
        name: tensor
        for name, tensor in files.tensors.items()
        if name.startswith(VISION_PREFIX) or name == VISION_PROJECTION
    }
    return VisionTower(module, read_parameters(own, vision_shapes(module), files.source))
