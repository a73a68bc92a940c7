"""Words learned by textual inversion: their tokens, their vectors, and everything that stays unchanged."""

import json
import shlex
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.pipeline import encode_text
from ge3d_jax.diffusion.weights.checkpoint import load_model, save_model
from ge3d_jax.diffusion.weights.hub import convert_file
from tests.reference_models import random_array, tiny_model

WIDTH = 12
ONE = random_array("one", (WIDTH,))
THREE = random_array("three", (3, WIDTH))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A random model and its folder."""
    folder = tmp_path_factory.mktemp("saved")
    model = tiny_model(folder / "words")
    save_model(folder / "model", model)
    return model, folder / "model"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A diffusers file with one vector, and a web UI file with three."""
    folder = tmp_path_factory.mktemp("embeddings")
    save_file({"<cat-toy>": ONE}, folder / "learned_embeds.safetensors")
    save_file({"emb_params": THREE}, folder / "GrumpyHat.safetensors")
    return [folder / "learned_embeds.safetensors", folder / "GrumpyHat.safetensors"]


@pytest.fixture(scope="module")
def taught(saved, files):
    """The model with both words added."""
    return load_model(saved[1], textual_inversions=files)


def _vectors(model, prompt):
    """The embeddings of a prompt's tokens, without the start and end tokens."""
    ids = model.tokenizer(prompt)["input_ids"][1:-1]
    return np.asarray(model.text_params["embeddings"]["token_embedding"]["embedding"])[ids]


def test_a_word_becomes_its_vectors(saved, taught):
    model = saved[0]
    around = _vectors(model, "a red mushroom")
    np.testing.assert_array_equal(_vectors(taught, "<cat-toy>"), ONE[None])
    np.testing.assert_array_equal(_vectors(taught, "grumpyhat"), THREE)
    expected = np.concatenate([around[:1], ONE[None], around[1:2], THREE, around[2:]])
    np.testing.assert_array_equal(_vectors(taught, "a <cat-toy> red GrumpyHat mushroom"), expected)
    np.testing.assert_array_equal(_vectors(taught, "a <CAT-TOY>red"), expected[:3])


def test_other_texts_do_not_change(saved, taught):
    prompts = ["a red mushroom", "grumpyhats", "the hat", "cat-toy", "Bär!", ""]
    for prompt in prompts:
        assert taught.tokenizer(prompt)["input_ids"] == saved[0].tokenizer(prompt)["input_ids"]
    np.testing.assert_array_equal(encode_text(taught, prompts), encode_text(saved[0], prompts))


def test_a_word_changes_the_text_embedding(taught):
    plain, learned = encode_text(taught, ["a red robot", "a red <cat-toy>"])
    assert np.abs(plain - learned)[2:].max() > 0.1
    np.testing.assert_allclose(plain[:2], learned[:2], atol=1e-6)


def test_a_word_that_contains_another_takes_precedence(saved, tmp_path):
    save_file({"<cat>": ONE}, tmp_path / "a.safetensors")
    save_file({"my<cat>s": THREE}, tmp_path / "b.safetensors")
    model = load_model(saved[1], textual_inversions=[tmp_path / "a.safetensors", tmp_path / "b.safetensors"])
    np.testing.assert_array_equal(_vectors(model, "my<cat>s <cat>"), np.concatenate([THREE, ONE[None]]))


def test_spare_rows_of_the_table_are_used_first(saved, tmp_path, files):
    """Published embedding tables may have more rows than the tokenizer has tokens."""
    folder = tmp_path / "model"
    shutil.copytree(saved[1], folder)
    config = json.loads((folder / "text_encoder/config.json").read_text())
    (folder / "text_encoder/config.json").write_text(
        json.dumps({**config, "vocab_size": config["vocab_size"] + 2})
    )
    tensors = load_file(folder / "text_encoder/model.safetensors")
    name = "text_model.embeddings.token_embedding.weight"
    tensors[name] = np.concatenate([tensors[name], np.ones((2, WIDTH), np.float32)])
    save_file(tensors, folder / "text_encoder/model.safetensors")
    model = load_model(folder, textual_inversions=files)
    assert model.text_encoder.config.vocab_size == config["vocab_size"] + 4
    np.testing.assert_array_equal(_vectors(model, "<cat-toy> grumpyhat"), np.concatenate([ONE[None], THREE]))


def test_a_model_with_learned_words_is_not_saved(taught, tmp_path):
    with pytest.raises(UserError, match="textual inversion"):
        save_model(tmp_path / "model", taught)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"<cat>": np.zeros((2, WIDTH + 1), np.float32)}, "takes 12 numbers"),
        ({"<cat>": np.zeros((2, 2, WIDTH), np.float32)}, "shape .2, 2, 12."),
        ({"clip_l": ONE, "clip_g": ONE}, "2 tensors .clip_g, clip_l."),
        ({" ": ONE}, "names no word"),
        ({"x" * 300: ONE}, "names no word"),
        ({"clip_l": ONE, "clip_g": ONE}, "is for SDXL"),
        ({"clip_l": ONE, "t5xxl": ONE}, "is for Stable Diffusion 3 or FLUX"),
        ({"<cat>": np.zeros((0, WIDTH), np.float32)}, "no vectors"),
        ({"<cat>": np.full((1, WIDTH), np.nan, np.float32)}, "no vectors of finite numbers"),
    ],
)
def test_files_that_do_not_fit_are_refused(saved, tmp_path, tensors, says):
    save_file(tensors, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match=says):
        load_model(saved[1], textual_inversions=[tmp_path / "wrong.safetensors"])


def test_two_files_for_one_word_are_refused(saved, files, tmp_path):
    save_file({"<CAT-toy>": ONE}, tmp_path / "again.safetensors")
    with pytest.raises(UserError, match="Two textual inversions have the word '<CAT-toy>'"):
        load_model(saved[1], textual_inversions=[*files, tmp_path / "again.safetensors"])


@pytest.mark.parametrize("name", ["emb_params", "string_to_param.*", "clip_l"])
def test_a_file_without_a_word_is_named_after_its_file(saved, tmp_path, name):
    save_file({name: THREE}, tmp_path / "Hat.safetensors")
    model = load_model(saved[1], textual_inversions=[tmp_path / "Hat.safetensors"])
    np.testing.assert_array_equal(_vectors(model, "a hat"), np.concatenate([_vectors(model, "a"), THREE]))


def test_the_printed_command_converts_what_the_web_ui_nests(tmp_path, monkeypatch):
    """The printed Python code runs, with stand-ins for torch's two modules."""
    tensor = type("Tensor", (), {name: lambda self: self for name in ("detach", "clone", "contiguous")})
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": tensor()}, "name": "x", "step": 3}
    torch = types.ModuleType("torch")
    torch.Tensor, torch.nn = tensor, types.SimpleNamespace(ParameterDict=dict)
    torch.serialization = types.SimpleNamespace(add_safe_globals=lambda classes: None)
    torch.load = lambda file, map_location, weights_only: content
    written = {}
    writer = types.ModuleType("safetensors.torch")
    writer.save_file = lambda tensors, file, metadata: written.update({file: tensors})
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "safetensors.torch", writer)
    monkeypatch.setattr("safetensors.torch", writer, raising=False)
    command = convert_file(tmp_path / "hat.pt")
    exec(shlex.split(command)[2], {})
    content = {"state_dict": {"a": tensor(), "epoch": 3}}
    exec(shlex.split(convert_file(tmp_path / "model.ckpt"))[2], {})
    assert {Path(file).name: list(tensors) for file, tensors in written.items()} == {
        "hat.safetensors": ["emb_params"],
        "model.safetensors": ["a"],
    }


def test_pickled_files_are_refused(saved, tmp_path):
    with pytest.raises(UserError, match="python -c .*learned_embeds.safetensors"):
        load_model(saved[1], textual_inversions=[tmp_path / "learned_embeds.bin"])
