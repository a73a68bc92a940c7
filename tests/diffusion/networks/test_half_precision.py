"""The networks in bfloat16: results close to float32, and float32 in places sensitive to rounding."""

import dataclasses

import jax
import jax.extend.core
import jax.numpy as jnp
import pytest

from ge3d_jax.diffusion import pipeline
from tests.reference_models import channels_last, tiny_model

# 2⁻⁹ is one rounding; those of a few dozen layers accumulate like a random walk.
TOLERANCE = 0.03
PROMPTS = ["a red robot", "a blue mushroom"]


def _in_half(model):
    """The same model, stored and computed in bfloat16."""
    parameters = ("unet_params", "vae_params", "text_params")
    networks = ("unet", "vae", "text_encoder")
    stored = {
        name: jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), getattr(model, name))
        for name in parameters
    }
    return dataclasses.replace(
        model, **stored, **{name: getattr(model, name).clone(dtype=jnp.bfloat16) for name in networks}
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    model = tiny_model(tmp_path_factory.mktemp("words"))
    return model, _in_half(model)


def _distance(got, expected):
    assert got.dtype == jnp.float32
    return float(jnp.linalg.norm(got - expected) / jnp.linalg.norm(expected))


def test_texts_are_close(models):
    whole, half = (pipeline.encode_text(model, PROMPTS) for model in models)
    assert 0 < _distance(half, whole) < TOLERANCE


def test_predictions_are_close(models):
    x, text = jnp.asarray(channels_last("x", 2, 4, 8, 8)), pipeline.encode_text(models[0], PROMPTS)
    whole, half = (jax.jit(pipeline.predict_epsilon)(model, x, jnp.array(400), text) for model in models)
    assert 0 < _distance(half, whole) < TOLERANCE


def test_latents_and_their_gradients_are_close(models):
    image = jax.random.uniform(jax.random.key(0), (1, 16, 16, 3))
    direction = channels_last("direction", 1, 4, 8, 8)

    @jax.jit
    def encode(model):
        return jax.vjp(lambda x: pipeline.encode_images(model, x, jax.random.key(1)), image)

    (whole, carry_back), (half, carry_half) = (encode(model) for model in models)
    assert 0 < _distance(half, whole) < TOLERANCE
    (gradient,), (half_gradient,) = carry_back(direction), carry_half(direction)
    assert 0 < _distance(half_gradient, gradient) < 2 * TOLERANCE


def test_decoded_images_are_close(models):
    latents = jnp.asarray(channels_last("latents", 1, 4, 8, 8))
    whole, half = (jax.jit(pipeline.decode_latents)(model, latents) for model in models)
    assert 0 < _distance(half, whole) < TOLERANCE


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _equations(inner)


def test_statistics_softmax_and_time_are_float32(models):
    x, text = jnp.zeros((1, 8, 8, 4)), jnp.zeros((1, 12, 12))
    jaxprs = [
        jax.make_jaxpr(lambda: pipeline.predict_epsilon(models[1], x, 5, text))().jaxpr,
        jax.make_jaxpr(lambda: pipeline.encode_images(models[1], jnp.zeros((1, 16, 16, 3)), None))().jaxpr,
    ]
    seen = {}
    for jaxpr in jaxprs:
        for equation in _equations(jaxpr):
            dtypes = {str(variable.aval.dtype) for variable in equation.invars}
            seen.setdefault(equation.primitive.name, set()).update(dtypes)
    for name in ("rsqrt", "exp", "sin", "cos", "reduce_sum", "reduce_max"):
        assert seen[name] == {"float32"}, name
    assert "bfloat16" in seen["conv_general_dilated"] and "bfloat16" in seen["dot_general"]


def test_compilation_does_not_depend_on_the_identity_of_the_tokenizer(models, tmp_path):
    again = tiny_model(tmp_path)
    assert again.tokenizer is not models[0].tokenizer
    assert jax.tree.structure(again) == jax.tree.structure(models[0])
    assert hash(jax.tree.structure(again)) == hash(jax.tree.structure(models[0]))
