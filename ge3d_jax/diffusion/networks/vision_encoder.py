"""CLIP's image encoder, equal to transformers' CLIPVisionModelWithProjection.

B/32, L/14, L/14-336, and bigG/14 differ only in their sizes and activation. Names follow the published
tensors, including `pre_layrnorm`.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.networks.blocks import layer_norm
from ge3d_jax.diffusion.networks.text_encoder import CLIPEncoder

# Channel statistics of the images that CLIP was trained on.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STANDARD_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """Dimensions of the image encoder, with transformers' names and defaults, which are those of B/32."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        """Reject dimensions that do not fit together."""
        for name, other in (("hidden_size", "num_attention_heads"), ("image_size", "patch_size")):
            if getattr(self, name) % getattr(self, other):
                raise UserError(
                    f"image encoder config: {name} {getattr(self, name)} must be a multiple of {other} "
                    f"{getattr(self, other)}."
                )


class _Embeddings(nn.Module):
    """Embeddings of the patches and of the class token, with learned positions."""

    config: CLIPVisionConfig

    @nn.compact
    def __call__(self, pictures: jax.Array) -> jax.Array:
        """(B, S, S, 3) → (B, 1 + patches, D)."""
        width, patch = self.config.hidden_size, (self.config.patch_size,) * 2
        patches = nn.Conv(width, patch, patch, "VALID", use_bias=False, name="patch_embedding")(pictures)
        whole = self.param("class_embedding", nn.initializers.normal(width**-0.5), (width,))
        batch = pictures.shape[0]
        first = jnp.broadcast_to(whole, (batch, 1, width))
        tokens = jnp.concatenate([first, patches.reshape(batch, -1, width)], axis=1)
        places = nn.Embed(tokens.shape[1], width, name="position_embedding")
        return tokens + places(jnp.arange(tokens.shape[1]))


class _VisionModel(nn.Module):
    config: CLIPVisionConfig

    @nn.compact
    def __call__(self, pictures: jax.Array) -> jax.Array:
        epsilon = self.config.layer_norm_eps
        tokens = _Embeddings(self.config, name="embeddings")(pictures)
        tokens = layer_norm(epsilon, jnp.float32, "pre_layrnorm")(tokens)
        tokens = CLIPEncoder(self.config, causal=False, name="encoder")(tokens)
        return layer_norm(epsilon, jnp.float32, "post_layernorm")(tokens[:, 0])


class CLIPVisionFeatures(nn.Module):
    """Maps each image to a feature vector.

    Attributes:
        config: the image encoder's config.
        projection: D, the size of a feature vector.
    """

    config: CLIPVisionConfig
    projection: int

    @nn.compact
    def __call__(self, pictures: jax.Array) -> jax.Array:
        """Compute the features.

        Args:
            pictures: (B, S, S, 3), from `prepare_picture`.

        Returns:
            (B, D) float32, not normalized.
        """
        pooled = _VisionModel(self.config, name="vision_model")(pictures)
        return nn.Dense(self.projection, use_bias=False, name="visual_projection")(pooled)


def prepare_picture(picture: np.ndarray, size: int) -> np.ndarray:
    """Prepare an image for CLIP: resize its short side to `size` (PIL bicubic), center-crop, and normalize.

    Args:
        picture: uint8 (H, W, 3).
        size: S.

    Returns:
        (S, S, 3) float32.
    """
    height, width = picture.shape[:2]
    short = min(height, width)
    scaled = (int(size * width / short), int(size * height / short))
    image = Image.fromarray(picture)
    if scaled != (width, height):
        image = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = ((edge - size) // 2 for edge in scaled)
    cut = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255.0
    return (cut - np.asarray(MEAN, np.float32)) / np.asarray(STANDARD_DEVIATION, np.float32)
