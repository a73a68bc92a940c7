"""CLIP in single files: OpenCLIP's features, the forms of files, and what is refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.tokenizer import build_tokenizer
from ge3d_jax.diffusion.weights.clip import load_text_tower, load_vision_tower
from ge3d_jax.diffusion.weights.clip_files import check_clip, open_clip
from tests import open_clip_model, tiny_clip, torch_archives


@pytest.fixture(scope="module")
def tensors():
    return open_clip_model.tensors()


@pytest.fixture
def tokenizer(tmp_path):
    """The tokenizer next to the files."""
    return build_tokenizer(tiny_clip.WORDS, tmp_path, 12)


def features(file):
    """Features of the shared texts and pictures."""
    text, vision = load_text_tower(file), load_vision_tower(file)
    texts = text.module.apply({"params": text.parameters}, open_clip_model.IDS, open_clip_model.ENDS)
    pictures = vision.module.apply({"params": vision.parameters}, open_clip_model.pictures())
    return {"texts": texts, "pictures": pictures}


def assert_as_open_clip(file, activation):
    expected = open_clip_model.stored()
    for kind, found in features(file).items():
        np.testing.assert_allclose(found, expected[f"{activation}/{kind}"], atol=2e-4)


@pytest.mark.parametrize(("name", "activation"), [("laion2b", "gelu"), ("vit-quickgelu", "quick_gelu")])
def test_open_clip_files_give_open_clip_s_features(tmp_path, tensors, tokenizer, name, activation):
    file = tmp_path / f"{name}.safetensors"
    save_file(tensors, file)
    check_clip(file)
    assert_as_open_clip(file, activation)
    config = load_vision_tower(file).module.config
    assert (config.num_attention_heads, config.image_size, config.patch_size) == (16, 16, 8)
    found = load_text_tower(file).tokenizer
    assert len(found) == len(tokenizer) and found.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (1024, 16), (1280, 16), (1408, 16), (1664, 16)])
def test_heads_of_the_published_picture_encoders(tmp_path, tensors, width, heads):
    # Only the shape of the first convolution is looked at.
    wide = {**tensors, "visual.conv1.weight": np.zeros((width, 3, 8, 8), np.float32)}
    save_file(wide, tmp_path / "laion.safetensors")
    assert open_clip(tmp_path / "laion.safetensors").config["vision_config"]["num_attention_heads"] == heads


def test_heads_of_text_encoders_have_64_channels_whatever_the_width(tmp_path, tensors):
    # bigG/14 has a text encoder as wide as H/14's image encoder.
    wide = {**tensors, "token_embedding.weight": np.zeros((40, 1280), np.float32)}
    save_file(wide, tmp_path / "laion.safetensors")
    assert open_clip(tmp_path / "laion.safetensors").config["text_config"]["num_attention_heads"] == 20


def test_the_name_of_a_file_tells_more_than_its_folder_s(tmp_path, monkeypatch):
    tensors = open_clip_model.tensors(width=64)
    (tmp_path / "openai").mkdir()
    monkeypatch.chdir(tmp_path / "openai")
    # From within the folder, its name is not in the path.
    for name, activation in (("laion.safetensors", "gelu"), ("model.safetensors", "quick_gelu")):
        save_file(tensors, name)
        assert open_clip(name).config["text_config"]["hidden_act"] == activation


def test_checkpoints_of_pytorch_are_read(tmp_path, tensors, tokenizer):
    trained = {f"module.{name}": each for name, each in tensors.items()}
    # Models trained with SigLIP's loss have one; features do not depend on it.
    trained["module.logit_bias"] = np.zeros((), np.float32)
    file = torch_archives.save_arrays(tmp_path / "datacomp.bin", trained, wrap="state_dict")
    assert_as_open_clip(file, "gelu")


def test_openai_s_original_files_tell_their_activation(tmp_path, tensors, tokenizer):
    sizes = {name: np.array([16], np.int64) for name in ("input_resolution", "context_length", "vocab_size")}
    mask = {"transformer.resblocks.0.attn_mask": np.zeros((12, 12), np.float32)}
    # They tell more than names and notes do.
    file = torch_archives.save_arrays(tmp_path / "laion.pt", {**tensors, **sizes, **mask})
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    assert_as_open_clip(file, "quick_gelu")


def test_files_with_transformers_names_are_read(tmp_path, tensors, tokenizer):
    save_file(tensors, tmp_path / "openai.safetensors")
    opened = open_clip(tmp_path / "openai.safetensors").tensors
    modern = {name: np.ascontiguousarray(each.read()) for name, each in opened.items()}
    modern["vision_model.embeddings.position_ids"] = np.arange(5)
    (tmp_path / "openai").mkdir()
    save_file(modern, tmp_path / "openai" / "model.safetensors")
    build_tokenizer(tiny_clip.WORDS, tmp_path / "openai" / "tokenizer", 12)
    # Something else's.
    (tmp_path / "openai" / "config.json").write_text('{"layers": 3}')
    assert_as_open_clip(tmp_path / "openai" / "model.safetensors", "quick_gelu")


def test_notes_next_to_a_file_tell_more_than_its_name(tmp_path, tensors, tokenizer):
    file = tmp_path / "openai.safetensors"
    save_file(tensors, file)
    notes = tmp_path / "open_clip_config.json"
    for settings, activation in (({}, "gelu"), ({"quick_gelu": True}, "quick_gelu")):
        notes.write_text(json.dumps({"model_cfg": settings}))
        assert open_clip(file).config["vision_config"]["hidden_act"] == activation
    notes.write_text("{}")
    with pytest.raises(UserError, match="open_clip_config.json has no model_cfg"):
        check_clip(file)
    folder = tiny_clip.save(tmp_path / "whole", "gelu")
    text = load_text_tower(folder / "model.safetensors").features(tiny_clip.TEXTS)
    np.testing.assert_array_equal(text, load_text_tower(folder).features(tiny_clip.TEXTS))


def test_files_that_are_no_clip_are_refused(tmp_path, tensors, tokenizer, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def refusal(load, changes, name="laion.safetensors"):
        changed = {**tensors, **changes}
        save_file({key: each for key, each in changed.items() if each is not None}, tmp_path / name)
        with pytest.raises(UserError) as caught:
            load(tmp_path / name)
        assert name in str(caught.value)
        return str(caught.value)

    assert "quick_gelu, as OpenAI's, or gelu" in refusal(check_clip, {}, "mine.safetensors")
    # A name that says both says nothing.
    assert "quick_gelu" in refusal(check_clip, {}, "openai-laion.safetensors")
    without = {"visual.conv1.weight": None}
    assert "is not a CLIP" in refusal(check_clip, without)
    convolutional = {"visual.layer1.0.conv1.weight": np.zeros((4, 4, 1, 1), np.float32)}
    assert "convolutional image encoder" in refusal(check_clip, convolutional)
    assert "lacks the tensor text_projection" in refusal(check_clip, {"text_projection": None})
    assert "lacks the tensor visual.proj" in refusal(check_clip, {"visual.proj": None})
    gap = {"transformer.resblocks.7.ln_1.bias": np.zeros(128, np.float32)}
    assert "lacks the tensor text_model.encoder.layers.2.mlp.fc1.bias" in refusal(check_clip, gap)
    flat = {"token_embedding.weight": np.zeros(3, np.float32)}
    assert "text_model.embeddings.token_embedding.weight" in refusal(check_clip, flat)
    narrow = {"visual.ln_post.bias": np.zeros(3, np.float32)}
    assert "visual.ln_post.bias has the shape (3,)" in refusal(load_vision_tower, narrow)
    places = {"visual.positional_embedding": np.zeros((1, 1280), np.float32)}
    assert "image_size = 0" in refusal(load_vision_tower, places)
    (tmp_path / "text").mkdir()
    save_file(tensors, tmp_path / "laion.safetensors")
    opened = open_clip(tmp_path / "laion.safetensors").tensors
    text = {name: np.ascontiguousarray(each.read()) for name, each in opened.items() if "vis" not in name}
    save_file(text, tmp_path / "text" / "laion.safetensors")
    with pytest.raises(UserError, match="no vision_config; give a whole CLIP"):
        load_vision_tower(tmp_path / "text" / "laion.safetensors")
    assert len(load_file(tmp_path / "text" / "laion.safetensors")) == 16 * 2 + 5
    with pytest.raises(UserError, match="laion.safetensors has no tokenizer; put the files"):
        load_text_tower(tmp_path / "text" / "laion.safetensors")
    build_tokenizer(tiny_clip.WORDS, tmp_path / "text" / "tokenizer", 12)
    load_text_tower(tmp_path / "text" / "laion.safetensors")
