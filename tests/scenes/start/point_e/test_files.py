"""Folders and files of Point-E, and the errors for unusable ones."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.weights.clip import load_text_tower
from ge3d_jax.diffusion.weights.parameters import tensor_name, to_tensor
from ge3d_jax.scenes.start.point_e.files import check_files, model_place, open_point_e, save_point_e
from ge3d_jax.scenes.start.point_e.model import open_weights, read_network, sample_clouds
from ge3d_jax.scenes.start.point_e.networks import CHANNEL_BIASES, CHANNEL_SCALES
from ge3d_jax.scenes.start.point_e.start import PointEStart
from ge3d_jax.toybox import model_folder
from tests import torch_archives
from tests.scenes.start.point_e import small


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.save(tmp_path_factory.mktemp("point_e"))


def tensors(config, seed=0):
    parameters = flatten_dict(small.random_parameters(config, seed))
    return {tensor_name(path): to_tensor(path, np.asarray(value)) for path, value in parameters.items()}


def same(tree, other):
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), tree, other))


def test_a_folder_gives_back_what_was_saved(folder):
    opened, encode = open_point_e(folder, "nothing")
    model = small.model()
    assert same(opened.base, model.base) and same(opened.upsampler, model.upsampler)
    assert (opened.base_config, opened.upsampler_config) == (small.BASE, small.UPSAMPLER)
    assert (opened.base_stage, opened.upsampler_stage) == (model.base_stage, model.upsampler_stage)
    features = encode(["a red mushroom", "a blue mushroom"])
    assert features.shape == (2, 64) and np.abs(features[0] - features[1]).max() > 0.01
    # A text's feature comes from its own end token, regardless of the other texts in the batch.
    np.testing.assert_allclose(encode(["a blue mushroom"])[0], features[1], atol=1e-5)


def test_a_text_encoder_that_was_trained_further_is_kept(folder, tmp_path):
    tower = load_text_tower(model_folder())
    other = jax.tree.map(lambda leaf: 1.5 * np.asarray(leaf), tower.parameters)
    save_point_e(tmp_path, small.model(), model_folder(), small.LANGUAGE, text_parameters=other)
    read = [open_point_e(place, "nothing")[1](["a red mushroom"]) for place in (folder, tmp_path)]
    expected = dataclasses.replace(tower, parameters=other).features(["a red mushroom"])
    np.testing.assert_allclose(read[1], expected, atol=1e-5)
    assert np.abs(read[0] - read[1]).max() > 0.1


@pytest.mark.parametrize(
    ("base", "wrap"),
    [("base_40m_textvec.pt", None), ("pointE_finetuned_with_825kdata.pth", "model_state_dict")],
)
def test_published_files_are_read(folder, tmp_path, base, wrap):
    shutil.copytree(folder, tmp_path / "model")
    for name in ("base.safetensors", "upsampler.safetensors"):
        (tmp_path / "model" / name).unlink()
    torch_archives.save_arrays(tmp_path / "model" / base, tensors(small.BASE), wrap=wrap)
    buffers = {
        "channel_scales": np.asarray(CHANNEL_SCALES, np.float32),
        "channel_biases": np.asarray(CHANNEL_BIASES, np.float32),
    }
    torch_archives.save_arrays(tmp_path / "model/upsample_40m.pt", {**buffers, **tensors(small.UPSAMPLER, 1)})
    opened, _ = open_point_e(tmp_path / "model", "nothing")
    assert same(opened.base, small.model().base) and same(opened.upsampler, small.model().upsampler)


def test_other_networks_tensors_are_refused(tmp_path):
    upsampler = torch_archives.save_arrays(tmp_path / "base_40m_textvec.pt", tensors(small.UPSAMPLER))
    with pytest.raises(UserError, match=r"base_40m_textvec.pt lacks the tensor clip_embed.bias"):
        read_network(small.BASE, open_weights(upsampler), upsampler)
    wide = dataclasses.replace(small.BASE, width=32)
    file = torch_archives.save_arrays(tmp_path / "wide.pt", tensors(wide))
    with pytest.raises(UserError, match=r"wide.pt.*the shape"):
        read_network(small.BASE, open_weights(file), file)
    moved = {"channel_scales": np.ones(6, np.float32), **tensors(small.UPSAMPLER)}
    save_file(moved, tmp_path / "moved.safetensors")
    with pytest.raises(UserError, match="channel_scales"):
        read_network(
            small.UPSAMPLER, open_weights(tmp_path / "moved.safetensors"), tmp_path / "moved.safetensors"
        )


def test_what_is_missing_is_told_with_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"put base_40m_textvec.pt and upsample_40m.pt there.*--start=ball"):
        PointEStart().check()
    place = model_place(None)
    assert place == tmp_path / "ge3d_jax/point_e"
    place.mkdir(parents=True)
    (place / "base_40m_textvec.pt").touch()
    with pytest.raises(UserError, match="put upsample_40m.pt there"):
        PointEStart().check()
    (place / "upsample_40m.pt").touch()
    with pytest.raises(UserError, match="The CLIP model .*connect to the network"):
        check_files(place, str(tmp_path / "no-clip"))


def test_a_text_encoder_of_another_width_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    model = dataclasses.replace(small.BASE, text_features=48)
    save_file(
        {name: np.ascontiguousarray(array) for name, array in tensors(model).items()},
        tmp_path / "model/base.safetensors",
    )
    config = tmp_path / "model/config.json"
    config.write_text(config.read_text().replace('"text_features": 64', '"text_features": 48'))
    with pytest.raises(UserError, match="gives 64 numbers for a text, but the Point-E in .* takes 48"):
        open_point_e(tmp_path / "model", "nothing")
    with pytest.raises(UserError, match="gives 48 numbers for a text, but this Point-E takes 64"):
        sample_clouds(small.model(), np.ones((1, 48), np.float32), jax.random.key(0))


def test_a_damaged_config_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    config = tmp_path / "model/config.json"
    for old, new, message in (
        ('"width": 16', '"width": 15', "multiple of twice the heads"),
        ('"schedule": "cosine"', '"schedule": "sine"', "schedule is 'sine'"),
        ('"steps": 2', '"steps": 1', "at least 2 steps"),
        ('"prediction": "epsilon"', '"prediction": "x"', "prediction is 'x'; use epsilon or v_prediction"),
        ('"points": 12', '"pints": 12', "pints"),
    ):
        config.write_text((folder / "config.json").read_text().replace(old, new))
        with pytest.raises(UserError, match=f"config.json: .*{message}"):
            check_files(tmp_path / "model", "nothing")


def test_numbers_that_are_not_finite_are_told():
    broken = dataclasses.replace(
        small.model(),
        base=small.zeros(small.BASE)
        | {"ln_post": {"scale": np.full(16, np.nan, np.float32), "bias": np.zeros(16, np.float32)}},
    )
    with pytest.raises(UserError, match="not finite"):
        sample_clouds(broken, np.ones((1, 64), np.float32), jax.random.key(0))
