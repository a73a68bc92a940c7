"""Alignment with another model's latents: the fit, and the autoencoder's unchanged decoding."""

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.diffusion.networks.vae import AutoencoderKL, VAEConfig
from ge3d_jax.diffusion.tokenizer import build_tokenizer
from ge3d_jax.toybox.model.alignment import change_latents, fit_latents, with_vocabulary
from tests.tiny_model import random_parameters

MATRIX = np.asarray([[1.0, 0.5, 0.0, 0.2], [0.0, -2.0, 0.3, 0.0], [0.1, 0.0, 0.7, 0.0], [0.0, 0.4, 0.0, 1.5]])
OFFSET = np.asarray([0.3, -1.0, 0.0, 2.0])


def test_the_fit_finds_an_affine_map_among_noise():
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(20, 6, 5, 4))
    wanted = latents @ MATRIX + OFFSET + 1e-3 * rng.normal(size=latents.shape)
    matrix, offset = fit_latents(latents.astype(np.float32), wanted)
    np.testing.assert_allclose(matrix, MATRIX, atol=1e-3)
    np.testing.assert_allclose(offset, OFFSET, atol=1e-3)


def test_changed_latents_are_the_map_of_the_old_ones_and_decode_to_the_same_pictures():
    config = VAEConfig(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=8,
    )
    vae = AutoencoderKL(config)
    params = random_parameters(vae, 0)
    images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3), minval=-1.0)
    encode = jax.jit(lambda params: vae.apply({"params": params}, images, method="encode"))
    decode = jax.jit(lambda params, latents: vae.apply({"params": params}, latents, method="decode"))

    mean, log_variance = encode(params)
    typical = np.asarray(log_variance).mean(axis=(0, 1, 2))
    changed = change_latents(params, MATRIX, OFFSET, typical)
    new_mean, new_log_variance = encode(changed)
    np.testing.assert_allclose(new_mean, np.asarray(mean) @ MATRIX + OFFSET, atol=1e-5)
    np.testing.assert_allclose(decode(changed, new_mean), decode(params, mean), atol=1e-4)
    # Estimate the variances after the map from samples of independent latents.
    draws = np.random.default_rng(2).normal(size=(200_000, 4)) * np.exp(0.5 * typical)
    drawn = jnp.broadcast_to(jnp.log(jnp.var(draws @ MATRIX, axis=0)), new_log_variance.shape)
    np.testing.assert_allclose(new_log_variance, drawn, atol=0.02)


def test_a_larger_vocabulary_keeps_what_its_words_meant(tmp_path):
    before = build_tokenizer(["a", "red", "view"], tmp_path / "before", 8)
    after = build_tokenizer(["a", "overhead", "red", "view"], tmp_path / "after", 8)
    table = np.random.default_rng(0).normal(size=(len(before), 3)).astype(np.float32)
    params = {"embeddings": {"token_embedding": {"embedding": table}, "position_embedding": 1}, "encoder": 2}
    changed = with_vocabulary(params, before, after)
    rows = changed["embeddings"]["token_embedding"]["embedding"]
    assert rows.shape == (len(after), 3) and len(after) > len(before)
    assert changed["encoder"] == 2 and changed["embeddings"]["position_embedding"] == 1
    text = "a red view"
    ids, new_ids = before(text)["input_ids"], after(text)["input_ids"]
    assert ids != new_ids
    np.testing.assert_array_equal(rows[new_ids], table[ids])
    np.testing.assert_allclose(rows[after("overhead")["input_ids"][1]], table.mean(axis=0), rtol=1e-5)
