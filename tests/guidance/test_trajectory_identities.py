"""Identities between the losses that follow the DDIM path, in float64 precision."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.random import Draws
from ge3d_jax.diffusion.schedule import add_noise, ddim_step, predict_x0
from ge3d_jax.guidance.fps import FPS
from ge3d_jax.guidance.ge3d import GE3D
from ge3d_jax.guidance.ism import ISM
from ge3d_jax.guidance.losses import LOSSES
from ge3d_jax.guidance.paths import noise_to_signal, walk
from ge3d_jax.guidance.sdi import SDI
from ge3d_jax.guidance.trajectories import Nodes
from tests.guidance import golden, smooth

WALKING = ["fps", "ge3d", "ism", "pfd", "sctd", "sdi", "x0"]
NEGATIVE_OR_EMPTY = pytest.mark.parametrize("has_perp_neg", [False, True])


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def _close(value, expected, tolerance=1e-10):
    assert golden.largest_difference(np.asarray(value), np.asarray(expected)) < tolerance


def _signal(world, t):
    return np.sqrt(np.asarray(world.schedule.alphas_cumprod)[t])


def _node_draws(world, times, active):
    noise = jax.random.normal(jax.random.key(5), smooth.SHAPE)
    return Draws(
        shared={"node_times": jnp.asarray(times, jnp.int32), "active": jnp.int32(active)},
        per_view={"noise": noise},
    )


@NEGATIVE_OR_EMPTY
def test_ism_is_the_way_back_over_its_interval(has_perp_neg):
    world = smooth.world(has_perp_neg=has_perp_neg)
    loss, progress = ISM(), world.progress(700)
    drawn = world.drawn(loss, 700)
    drawn.shared["index"] = jnp.int32(421)
    gradient, _ = world.gradient_of(loss, drawn, progress)
    path = loss.path(world.latents, world.text, drawn, world.denoiser, progress)
    last = int(path.active) - 1
    s, t = int(path.times[last]), int(path.times[-1])
    assert t == 422 and s in (422 - 76, 422 - 77)
    guided = world.denoiser.branches(path.end, t, world.text, world.text.negative).guided(7.5)
    back = path.states[last] - ddim_step(world.schedule, path.end, guided, t, s)
    r_t, r_s = (noise_to_signal(world.schedule, time) for time in (t, s))
    _close(gradient, 0.1 * r_t / (_signal(world, s) * (r_t - r_s)) * back)


@NEGATIVE_OR_EMPTY
def test_ge3d_sums_what_every_step_disagrees_by(has_perp_neg):
    world = smooth.world(has_perp_neg=has_perp_neg)
    times = [0, 70, 150, 220, 300]
    loss = GE3D(nodes=Nodes(count=4), noising_prompt="empty", dbc=False)
    drawn = _node_draws(world, times, 4)
    noised, denoised = loss.trajectories(world.latents, world.text, drawn, world.denoiser)
    ratios = [noise_to_signal(world.schedule, time) for time in times]
    total = jnp.zeros(smooth.SHAPE)
    for i in reversed(range(4)):
        branches = world.denoiser.branches(denoised[i + 1], times[i + 1], world.text, world.text.negative)
        (plain,) = world.denoiser.predict_for(noised[i], times[i], world.text.empty)
        total += (ratios[i + 1] - ratios[i]) * (branches.guided(7.5) - plain)
        _close(noised[i] - denoised[i], _signal(world, times[i]) * total)


def test_ge3ds_coarsest_node_is_ism():
    world = smooth.world(has_perp_neg=False)
    # ISM's times 1, 201, s + 1, i + 1 used as GE3D's nodes.
    ism, progress = ISM(), world.progress(700)
    ism_drawn = world.drawn(ism, 700)
    ism_drawn.shared["index"] = jnp.int32(421)
    gradient, _ = world.gradient_of(ism, ism_drawn, progress)
    path = ism.path(world.latents, world.text, ism_drawn, world.denoiser, progress)
    times = path.times[: int(path.active) + 1]
    ge3d = GE3D(nodes=Nodes(count=len(times) - 1), noising_prompt="empty")
    drawn = Draws(
        shared={"node_times": times, "active": path.active}, per_view={"noise": ism_drawn.per_view["noise"]}
    )
    noised, denoised = ge3d.trajectories(world.latents, world.text, drawn, world.denoiser)
    r_t, r_s = (noise_to_signal(world.schedule, times[index]) for index in (-1, -2))
    weight = r_t / (_signal(world, int(times[-2])) * (r_t - r_s))
    _close(gradient, 0.1 * weight * (noised[-2] - denoised[-2]))


@NEGATIVE_OR_EMPTY
def test_an_fps_node_is_one_clean_latent_less_another(has_perp_neg):
    world = smooth.world(has_perp_neg=has_perp_neg)
    drawn = _node_draws(world, [1, 200, 410, 410, 410], 2)
    gradient, numbers = world.gradient_of(FPS(), drawn, world.progress(0))
    x = add_noise(world.schedule, world.latents, drawn.per_view["noise"], 1)
    now, expected, losses = 1, 0.0, 0.0
    for t in (200, 410):
        (plain,) = world.denoiser.predict_for(x, now, world.text.empty)
        x, now = ddim_step(world.schedule, x, plain, now, t), t
        branches = world.denoiser.branches(x, t, world.text, world.text.negative, world.text.empty)
        difference = predict_x0(world.schedule, x, branches.others[0], t) - predict_x0(
            world.schedule, x, branches.guided(7.5), t
        )
        expected += 0.1 / 2 * difference
        losses += jnp.sum(difference**2, axis=(1, 2, 3)) / 2
    _close(gradient, expected)
    _close(numbers["loss"], losses)


def test_an_fps_node_with_equal_prompts_is_classifier_score_distillation():
    world = smooth.world(has_perp_neg=False)
    world = dataclasses.replace(world, text=dataclasses.replace(world.text, negative=world.text.empty))
    drawn = _node_draws(world, [1, 300, 300, 300, 300], 1)
    gradient, _ = world.gradient_of(FPS(scale=4.0, strength=1.0), drawn, world.progress(0))
    x = FPS().edits(world.latents, world.text, drawn, world.denoiser).states[0]
    empty, positive = world.denoiser.predict_for(x, 300, world.text.empty, world.text.positive)
    _close(gradient, 4.0 * noise_to_signal(world.schedule, 300) * (positive - empty))


@NEGATIVE_OR_EMPTY
def test_consistent_sdi_compares_noises(has_perp_neg):
    world = smooth.world(has_perp_neg=has_perp_neg)
    loss, progress = SDI(), world.progress(6_100)
    drawn = world.drawn(loss, 6_100)
    gradient, _ = world.gradient_of(loss, drawn, progress)
    path = loss.path(world.latents, world.text, drawn, world.denoiser, progress)
    t, top = int(loss.time(progress)), int(path.times[-1])
    assert top == t + int(drawn.shared["beyond"])
    share = np.asarray(world.schedule.alphas_cumprod)[top]
    found = (path.end - np.sqrt(share) * world.latents) / np.sqrt(1.0 - share)
    x = add_noise(world.schedule, world.latents, found, t)
    branches = world.denoiser.branches(x, t, world.text, world.text.negative)
    guided = branches.guided(7.5 if has_perp_neg else 8.5)
    expected = noise_to_signal(world.schedule, t) * (guided - found) / world.latents.size
    _close(gradient, expected)


@NEGATIVE_OR_EMPTY
def test_ge3d_with_one_node_is_an_edit_in_one_step(has_perp_neg):
    world = smooth.world(has_perp_neg=has_perp_neg)
    loss = GE3D(nodes=Nodes(count=1))
    drawn = _node_draws(world, [0, 400], 1)
    gradient, _ = world.gradient_of(loss, drawn, world.progress(0))
    x = add_noise(world.schedule, world.latents, drawn.per_view["noise"], 0)
    (plain,) = world.denoiser.predict_for(x, 0, world.text.negative)
    x = ddim_step(world.schedule, x, plain, 0, 400)
    guided = world.denoiser.branches(x, 400, world.text, world.text.negative).guided(7.5)
    _close(gradient, 0.1 * (world.latents - ddim_step(world.schedule, x, guided, 400, 0)))


def _draws_of(world, loss):
    return world.drawn(loss, 1_234), world.progress(1_234)


@pytest.mark.parametrize("name", [name for name in WALKING if name not in ("ism", "sdi", "pfd")])
def test_perp_neg_of_weight_zero_is_plain_guidance(name):
    # With Perp-Neg, ISM rounds δ differently, and SDI and its relatives define the scale differently.
    world, loss = smooth.world(has_perp_neg=True), LOSSES[name]()
    drawn, progress = _draws_of(world, loss)
    text = dataclasses.replace(world.text, weights=jnp.zeros_like(world.text.weights))
    with_zero, _ = dataclasses.replace(world, text=text).gradient_of(loss, drawn, progress)
    text = dataclasses.replace(text, avoided=text.avoided[:, :0], weights=text.weights[:, :0])
    plain, _ = dataclasses.replace(world, text=text).gradient_of(loss, drawn, progress)
    real, _ = world.gradient_of(loss, drawn, progress)
    _close(with_zero, plain)
    assert golden.largest_difference(real, plain) > 1e-3


@pytest.mark.parametrize("name", [name for name in WALKING if name != "ge3d"])
def test_what_is_not_a_number_is_not_hidden(name):
    world, loss = smooth.world(has_perp_neg=False), LOSSES[name]()
    drawn, progress = _draws_of(world, loss)
    gradient, _ = dataclasses.replace(world, latents=world.latents.at[0, 1, 1, 1].set(jnp.nan)).gradient_of(
        loss, drawn, progress
    )
    assert np.isnan(gradient[0, 1, 1, 1]) and np.all(np.isfinite(gradient[1]))


@pytest.mark.parametrize("name", WALKING)
def test_no_pass_is_later_than_the_latest_time_or_idle(name):
    world, loss = smooth.world(has_perp_neg=False), LOSSES[name]()
    times = []
    denoiser = world.counting(times)

    def scalar(z, drawn, progress):
        seen = dataclasses.replace(golden.see(np.asarray(world.latents)), latents=z)
        return loss((), seen, world.text, drawn, denoiser, progress)

    run = jax.jit(scalar)
    for iteration in (0, 9_999):
        times.clear()
        drawn = world.drawn(loss, iteration)
        _, numbers = run(world.latents, drawn, world.progress(iteration))
        jax.effects_barrier()
        nodes = int(numbers["active_nodes"])
        passes = {"fps": nodes + 1, "ge3d": 2 * nodes, "x0": 2 * nodes}.get(name, nodes + 1)
        if name == "sctd":
            passes = nodes + 2
        if name == "pfd":
            passes = nodes + -(-int(numbers["time"]) // loss.path_step)
        assert len(times) == passes and max(times) <= loss.latest_time


def test_a_walk_makes_its_active_steps_only():
    x = jnp.ones(smooth.SHAPE)
    path = walk(
        lambda x, t: x * t,
        lambda index, x, epsilon, start, end: x + epsilon + end - start + 10 * index,
        x,
        jnp.asarray([1, 2, 4, 9]),
        2,
    )
    # 1 → 1 + 1·1 + 1 = 3 → 3 + 3·2 + 2 + 10 = 21, then constant.
    assert path.states[:, 0, 0, 0, 0].tolist() == [1, 3, 21, 21]
    assert path.predictions[:, 0, 0, 0, 0].tolist() == [1, 6, 6]
    assert path.end is not None and float(path.last_prediction[0, 0, 0, 0]) == 6
