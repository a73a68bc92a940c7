"""Identities between the one-step losses, in float64 precision."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.random import Draws
from ge3d_jax.diffusion.schedule import add_noise, ddim_step, predict_x0
from ge3d_jax.guidance.base import Progress
from ge3d_jax.guidance.cds import CDS
from ge3d_jax.guidance.csd import CSD
from ge3d_jax.guidance.mvdream import MVDream
from ge3d_jax.guidance.sds import SDS
from tests.guidance import fakes, golden

VIEWS = 4
PROGRESS = Progress(40, 100)
SCALE = 7.5
TIMES = np.array([35, 742, 410, 905], np.int32)
AVOIDED = pytest.mark.parametrize("avoided", [0, 2])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def _close(value, expected):
    assert golden.largest_difference(value, expected) < 1e-10


def _drawn(loss, times=TIMES):
    """Noise for each view (for CDS, shared by all views) at these times."""
    noise = fakes.latents(VIEWS)[::-1].copy()
    if isinstance(loss, CDS):
        shared = {"noise": jnp.asarray(noise[:1]), "lower": jnp.int32(30)}
        return Draws(shared=shared, per_view={"times": jnp.asarray(times)})
    return Draws(shared={}, per_view={"noise": jnp.asarray(noise), "times": jnp.asarray(times)})


def _gradient(loss, text, times=TIMES):
    """The gradient of a single view, i.e. times the number of views."""
    denoiser = fakes.smooth_denoiser(VIEWS)
    drawn = _drawn(loss, times)
    gradient, _ = golden.gradient_of(loss, fakes.latents(VIEWS), text, drawn, denoiser, PROGRESS)
    assert gradient.dtype == np.float64
    return gradient * VIEWS


def _signal_and_noise(times):
    alphas = np.asarray(golden.schedule().alphas_cumprod)[times][..., None, None, None]
    return np.sqrt(alphas), np.sqrt(1 - alphas)


@AVOIDED
def test_sds_is_an_edit_in_one_step(avoided):
    text, z = fakes.texts(VIEWS, avoided=avoided), fakes.latents(VIEWS)
    denoiser = fakes.smooth_denoiser(VIEWS)
    x = add_noise(denoiser.schedule, z, _drawn(SDS()).per_view["noise"], TIMES)
    epsilon = denoiser.branches(x, TIMES, text, text.negative).guided_from_text(SCALE)
    step = z - predict_x0(denoiser.schedule, x, epsilon, TIMES)
    signal, sigma = _signal_and_noise(TIMES)
    _close(_gradient(SDS(scale=SCALE), text), signal * sigma * step)
    _close(_gradient(SDS(scale=SCALE, weighting="ratio"), text), step)


def test_a_step_of_guidance_in_sds_is_csd():
    text = fakes.texts(VIEWS, avoided=0)
    csd = CSD(weighting="variance", normalized=False, negative_scale=(-1.0, -1.0), empty_scale=(0.0, 0.0))
    difference = _gradient(SDS(scale=9.0), text) - _gradient(SDS(scale=7.0), text)
    _close(difference, 2.0 * _gradient(csd, text))


def test_normalized_csd_has_a_norm_of_one():
    text = fakes.texts(VIEWS, avoided=2)
    plain = _gradient(CSD(normalized=False), text)
    normalized = _gradient(CSD(normalized=True), text)
    # Up to the 1e-8 that keeps it finite.
    assert np.linalg.norm(normalized) == pytest.approx(1.0, abs=1e-7)
    assert golden.largest_difference(normalized, plain / np.linalg.norm(plain)) < 1e-7


@AVOIDED
def test_cds_compares_clean_latents_of_two_times(avoided):
    text, z = fakes.texts(VIEWS, avoided=avoided), fakes.latents(VIEWS)
    denoiser = fakes.smooth_denoiser(VIEWS)
    loss = CDS(scale=(SCALE, SCALE), clip=(1e9, 1e9))
    drawn = _drawn(loss)
    schedule, lower = denoiser.schedule, drawn.shared["lower"]

    def guided(x, t):
        return denoiser.branches(x, t, text, text.negative).guided_from_text(SCALE)

    x = add_noise(schedule, z, drawn.shared["noise"], TIMES)
    epsilon = guided(x, TIMES)
    below = ddim_step(schedule, x, epsilon, TIMES, lower)
    clean = predict_x0(schedule, x, epsilon, TIMES)
    clean_below = predict_x0(schedule, below, guided(below, lower), lower)
    signal, sigma = _signal_and_noise(int(lower))
    _close(_gradient(loss, text), (clean_below - clean) * signal / sigma)


@AVOIDED
def test_mvdream_without_rescaling_is_sds(avoided):
    text = fakes.texts(VIEWS, avoided=avoided)
    times = np.full(VIEWS, 566, np.int32)
    # Without Perp-Neg, SDS applies its scale relative to the prediction with the text.
    sds = SDS(scale=SCALE if avoided else SCALE - 1.0, weighting="ratio")
    mvdream = MVDream(scale=SCALE, recon_std_rescale=0.0)
    _close(_gradient(mvdream, text, times), _gradient(sds, text, times))


@pytest.mark.parametrize(
    "plain, counted",
    [
        (SDS(scale=8.0), SDS(scale=9.0)),
        (CDS(scale=(8.0, 8.0)), CDS(scale=(9.0, 9.0))),
        (CDS(scale=(8.0, 8.0), recon_std_rescale=0.5), CDS(scale=(9.0, 9.0), recon_std_rescale=0.5)),
        (MVDream(), MVDream()),
        (CSD(normalized=False), CSD(normalized=False)),
    ],
)
def test_perp_neg_without_weight_is_plain_guidance(plain, counted):
    # With Perp-Neg, the scale is relative to the prediction without the text.
    text = fakes.texts(VIEWS, avoided=2, weight=0.0)
    without = dataclasses.replace(text, avoided=text.avoided[:, :0], weights=text.weights[:, :0])
    _close(_gradient(counted, text), _gradient(plain, without))
    # With nonzero weights the gradient is different.
    away = fakes.texts(VIEWS, avoided=2)
    assert golden.largest_difference(_gradient(counted, away), _gradient(plain, without)) > 1e-3


@pytest.mark.parametrize("loss", [SDS(), CSD(normalized=False), CDS(), CDS(recon_std_rescale=0.5)])
def test_perp_neg_gives_each_view_its_own_state_and_time(loss):
    # In threestudio, by contrast, the negatives get the state of another view.
    text = fakes.texts(VIEWS, avoided=2)
    together = _gradient(loss, text)
    drawn = _drawn(loss)
    for view in range(VIEWS):
        one = np.array([view])
        alone = dataclasses.replace(
            text, positive=text.positive[one], avoided=text.avoided[one], weights=text.weights[one]
        )
        of_view = Draws(drawn.shared, {name: array[one] for name, array in drawn.per_view.items()})
        z, denoiser = fakes.latents(VIEWS)[one], fakes.smooth_denoiser(1)
        gradient, _ = golden.gradient_of(loss, z, alone, of_view, denoiser, PROGRESS)
        _close(gradient, together[one])
