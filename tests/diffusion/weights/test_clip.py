"""CLIP's towers: the features of transformers, full sizes, and folders without a CLIP model."""

import json

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.networks.text_encoder import CLIPTextConfig, CLIPTextFeatures
from ge3d_jax.diffusion.networks.vision_encoder import (
    MEAN,
    STANDARD_DEVIATION,
    CLIPVisionConfig,
    CLIPVisionFeatures,
    prepare_picture,
)
from ge3d_jax.diffusion.weights import clip
from ge3d_jax.diffusion.weights.clip import (
    load_text_tower,
    load_vision_tower,
    text_shapes,
    vision_shapes,
)
from ge3d_jax.diffusion.weights.clip_files import check_clip
from ge3d_jax.diffusion.weights.parameters import tensor_name
from tests import tiny_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_clip.save(tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_features_are_transformers(tmp_path, activation):
    folder = tiny_clip.save(tmp_path, activation)
    with np.load(tiny_clip.GOLDEN_FILE) as stored:
        expected = {name: stored[f"{activation}/{name}"] for name in ("text", "pictures")}
    text = load_text_tower(folder)
    assert text.width == tiny_clip.PROJECTION
    np.testing.assert_allclose(text.features(tiny_clip.TEXTS), expected["text"], atol=1e-4)
    pictures = load_vision_tower(folder).features(tiny_clip.pictures())
    np.testing.assert_allclose(pictures, expected["pictures"], atol=1e-4)


def test_many_pictures_are_as_few(folder, monkeypatch):
    tower, pictures = load_vision_tower(folder), tiny_clip.pictures()
    expected = tower.features(pictures)
    monkeypatch.setattr(clip, "_PICTURES", 2)
    np.testing.assert_allclose(tower.features(pictures), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "projection", "count", "parameters"),
    [
        (CLIPVisionConfig(), 512, 12, 87_849_216),
        (CLIPVisionConfig(1024, 4096, 24, 16, 224, 14), 768, 24, 303_966_208),
        (CLIPVisionConfig(1024, 4096, 24, 16, 336, 14), 768, 24, 304_293_888),
        (CLIPVisionConfig(1664, 8192, 48, 16, 224, 14, "gelu"), 1280, 48, 1_844_907_264),
    ],
)
def test_picture_encoders_of_the_published_sizes(config, projection, count, parameters):
    shapes = flatten_dict(vision_shapes(CLIPVisionFeatures(config, projection)))
    names = {tensor_name(path): leaf.shape for path, leaf in shapes.items()}
    assert len(names) == 16 * count + 8
    assert names["vision_model.embeddings.class_embedding"] == (config.hidden_size,)
    patches = (config.image_size // config.patch_size) ** 2
    assert names["vision_model.embeddings.position_embedding.weight"] == (patches + 1, config.hidden_size)
    assert names["visual_projection.weight"] == (config.hidden_size, projection)
    assert "vision_model.pre_layrnorm.weight" in names and "vision_model.post_layernorm.bias" in names
    assert sum(int(np.prod(shape)) for shape in names.values()) == parameters


def test_the_text_encoder_of_the_published_size():
    config = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    shapes = flatten_dict(text_shapes(CLIPTextFeatures(config, 768)))
    names = {tensor_name(path) for path in shapes}
    assert (
        len(names) == 16 * 12 + 5 and {"text_projection.weight", "text_model.final_layer_norm.bias"} <= names
    )
    assert sum(int(np.prod(leaf.shape)) for leaf in shapes.values()) == 123_650_304


def test_pictures_are_prepared_as_pil_does():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)
    scaled = Image.fromarray(picture).resize((26, 16), Image.Resampling.BICUBIC)
    expected = np.asarray(scaled)[:, 5:21] / 255.0
    prepared = prepare_picture(picture, 16)
    assert prepared.shape == (16, 16, 3) and prepared.dtype == np.float32
    np.testing.assert_allclose(prepared * STANDARD_DEVIATION + MEAN, expected, atol=1e-6)


def test_folders_that_are_no_clip_are_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for change, message in (
        ({"text_config": None}, "no text_config"),
        ({"vision_config": None}, "no vision_config"),
        ({"projection_dim": -1}, "projection_dim is -1"),
        ({"projection_dim": 13}, "the tensor visual_projection.weight has the shape"),
    ):
        config = json.loads((folder / "config.json").read_text()) | change
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        place.mkdir()
        (place / "config.json").write_text(json.dumps(config))
        (place / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        with pytest.raises(UserError, match=message):
            load_vision_tower(place)
    (place / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no model.safetensors"):
        load_vision_tower(place)
    with pytest.raises(UserError, match="connect to the network"):
        check_clip("nobody/nothing")
    check_clip(folder)
