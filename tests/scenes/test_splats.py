"""The splat scene: degree-by-degree learning of color, and its advice at the end of a run."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.random import Draws
from ge3d_jax.scenes.splats import Splats
from ge3d_jax.scenes.start.ball import Ball
from ge3d_jax.scenes.start.files import SplatFile
from ge3d_jax.splatting.cameras import orbit_camera
from ge3d_jax.splatting.reference import render_reference
from ge3d_jax.training.presets import PRESETS

SCENE = Splats(
    capacity=8, buffer_capacity=256, start=Ball(count=8, radius=0.3, scale=0.2, opacity=0.8, sh_degree=3)
)


def test_higher_bands_learn_at_a_twentieth_of_the_color_s_rate():
    directions = {
        name: jnp.ones_like(value) for name, value in SCENE.parameters(SCENE.begin(jax.random.key(0))).items()
    }
    steps = np.asarray(SCENE.updates(directions, jnp.float32(0.0))["sh"])
    np.testing.assert_allclose(steps[:, 0], -0.01, rtol=1e-6)
    np.testing.assert_allclose(steps[:, 1:], -0.01 / 20, rtol=1e-6)


def test_rates_fall_evenly_in_their_logarithm():
    directions = jax.tree.map(jnp.ones_like, SCENE.parameters(SCENE.begin(jax.random.key(0))))
    rates = SCENE.learning_rates
    for name, field in (
        ("positions", "position"),
        ("sh", "color"),
        ("log_scales", "scale"),
        ("quaternions", "rotation"),
    ):
        first, last = getattr(rates, field)
        for progress, rate in ((0.0, first), (0.5, np.sqrt(first * last)), (1.0, last)):
            steps = np.asarray(SCENE.updates(directions, jnp.float32(progress))[name])
            np.testing.assert_allclose(steps.reshape(len(steps), -1)[:, 0], -rate, rtol=1e-5, err_msg=name)


def test_a_degree_of_the_color_comes_every_five_hundred_iterations():
    state = SCENE.begin(jax.random.key(0))
    sh = 0.3 * jax.random.normal(jax.random.key(1), state.gaussians.sh.shape)
    state = state.replace(gaussians=state.gaussians.replace(sh=sh))
    camera = jax.tree.map(
        lambda leaf: leaf[None], orbit_camera(azimuth=0.3, polar=1.2, radius=3.0, fov=0.5, size=16)
    )

    @jax.jit
    def picture(iteration):
        offsets = SCENE.perturbations(state, 1)
        return SCENE.render(state, iteration, camera, jnp.zeros((1, 3)), None, offsets).rgb

    pictures = []
    for begins, ends in ((0, 499), (500, 999), (1000, 1499), (1500, 5000)):
        pictures.append(np.asarray(picture(begins)))
        np.testing.assert_array_equal(picture(ends), pictures[-1])
    for one, other in itertools.pairwise(pictures):
        assert np.abs(one - other).max() > 1e-3


def test_learned_splats_have_all_their_degrees_from_the_beginning():
    state = SCENE.begin(jax.random.key(0))
    sh = 0.3 * jax.random.normal(jax.random.key(1), state.gaussians.sh.shape)
    state = state.replace(gaussians=state.gaussians.replace(sh=sh))
    camera = orbit_camera(azimuth=0.3, polar=1.2, radius=3.0, fov=0.5, size=16)
    seen = dataclasses.replace(SCENE, start=SplatFile("a.ply")).render(
        state,
        0,
        jax.tree.map(lambda leaf: leaf[None], camera),
        jnp.zeros((1, 3)),
        None,
        SCENE.perturbations(state, 1),
    )
    expected = render_reference(state.gaussians, camera, background=jnp.zeros(3))
    np.testing.assert_allclose(seen.rgb[0], expected.rgb, atol=1e-5)


def test_views_widen_splats_by_the_dilation():
    camera = jax.tree.map(
        lambda leaf: leaf[None], orbit_camera(azimuth=0.3, polar=1.2, radius=3.0, fov=0.5, size=16)
    )
    state = SCENE.begin(jax.random.key(0))
    background, offsets = jnp.zeros((1, 3)), SCENE.perturbations(state, 1)
    for dilation in (0.3, 4.0):
        scene = dataclasses.replace(SCENE, dilation=dilation, rasterizer="groups")
        seen = scene.render(state, 0, camera, background, None, offsets).rgb[0]
        expected = render_reference(
            state.gaussians,
            jax.tree.map(lambda leaf: leaf[0], camera),
            background=background[0],
            dilation=dilation,
        )
        np.testing.assert_allclose(seen, expected.rgb, atol=1e-5)


def test_views_see_splats_with_the_noise_of_their_scales():
    camera = orbit_camera(azimuth=0.3, polar=1.2, radius=3.0, fov=0.5, size=16)
    state = SCENE.begin(jax.random.key(0))
    # A factor below 0 counts as 0.
    noise = (0.3 * jax.random.normal(jax.random.key(1), (1, 8, 3))).at[0, 0, 0].set(-1.5)
    seen = SCENE.render(
        state,
        2000,
        jax.tree.map(lambda leaf: leaf[None], camera),
        jnp.zeros((1, 3)),
        Draws(shared=(), per_view={"scale_noise": noise}),
        SCENE.perturbations(state, 1),
    ).rgb[0]
    expected = render_reference(
        state.gaussians, camera, background=jnp.zeros(3), scale_multiplier=jnp.maximum(1.0 + noise[0], 0.0)
    )
    np.testing.assert_allclose(seen, expected.rgb, atol=1e-5)


def test_the_gradient_of_a_color_s_perturbation_tells_who_is_visible():
    # The camera is on the x axis: two opaque splats, one of them black, and a small one behind the black one.
    ball = SCENE.begin(jax.random.key(0)).gaussians
    placed = jnp.array([[0.0, 0.0, 0.5], [0.0, 0.0, -0.5], [-0.5, 0.0, -0.5]])
    positions = jnp.zeros((8, 3)).at[:3].set(placed)
    gaussians = dataclasses.replace(
        ball,
        positions=positions,
        log_scales=jnp.full((8, 3), jnp.log(0.3)).at[2].set(jnp.log(0.03)),
        opacity_logits=jnp.full(8, 15.0),
        sh=jnp.zeros_like(ball.sh).at[0, 0].set(1.0).at[1, 0].set(-5.0),
        mask=jnp.arange(8) < 3,
    )
    camera = orbit_camera(azimuth=0.0, polar=np.pi / 2, radius=3.0, fov=0.7, size=32)
    cameras = jax.tree.map(lambda leaf: leaf[None], camera)
    weights = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))

    def total(perturbations):
        state = SCENE.begin(jax.random.key(0)).replace(gaussians=gaussians)
        return jnp.sum(
            weights * SCENE.render(state, 2000, cameras, jnp.zeros((1, 3)), None, perturbations).rgb
        )

    zeros = SCENE.perturbations(SCENE.begin(jax.random.key(0)), 1)
    gradients = jax.grad(total)(zeros).color[0]
    # The image changes by how much of each pixel is the splat's: what it would add in white over black.
    for index in range(3):
        white = dataclasses.replace(
            gaussians,
            sh=jnp.zeros_like(ball.sh).at[:, 0].set(-10.0).at[index, 0].set(0.5 / 0.28209479),
        )
        shares = render_reference(white, camera, background=jnp.zeros(3)).rgb
        np.testing.assert_allclose(gradients[index], jnp.sum(weights[0] * shares, axis=(0, 1)), atol=1e-4)
    norms = np.linalg.norm(gradients, axis=-1)
    assert norms[2] < 0.02 * norms[:2].min() and not norms[3:].any()


def test_a_scene_makes_room_for_the_splats_it_is_given_and_keeps_more():
    start = Ball(count=30).gaussians(jax.random.key(0))
    assert SCENE.holding(start).capacity == 30
    assert dataclasses.replace(SCENE, capacity=100).holding(start).capacity == 100


def test_the_presets_color_is_the_same_from_all_sides():
    assert PRESETS["toybox"].scene.start.sh_degree == 0


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ([{}, {"loss": 3.0}], None),
        ([{"not_served": 0}], None),
        ([{"not_served": 1}, {}], "1 splat requested by density control found no room"),
        ([{"not_served": 40}, {"loss": 0.5}, {"not_served": 2}], r"42 splats .* scene.capacity \(now 9\)"),
    ],
)
def test_splats_that_found_no_room_are_told(numbers, says):
    advice = dataclasses.replace(SCENE, capacity=9).advice(numbers)
    assert len(advice) == (says is not None)
    assert not advice or re.match(says, advice[0])
