"""Functions of a complete model: encoding, decoding, prediction, sampling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion import pipeline, sampling
from ge3d_jax.diffusion.schedule import ddim_step
from ge3d_jax.diffusion.tokenizer import build_tokenizer
from tests.reference_models import channels_last, tiny_model

# Compiled once for all tests: running a network operation by operation takes longer than compiling it.
predict_epsilon = jax.jit(pipeline.predict_epsilon)
encode_images = jax.jit(pipeline.encode_images)
STEPS = 4

PROMPTS = ["a red robot", "the front view of a blue mushroom with a very long end"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model that predicts ε."""
    return tiny_model(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def text(model):
    """The embeddings of PROMPTS."""
    return pipeline.encode_text(model, PROMPTS)


def test_texts_are_encoded_one_by_one(model, text):
    assert text.shape == (2, 12, 12)
    for index, prompt in enumerate(PROMPTS):
        np.testing.assert_allclose(pipeline.encode_text(model, [prompt])[0], text[index], atol=1e-5)


@pytest.mark.parametrize(("longest", "length"), [(9, 9), (40, 12)])
def test_prompts_are_as_long_as_both_the_tokenizer_and_the_text_encoder_allow(
    model, tmp_path, longest, length
):
    tokenizer = build_tokenizer(["red", "robot"], tmp_path, longest)
    other = model.replace(words=pipeline.Words(tokenizer))
    assert pipeline.tokenize(other, ["a red robot", ""]).shape == (2, length)


@pytest.mark.parametrize(("dtype", "is_exact"), [(jnp.float32, True), (jnp.bfloat16, False)])
def test_float32_is_not_rounded_to_tf32_on_a_gpu(model, text, dtype, is_exact):
    cast = dataclasses.replace(model, unet=model.unet.clone(dtype=dtype))
    program = jax.make_jaxpr(lambda x: pipeline.predict_epsilon(cast, x, jnp.int32(3), text[:1]))(
        jnp.zeros((1, 8, 8, 4))
    )
    assert ("HIGHEST" in str(program)) is is_exact


def test_a_limit_of_queries_at_a_time_reaches_both_networks_and_changes_no_result(model):
    limited = pipeline.with_attention_chunk(model, 3)
    assert limited.unet.attention_chunk == limited.vae.attention_chunk == 3
    assert model.unet.attention_chunk == model.vae.attention_chunk > 3
    image = jax.random.uniform(jax.random.key(1), (1, 16, 16, 3))
    np.testing.assert_allclose(
        encode_images(limited, image, None), encode_images(model, image, None), atol=1e-5
    )


def test_later_words_do_not_change_earlier_embeddings(model, text):
    other = pipeline.encode_text(model, ["a red mushroom"])
    np.testing.assert_allclose(other[0, :3], text[0, :3], atol=1e-5)
    assert np.abs(other[0, 3] - text[0, 3]).max() > 1e-2


def test_times_may_be_shared_or_one_per_sample(model, text):
    x = jnp.asarray(channels_last("x", 2, 4, 8, 8))
    shared = predict_epsilon(model, x, jnp.array(300), text)
    np.testing.assert_allclose(predict_epsilon(model, x, jnp.array([300, 300]), text), shared, atol=1e-5)
    mixed = predict_epsilon(model, x, jnp.array([300, 900]), text)
    np.testing.assert_allclose(mixed[0], shared[0], atol=1e-5)
    assert np.abs(mixed[1] - shared[1]).max() > 1e-3


def test_v_prediction_is_converted(model, text, tmp_path):
    converted = tiny_model(tmp_path, "v_prediction")
    x, t = jnp.asarray(channels_last("x", 2, 4, 8, 8)), 400
    output = predict_epsilon(model, x, jnp.array(t), text)
    alpha = model.schedule.alphas_cumprod[t]
    expected = jnp.sqrt(alpha) * output + jnp.sqrt(1 - alpha) * x
    np.testing.assert_allclose(predict_epsilon(converted, x, jnp.array(t), text), expected, atol=1e-5)


def test_encoding_samples_around_the_mean(model):
    image = jax.random.uniform(jax.random.key(1), (1, 16, 16, 3))
    mean = encode_images(model, image, None)
    assert mean.shape == (1, 8, 8, 4)
    many = encode_images(model, jnp.repeat(image, 400, 0), jax.random.key(2))
    variables = {"params": model.vae_params}
    _, log_variance = model.vae.apply(variables, 2 * image - 1, method="encode")
    deviation = model.scaling_factor * jnp.exp(0.5 * log_variance[0])
    # Four and a half standard errors are a safe bound for 256 numbers over 400 samples.
    np.testing.assert_array_less(np.abs(many.mean(0) - mean[0]) / deviation, 4.5 / np.sqrt(400))
    np.testing.assert_allclose(many.std(0) / deviation, 1, atol=4.5 / np.sqrt(800))


def test_the_log_variance_of_latents_is_clipped_as_in_diffusers(model):
    layer = model.vae_params["quant_conv"]
    # Two channels far above the range, and two far below it.
    bias = layer["bias"].at[4:].set(jnp.array([1e3, 1e3, -1e3, -1e3]))
    extreme = model.replace(vae_params={**model.vae_params, "quant_conv": {**layer, "bias": bias}})
    _, log_variance = jax.jit(pipeline.encode_posterior)(extreme, jnp.zeros((1, 16, 16, 3)))
    np.testing.assert_array_equal(log_variance[..., :2], 20.0)
    np.testing.assert_array_equal(log_variance[..., 2:], -30.0)


def test_latents_are_scaled(model):
    latents = channels_last("latents", 1, 4, 8, 8)
    variables = {"params": model.vae_params}
    expected = model.vae.apply(variables, latents / model.scaling_factor, method="decode")
    images = pipeline.decode_latents(model, latents)
    np.testing.assert_allclose(images, np.clip(expected / 2 + 0.5, 0, 1), atol=1e-6)
    assert images.shape == (1, 16, 16, 3)


def test_sampling_equals_a_loop_of_steps(model, text):
    negative = pipeline.encode_text(model, [""])
    start = jnp.asarray(channels_last("start", 2, 4, 8, 8))
    x = start
    times = [751, 501, 251, 1, 0]
    for now, then in zip(times, times[1:], strict=False):
        without = predict_epsilon(model, x, jnp.array(now), jnp.repeat(negative, 2, 0))
        wanted = predict_epsilon(model, x, jnp.array(now), text)
        x = ddim_step(model.schedule, x, without + 3.0 * (wanted - without), now, then)
    key = jax.random.key(0)
    ours = sampling.sample(model, key, text, negative, steps=STEPS, guidance_scale=3.0, latents=start)
    np.testing.assert_allclose(ours, x, atol=1e-4 * float(jnp.abs(x).max()))


def test_sampling_follows_the_spacing_of_the_models_own_scheduler(model, text):
    trailing = model.replace(schedule=dataclasses.replace(model.schedule, timestep_spacing="trailing"))
    start = jnp.asarray(channels_last("start", 2, 4, 8, 8))
    # A single step from the very last time, where "leading" would take time 1.
    expected = ddim_step(model.schedule, start, predict_epsilon(model, start, jnp.array(999), text), 999, 0)
    ours = sampling.sample(
        trailing, jax.random.key(0), text, text, steps=1, guidance_scale=1.0, latents=start
    )
    np.testing.assert_allclose(ours, expected, atol=1e-4 * float(jnp.abs(expected).max()))


def test_without_a_size_in_the_config_the_starting_latents_are_asked_for(model, text):
    config = dataclasses.replace(model.unet.config, sample_size=None)
    sizeless = model.replace(unet=model.unet.clone(config=config))
    with pytest.raises(UserError, match="has no sample_size; give the starting latents"):
        sampling.sample(sizeless, jax.random.key(0), text, text, steps=1, guidance_scale=1.0)


def test_the_key_draws_the_noise(model, text):
    def draw(seed):
        return sampling.sample(model, jax.random.key(seed), text, text, steps=STEPS, guidance_scale=1.0)

    np.testing.assert_array_equal(draw(0), draw(0))
    assert draw(0).shape == (2, 8, 8, 4)
    assert np.abs(draw(0) - draw(1)).max() > 0.1


def test_sampling_times_are_spaced_as_in_diffusers():
    assert sampling.sampling_times(1000, 25).tolist() == [*range(961, 0, -40), 0]
    assert sampling.sampling_times(1000, 3).tolist() == [667, 334, 1, 0]


def test_other_spacings_of_sampling_times_are_diffusers():
    times = sampling.sampling_times
    assert times(1000, 50, "trailing").tolist() == [*range(999, 0, -20), 0]
    # 1000, 666.67 and 333.33, rounded, minus one.
    assert times(1000, 3, "trailing").tolist() == [999, 666, 332, 0]
    assert times(1000, 1, "trailing").tolist() == [999, 0]
    # 937.5 is rounded to 938 before one is subtracted.
    assert times(1000, 16, "trailing").tolist()[:3] == [999, 937, 874]
    assert times(1000, 5, "linspace").tolist() == [999, 749, 500, 250, 0, 0]
    for spacing in ("trailing", "linspace"):
        assert len(times(1000, 1000, spacing)) == 1001
        with pytest.raises(UserError, match="between 1 and 1000"):
            times(1000, 1001, spacing)


@pytest.mark.parametrize("steps", [0, -1, 1000, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(UserError, match=f"{steps} sampling steps do not fit; choose between 1 and 999"):
        sampling.sampling_times(1000, steps)
    assert sampling.sampling_times(1000, 999).tolist() == [*range(999, 0, -1), 0]


def test_sizes_that_do_not_fit_are_refused(model, text):
    with pytest.raises(UserError, match="15×16"):
        pipeline.encode_images(model, jnp.zeros((1, 15, 16, 3)), None)
    with pytest.raises(UserError, match="7×8"):
        predict_epsilon(model, jnp.zeros((2, 7, 8, 4)), 3, text)
    with pytest.raises(UserError, match="A text of 13 tokens is too long .*; use at most 12"):
        pipeline.encode_text_ids(model, jnp.zeros((1, 13), jnp.int32))
