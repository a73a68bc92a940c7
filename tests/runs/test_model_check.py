"""The check passes the bundled model and detects damaged copies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax import toybox
from ge3d_jax.diffusion.weights.checkpoint import load_model
from ge3d_jax.runs import model_check
from tests.tiny_model import random_parameters

TIME, CAPTION = "Does the UNet use the time?", "Does the right caption help the UNet?"
NOISE = "Does the UNet separate noise from picture?"
PICTURES = "Does the autoencoder reconstruct pictures?"
SIZE = "Do latents have the size that the noise schedule expects?"
WEIGHTS, WORDS = "Are all weights finite numbers?", "Do different prompts have different embeddings?"


@pytest.fixture(scope="module")
def model():
    return load_model(toybox.model_folder("toybox64"))


@pytest.fixture(scope="module")
def probe():
    return model_check.toybox_probe(64)


def _failed(model, probe):
    return {finding.question for finding in model_check.check(model, probe) if not finding.passed}


def _turned(tree, path):
    """The tree with one weight's axes reversed."""
    if not path:
        return tree.T
    return {**tree, path[0]: _turned(tree[path[0]], path[1:])}


def _damaged(model, name):
    replace = dataclasses.replace
    if name == "random unet":
        return replace(model, unet_params=random_parameters(model.unet, 0))
    if name == "random vae":
        return replace(model, vae_params=random_parameters(model.vae, 0))
    if name == "random text encoder":
        return replace(model, text_params=random_parameters(model.text_encoder, 0))
    if name == "prediction type":
        return replace(model, schedule=replace(model.schedule, prediction_type="epsilon"))
    if name == "scaling factor":
        return replace(model, scaling_factor=1.0 / model.scaling_factor)
    if name == "time embedding turned":
        path = ("time_embedding", "linear_2", "kernel")
        return replace(model, unet_params=_turned(model.unet_params, path))
    if name == "deaf to time":
        silent = jax.tree.map(jnp.zeros_like, model.unet_params["time_embedding"])
        return replace(model, unet_params={**model.unet_params, "time_embedding": silent})
    if name == "words lost":
        blank = jax.tree.map(jnp.zeros_like, model.text_params)
        return replace(model, text_params=blank)
    assert name == "not a number"
    broken = jax.tree.map(lambda leaf: leaf, model.text_params)
    broken["final_layer_norm"]["scale"] = broken["final_layer_norm"]["scale"].at[3].set(jnp.nan)
    return replace(model, text_params=broken)


@pytest.mark.parametrize(("name", "size"), [("toybox", 128), ("toybox64", 64)])
def test_the_bundled_models_pass(name, size):
    model, probe = load_model(toybox.model_folder(name)), model_check.toybox_probe(size)
    findings = model_check.check(model, probe)
    assert [finding.question for finding in findings if not finding.passed] == []
    assert len(findings) == 7


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("random unet", {NOISE}),
        ("random vae", {PICTURES}),
        ("random text encoder", {CAPTION}),
        ("prediction type", {NOISE}),
        ("scaling factor", {SIZE}),
        ("time embedding turned", {NOISE}),
        ("deaf to time", {TIME}),
        ("words lost", {WORDS}),
        ("not a number", {WEIGHTS, WORDS}),
    ],
)
def test_damage_is_detected(model, probe, damage, found):
    assert found <= _failed(_damaged(model, damage), probe)


def test_a_wrong_prediction_type_is_recognized(model, probe):
    findings = {
        finding.question: finding for finding in model_check.check(_damaged(model, "prediction type"), probe)
    }
    assert "fit prediction_type v_prediction" in findings[NOISE].otherwise


def test_parts_are_counted(model):
    found = {part.name: part for part in model_check.parts(model)}
    unet = jax.tree.leaves(model.unet_params)
    assert found["UNet"].parameters == sum(np.size(leaf) for leaf in unet)
    assert found["UNet"].bytes == 4 * found["UNet"].parameters and found["UNet"].dtypes == "float32"
    assert set(found) == {"text encoder", "UNet", "VAE"}


def test_drawings_differ_and_fill_their_range():
    probe = model_check.drawn_probe(32)
    assert probe.pictures.shape == (3, 32, 32, 3) and len(set(probe.captions)) == 3
    assert probe.pictures.min() >= 0 and probe.pictures.max() <= 1
    means = probe.pictures.mean(axis=(1, 2))
    assert np.abs(means[:, None] - means[None]).max(axis=-1)[~np.eye(3, dtype=bool)].min() > 0.05
    # The first picture is a red circle on white.
    np.testing.assert_allclose(probe.pictures[0, 16, 16], [1, 0, 0], atol=0.02)
    np.testing.assert_allclose(probe.pictures[0, 0, 0], [1, 1, 1], atol=0.02)
