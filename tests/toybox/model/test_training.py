"""Training: losses compared with closed forms, the running average, and runs that survive interruptions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.progress import Progress

from ge3d_jax.diffusion.networks.vae import AutoencoderKL, VAEConfig
from ge3d_jax.diffusion.schedule import add_noise, noise_schedule_from_config
from ge3d_jax.toybox.model import recipe, training
from ge3d_jax.toybox.model.training import SCHEDULER_CONFIG, diffusion_loss, start_training, vae_loss
from tests.tiny_model import random_parameters

SCHEDULE = noise_schedule_from_config(SCHEDULER_CONFIG)


class Module:
    """A stand-in for a network: returns whatever `function` returns."""

    def __init__(self, function):
        self.function = function

    def apply(self, variables, *inputs):
        return self.function(*inputs)


def loss_of(unet, latents):
    ids, shares = jnp.zeros((len(latents), 1, 4), jnp.int32), jnp.ones((len(latents), 1))
    text = Module(lambda ids: jnp.zeros((*ids.shape, 2)))
    params = {"unet": {}, "text_encoder": {}}
    return diffusion_loss(params, Module(unet), text, SCHEDULE, jax.random.key(0), latents, ids, shares)


def test_diffusion_loss_vanishes_for_the_true_velocity():
    """For zero latents, the noisy latent is √(1−ᾱ)·ε, and v = √ᾱ·ε."""
    signal = SCHEDULE.alphas_cumprod

    def unet(noisy, times, text):
        return noisy * jnp.sqrt(signal / (1 - signal))[times][:, None, None, None]

    assert loss_of(unet, jnp.zeros((64, 4, 4, 4))) < 1e-9


def test_the_text_embedding_mixes_the_captions_by_their_shares():
    ids = jnp.asarray([[[1, 2], [5, 6], [9, 0]], [[3, 3], [7, 9], [1, 1]]])
    shares = jnp.asarray([[0.2, 0.6, 0.2], [1.0, 0.0, 0.0]])
    seen = []

    def unet(noisy, times, text):
        seen.append(text[..., 0])
        return noisy

    text = Module(lambda ids: ids[..., None].astype(jnp.float32))
    params = {"unet": {}, "text_encoder": {}}
    diffusion_loss(
        params, Module(unet), text, SCHEDULE, jax.random.key(0), jnp.ones((2, 4, 4, 4)), ids, shares
    )
    np.testing.assert_allclose(seen[0], [[5.0, 4.0], [3.0, 3.0]], rtol=1e-6)


def test_diffusion_loss_of_a_network_that_returns_zero_is_the_weighted_mean_of_v():
    """With unit-variance latents and noise, E[v²] = 1, so the loss is the mean weight over the times."""
    latents = jax.random.normal(jax.random.key(1), (1000, 4, 4, 4))
    signal = np.asarray(SCHEDULE.alphas_cumprod, np.float64)
    snr = signal / (1 - signal)
    expected = np.mean(np.minimum(snr, 5.0) / (snr + 1.0))
    loss = loss_of(lambda noisy, times, text: jnp.zeros_like(noisy), latents)
    np.testing.assert_allclose(loss, expected, rtol=0.03)


def test_vae_loss_has_finite_gradients_that_lower_it():
    vae = AutoencoderKL(
        VAEConfig(
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            block_out_channels=(4,),
            layers_per_block=1,
            norm_num_groups=2,
            sample_size=8,
        )
    )
    params = random_parameters(vae, 0)
    images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))

    @jax.jit
    def loss_and_gradients(params):
        return jax.value_and_grad(vae_loss)(params, vae, jax.random.key(2), images)

    loss, gradients = loss_and_gradients(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    size = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradients)))
    lower, _ = loss_and_gradients(jax.tree.map(lambda p, g: p - 1e-3 * g / size, params, gradients))
    assert lower < loss


class Autoencoder:
    """A stand-in whose latents are half the picture, with a known variance, and whose decoder blurs."""

    log_variance = -2.0

    def apply(self, variables, values, *, method):
        if method == "encode":
            return 0.5 * values, jnp.full_like(values, self.log_variance)
        return 0.7 * values


def test_vae_loss_is_that_of_pixels_edges_and_divergence(monkeypatch):
    monkeypatch.setattr(training, "_FADED_SHARE", 0.0)
    images, key = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3)), jax.random.key(2)
    targets = 2.0 * np.asarray(images) - 1.0
    mean = 0.5 * targets
    noise = np.asarray(jax.random.normal(jax.random.split(key, 3)[0], mean.shape))
    decoded = 0.7 * (mean + np.exp(-1.0) * noise)
    expected = np.abs(decoded - targets).mean()
    for axis in (1, 2):
        edges = np.abs(np.diff(decoded, axis=axis) - np.diff(targets, axis=axis))
        expected += training._EDGE_WEIGHT * edges.mean()
    expected += training._KL_WEIGHT * 0.5 * np.mean(mean**2 + np.exp(-2.0) - 1.0 + 2.0)
    assert float(vae_loss({}, Autoencoder(), key, images)) == pytest.approx(expected, rel=1e-5)


def test_the_diffusion_model_learns_from_latents_that_are_sampled_and_scaled():
    seen = []

    def unet(noisy, times, text):
        seen.append((noisy, times))
        return noisy

    optimizer = optax.sgd(1.0)
    mean = jax.random.normal(jax.random.key(1), (4, 4, 4, 4))
    key, log_variance = jax.random.key(2), -1.0
    training.diffusion_step(
        start_training({"unet": {}, "text_encoder": {}}, optimizer),
        key,
        (mean, jnp.full_like(mean, log_variance)),
        jnp.zeros((4, 1, 4), jnp.int32),
        jnp.ones((4, 1)),
        SCHEDULE,
        jnp.float32(0.3),
        unet=Module(unet),
        text_encoder=Module(lambda ids: jnp.zeros((*ids.shape, 2))),
        optimizer=optimizer,
    )
    sample_key, loss_key = jax.random.split(key)
    latents = 0.3 * (mean + np.exp(-0.5) * jax.random.normal(sample_key, mean.shape))
    noise = jax.random.normal(jax.random.split(loss_key)[1], mean.shape)
    noisy, times = seen[0]
    np.testing.assert_allclose(noisy, add_noise(SCHEDULE, latents, noise, times), rtol=1e-4, atol=1e-5)


def test_running_average_trails_the_parameters():
    optimizer = optax.sgd(1.0)
    state = start_training({"a": jnp.zeros(2)}, optimizer)
    gradients = {"a": -jnp.ones(2)}
    for _ in range(3):
        state = training.apply_gradients(state, gradients, optimizer)
    assert int(state.step) == 3
    np.testing.assert_allclose(state.params["a"], 3.0)
    # Computed by hand: decays 1/10, 2/11, 3/12.
    first = 0.9 * 1.0
    second = 2 / 11 * first + 9 / 11 * 2.0
    np.testing.assert_allclose(state.average["a"], 3 / 12 * second + 9 / 12 * 3.0, rtol=1e-6)


def test_muon_is_used_for_kernels_only():
    params = {"layer": {"kernel": jnp.zeros((3, 3, 4, 8)), "bias": jnp.zeros(8)}}
    dimensions = training._muon_dimensions(params)["layer"]
    assert dimensions["bias"] is None
    assert (dimensions["kernel"].reduction_axis, dimensions["kernel"].output_axis) == ((0, 1, 2), 3)


class Interrupted(Exception):
    pass


def run_steps(folder, *, stop_at=None, most=1):
    """Run twelve steps, saving after every fourth."""

    def step(state, data, index, rows):
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), index), (3,)) + data[rows].sum()
        params = jax.tree.map(lambda p: 0.9 * p + noise, state.params)
        return state.replace(params=params, step=state.step + 1), jnp.sum(noise)

    def rows_of(index):
        if index == stop_at:
            raise Interrupted
        return np.array([index, index + 1])

    state = start_training({"a": jnp.zeros(3)}, optax.adam(1e-3))
    data, bar = jnp.arange(13.0), Progress(disable=True)
    return recipe.run_steps("fake", folder, state, 12, 4, step, data, rows_of, bar, most=most)


@pytest.mark.parametrize("most", [1, 5])
def test_an_interrupted_stage_continues_with_the_same_numbers(most, tmp_path):
    whole = run_steps(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run_steps(tmp_path / "parts", stop_at=9, most=most)
    resumed = run_steps(tmp_path / "parts", most=most)
    assert int(resumed.step) == 12
    np.testing.assert_allclose(whole.params["a"], resumed.params["a"], rtol=1e-6)
    # A program runs all steps between two saved states, and reports the loss once.
    losses = (tmp_path / "fake.loss.txt").read_text().splitlines()
    assert [int(line.split()[0]) for line in losses[-2:]] == ([11, 12] if most == 1 else [8, 12])
    # A finished stage is not repeated.
    finished = run_steps(tmp_path / "parts", stop_at=0, most=most)
    np.testing.assert_array_equal(finished.params["a"], resumed.params["a"])


def test_scaling_factor_gives_latents_unit_variance():
    rng = np.random.default_rng(0)
    mean = rng.normal(scale=1.5, size=(50, 8, 8, 4)).astype(np.float16)
    log_variance = np.full_like(mean, np.log(0.25))
    data = recipe._LatentData(mean, log_variance, np.zeros((50, 2, 4), np.int32), np.ones(50, np.float32))
    drawn = mean + 0.5 * rng.normal(size=mean.shape)
    np.testing.assert_allclose(np.std(data.scaling_factor * drawn), 1.0, rtol=0.02)
