"""LoRA and camera inputs of the frozen UNet, compared with ProlificDreamer's published code; limits."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion import pipeline
from ge3d_jax.diffusion.networks.adapters import (
    Adapter,
    embed_camera,
    init_camera_embedding,
    init_lora,
)
from ge3d_jax.diffusion.schedule import add_noise, velocity
from ge3d_jax.diffusion.weights.checkpoint import load_model
from ge3d_jax.toybox import model_folder
from tests.errors import relative_error

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "losses" / "vsd.npz"
CASES = ("a", "b")
RANK = 4
# For float32: the largest difference relative to the largest value.
TOLERANCE = 5e-5
# 2⁻⁹ is one bfloat16 rounding; those of a few dozen layers accumulate like a random walk.
HALF_TOLERANCE = 0.03

predict_epsilon = jax.jit(pipeline.predict_epsilon)


@pytest.fixture(scope="module")
def model():
    return load_model(model_folder("toybox64"))


@pytest.fixture(scope="module")
def stored():
    with np.load(GOLDEN_FILE) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def golden(stored):
    """The stored arrays, after checking that they were computed with this network."""
    weights = model_folder("toybox64") / "unet" / "diffusion_pytorch_model.safetensors"
    found, expected = hashlib.sha256(weights.read_bytes()).hexdigest(), str(stored["sha256_unet"])
    if found != expected:
        pytest.fail(
            f"{GOLDEN_FILE.name} belongs to the UNet whose SHA-256 begins with {expected[:16]}, but that of "
            f"the bundled one begins with {found[:16]}: the model was retrained, so the file must be made "
            f"anew, as README.md beside it says.",
            pytrace=False,
        )
    return stored


@pytest.fixture(scope="module")
def samples(stored):
    """All samples of both cases, concatenated so that the networks are compiled for a single shape."""
    settings = [json.loads(str(stored[f"{case}/settings"])) for case in CASES]
    counts = [len(each["t"]) for each in settings]

    def joined(name):
        return jnp.concatenate([stored[f"{case}/{name}"] for case in CASES])

    cameras = jnp.concatenate([jnp.asarray(each["camera_to_world"]).reshape(-1, 16) for each in settings])
    zeroed = np.repeat([each["camera_zeroed"] for each in settings], counts)
    return SimpleNamespace(
        latents=joined("latents"),
        noise=joined("noise"),
        noise_lora=joined("noise_lora"),
        text=jnp.repeat(joined("text"), np.array(counts), axis=0),
        t=jnp.concatenate([jnp.array(each["t"]) for each in settings]),
        t_lora=jnp.concatenate([jnp.array(each["t_lora"]) for each in settings]),
        cameras=cameras,
        cameras_lora=jnp.where(zeroed[:, None], 0.0, cameras),
        # Each case's loss is the mean over its own samples.
        weights=jnp.array([np.repeat(np.eye(2)[i], counts) / counts[i] for i in range(2)]),
        losses=[each["loss_lora"] for each in settings],
    )


def _path(name):
    """Path of the parameter with this PyTorch name in {"lora": …, "camera": …}."""
    modules = re.sub(r"\.(\d+)", r"_\1", name).replace("to_out_lora", "to_out_0_lora")
    *path, leaf = re.split(r"[/.]", modules.replace("_lora.", ".").removesuffix(".weight"))
    return (*path, leaf, "kernel") if leaf.startswith("linear") else (*path, leaf)


@pytest.fixture(scope="module")
def parameters(stored):
    """The parameters of both cases, {"lora": …, "camera": …}, and their paths in file order."""
    flat, rest = {}, stored["parameters_times_256"].astype(np.float32) / 256
    for name, (rows, columns) in zip(stored["parameter_names"], stored["parameter_shapes"], strict=True):
        value, rest = np.split(rest, [rows * max(columns, 1)])
        flat[_path(str(name))] = jnp.asarray(value.reshape(rows, columns).T if columns else value)
    assert not rest.size
    return unflatten_dict(flat), list(flat)


def _adapter(learned, cameras):
    return Adapter(learned["lora"], embed_camera(learned["camera"], cameras))


@pytest.fixture(scope="module")
def trained(model, samples, parameters):
    """For both cases: the LoRA network's velocities, the loss, and its gradient in all parameters."""

    def loss(learned, weights):
        x = add_noise(model.schedule, samples.latents, samples.noise_lora, samples.t_lora)
        adapter = _adapter(learned, samples.cameras_lora)
        predicted = pipeline.unet_output(model, x, samples.t_lora, samples.text, adapter)
        wanted = velocity(model.schedule, samples.latents, samples.noise_lora, samples.t_lora)
        return weights @ jnp.mean((predicted - wanted) ** 2, axis=(1, 2, 3)), predicted

    evaluate = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return [evaluate(parameters[0], weights) for weights in samples.weights]


def _largest_error(value, expected):
    return float(np.abs(value - expected).max() / np.abs(expected).max())


def test_the_parameters_are_those_of_a_fresh_adapter(model, parameters):
    config = model.unet.config
    fresh = {
        "lora": init_lora(jax.random.key(0), model.unet_params, RANK),
        "camera": init_camera_embedding(jax.random.key(1), config.time_width),
    }
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, parameters[0])
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype(jnp.float32)}


def test_predictions_are_prolific_dreamer_s(model, golden, samples, parameters):
    x = add_noise(model.schedule, samples.latents, samples.noise, samples.t)
    adapter = _adapter(parameters[0], samples.cameras)
    epsilon = predict_epsilon(model, x, samples.t, samples.text, adapter)
    expected = [golden[f"{case}/epsilon_lora"] for case in CASES]
    for got, wanted in zip(np.split(epsilon, [len(expected[0])]), expected, strict=True):
        assert _largest_error(got, wanted) < TOLERANCE


def test_velocities_and_the_loss_are_prolific_dreamer_s(golden, samples, trained):
    expected = golden["a/velocity_predicted"]
    assert _largest_error(trained[0][0][1][: len(expected)], expected) < TOLERANCE
    for ((loss, _), _), wanted in zip(trained, samples.losses, strict=True):
        assert loss == pytest.approx(wanted, rel=TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_the_loss_s_gradients_are_prolific_dreamer_s(golden, trained, parameters, case):
    flat, order = flatten_dict(trained[CASES.index(case)][1]), parameters[1]
    norms = np.array([np.linalg.norm(flat[path]) for path in order])
    expected = golden[f"{case}/parameter_gradient_norms"]
    np.testing.assert_allclose(norms, expected, rtol=TOLERANCE)
    if case == "a":
        rest = golden["a/parameter_gradients"]
        for path in order:
            gradient = np.asarray(flat[path]).T
            # The file has only the first rows of the largest gradient.
            gradient = gradient[:8] if path == ("camera", "linear_2", "kernel") else gradient
            wanted, rest = np.split(rest, [gradient.size])
            assert _largest_error(gradient.ravel(), wanted) < TOLERANCE, path
        assert not rest.size


def test_a_fresh_lora_changes_nothing_at_all(model, samples):
    x = samples.latents
    # An offset of zeros reuses the program compiled for the comparison above.
    offset = jnp.zeros((len(x), model.unet.config.time_width))
    adapter = Adapter(init_lora(jax.random.key(0), model.unet_params, RANK), offset)
    got = predict_epsilon(model, x, samples.t, samples.text, adapter)
    np.testing.assert_array_equal(got, predict_epsilon(model, x, samples.t, samples.text))


def test_without_a_lora_the_program_has_none(model, samples):
    lora = init_lora(jax.random.key(0), model.unet_params, RANK)

    def program(*adapter):
        return str(
            jax.make_jaxpr(pipeline.unet_output)(model, samples.latents, samples.t, samples.text, *adapter)
        )

    plain = program()
    assert program(None) == program(Adapter()) == plain
    some = {name: part for name, part in lora.items() if name != "mid_block"}
    for factors in (lora, some):
        products = program(Adapter(factors)).count("dot_general") - plain.count("dot_general")
        assert products == len(jax.tree.leaves(factors))


def test_a_fresh_lora_starts_as_published(model):
    lora = init_lora(jax.random.key(0), model.unet_params, RANK)
    flat = flatten_dict(lora)
    assert all((value == 0).all() for path, value in flat.items() if path[-1] == "up")
    downs = [np.ravel(value) for path, value in flat.items() if path[-1] == "down"]
    assert np.std(np.concatenate(downs)) == pytest.approx(1 / RANK, rel=0.02)
    assert len({down[0].item() for down in downs}) == len(downs)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_lora_of_no_rank_is_refused(model, rank):
    with pytest.raises(UserError, match=f"rank = {rank} .*at least 1"):
        init_lora(jax.random.key(0), model.unet_params, rank)


def test_a_fresh_camera_embedding_starts_as_a_linear_layer_of_pytorch():
    fresh = init_camera_embedding(jax.random.key(0), 192)
    for layer, inputs in (("linear_1", 16), ("linear_2", 192)):
        for value in fresh[layer].values():
            assert 0.9 < np.abs(value).max() * inputs**0.5 <= 1


def test_in_bfloat16_the_products_of_the_factors_are_too_and_predictions_near(model, samples, parameters):
    half = dataclasses.replace(model, unet=model.unet.clone(dtype=jnp.bfloat16))
    adapter = _adapter(parameters[0], samples.cameras)
    whole = predict_epsilon(model, samples.latents, samples.t, samples.text, adapter)
    got = predict_epsilon(half, samples.latents, samples.t, samples.text, adapter)
    assert got.dtype == jnp.float32
    assert 0 < relative_error(got, whole) < HALF_TOLERANCE
    programs = [
        str(jax.make_jaxpr(pipeline.unet_output)(half, samples.latents, samples.t, samples.text, each))
        for each in (None, adapter)
    ]
    without, with_them = (len(re.findall(r"bf16\S* = dot_general", program)) for program in programs)
    assert with_them - without == len(jax.tree.leaves(adapter.lora))
