"""The complete iteration: learning, counting of overflow, and equal results under vmap and in a loop.

Compilation takes nearly all of the time, so the tests share one compiled iteration wherever possible.
"""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.devices import batch_mesh, replicated
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.diffusion.pipeline import (
    decode_latents,
    encode_posterior,
    latents_from_posterior,
    predict_epsilon,
)
from ge3d_jax.guidance.base import Progress, SeenViews
from ge3d_jax.guidance.prompts import PromptEmbeddings, view_texts
from ge3d_jax.scenes.splats import mean_scale
from ge3d_jax.splatting.cameras import polar_angles
from ge3d_jax.splatting.rasterize import render
from ge3d_jax.splatting.tiles import TILE_SIZE
from ge3d_jax.training import distillation
from ge3d_jax.training.distillation import Distillation, Prompted, begin
from ge3d_jax.training.pictures import total_variation, with_pictures
from ge3d_jax.training.step import train_step
from tests.errors import relative_error

# An image of 16 pixels, and room for 44 splats that cover all of it.
TILES = (16 // TILE_SIZE) ** 2
BUFFER = 44 * TILES
FIELDS = ("positions", "log_scales", "quaternions", "opacity_logits", "sh")


def moments(state):
    """Adam's first moments of all fields, as one vector."""
    return np.concatenate([np.ravel(state.optimizer_state.mu[field]) for field in FIELDS])


def task_of(config, **changes):
    """The task with a buffer that overflows when the tests want it to, and with all additional loss terms."""
    usual = {
        "scene.buffer_capacity": BUFFER,
        "scene.scale_penalty": 2.0,
        "picture_weight": 0.3,
        "total_variation": 0.5,
    }
    return Distillation(with_overrides(config, {**usual, **changes}))


def first_state(task, model, seed=0):
    return begin(task.config, model, jax.random.key(seed))


def with_loss_inputs(drawn, **changes):
    """The draws, with some of the loss's values shared by all views replaced."""
    return dataclasses.replace(drawn, shared={**drawn.shared, "loss": {**drawn.shared["loss"], **changes}})


def residual_of(task, prompted, drawn, z):
    """The loss's residual at latents z, and its metrics."""
    text = view_texts(
        prompted.embeddings,
        drawn.per_view["azimuth"],
        use_perp_neg=task.config.prompts.use_perp_neg,
        weight=task.config.prompts.perp_neg_weight,
    )
    denoiser = task.denoiser(prompted.model, z.shape[0])
    chance = distillation.Draws(drawn.shared["loss"], drawn.per_view["loss"])

    def scalar(z):
        seen = SeenViews(z, drawn.per_view["cameras"], task.views)
        return task.config.guidance((), seen, text, chance, denoiser, Progress(0, task.iterations))

    return jax.grad(scalar, has_aux=True)(z)


@pytest.fixture(scope="module")
def task(tiny_config):
    return task_of(tiny_config)


@pytest.fixture(scope="module")
def draw(task, prompted):
    return jax.jit(lambda state: task.draw(state, prompted))


@pytest.fixture(scope="module")
def compiled_step(task):
    return jax.jit(partial(train_step, task=task))


def knows_one_picture(model, x, t, text):
    """A network that knows the latent of one picture: ε is exact for it with the text, and 0 without text."""
    wanted = np.random.default_rng(5).normal(size=(8, 8, 4)).astype(np.float32)
    alpha = model.schedule.alphas_cumprod[t]
    epsilon = (x - jnp.sqrt(alpha) * wanted) / jnp.sqrt(1 - alpha)
    return jnp.mean(text, axis=(1, 2))[:, None, None, None] * epsilon


@pytest.fixture(scope="module")
def one_picture(tiny_config, tiny_model):
    """A task with this network, its context, and its compiled iteration."""
    with_text, without = jnp.ones((12, 8)), jnp.zeros((12, 8))
    context = Prompted(tiny_model, PromptEmbeddings(*[with_text] * 4, without, without))
    # The network's picture is unknown to the decoder.
    settings = {"guidance.scale": 1.0, "picture_weight": 0.0}
    task = Distillation(task_of(tiny_config, **settings).config, predict=knows_one_picture)
    return task, context, jax.jit(partial(train_step, task=task))


def test_ten_iterations_with_chance_held_fixed_are_finite_and_lower_the_loss(one_picture, tiny_model, draw):
    task, context, learn = one_picture
    state = first_state(task, tiny_model)
    drawn = draw(state)
    losses = []
    for done in range(1, 11):
        state, numbers = learn(state, context, drawn)
        assert int(state.iteration) == 1 and int(state.optimizer_state.count) == done
        losses.append(float(numbers["loss"]))
        # The node weights depend on the iteration, which is held fixed like everything else.
        state = state.replace(iteration=jnp.int32(0))
    chex.assert_tree_all_finite(state.scene.gaussians)
    assert np.all(np.isfinite(losses)) and np.all(np.diff(losses) < 0), losses


def test_vmap_over_seeds_equals_a_loop(one_picture, tiny_model, draw):
    task, context, learn = one_picture
    states = [first_state(task, tiny_model, seed) for seed in (0, 1)]
    drawn = [draw(state) for state in states]
    apart = [learn(state, context, chance) for state, chance in zip(states, drawn, strict=True)]

    def stack(*leaves):
        return jnp.stack(leaves)

    many_step = jax.jit(jax.vmap(partial(train_step, task=task), in_axes=(0, None, 0)))
    state, numbers = many_step(jax.tree.map(stack, *states), context, jax.tree.map(stack, *drawn))
    expected_state, expected_numbers = jax.tree.map(stack, *apart)
    np.testing.assert_allclose(numbers["loss"], expected_numbers["loss"], rtol=1e-5)
    assert not np.allclose(numbers["loss"][0], numbers["loss"][1])
    # Compare moments, not splats: Adam's first step is the gradient's sign, regardless of its size.
    assert relative_error(moments(state), moments(expected_state)) < 1e-5


def test_a_buffer_too_small_changes_nothing_and_says_so(task, tiny_model, prompted, draw, compiled_step):
    state = first_state(task, tiny_model)
    gaussians = state.scene.gaussians
    # All 48 splats, each covering the whole image.
    full_splats = gaussians.replace(
        mask=jnp.ones_like(gaussians.mask),
        opacity_logits=jnp.zeros_like(gaussians.opacity_logits),
        log_scales=jnp.full_like(gaussians.log_scales, jnp.log(1.0)),
    )
    full = state.replace(scene=state.scene.replace(gaussians=full_splats))
    after, numbers = compiled_step(full, prompted, draw(full))
    assert int(numbers["intersections"]) == 48 * TILES and int(numbers["overflow"]) == 4 * TILES
    assert int(after.iteration) == 0
    for name in ("scene", "optimizer_state"):
        chex.assert_trees_all_equal(getattr(after, name), getattr(full, name))


def test_a_single_view_without_a_finite_residual_leaves_the_step_out(
    task, tiny_model, prompted, draw, compiled_step
):
    state = first_state(task, tiny_model)
    drawn = draw(state)
    # One splat is behind the failing view's camera, so that only the other view contributes to its gradient.
    world_to_camera = np.asarray(drawn.per_view["cameras"].world_to_camera[1])
    behind = np.linalg.inv(world_to_camera) @ np.array([0.0, 0.0, -1.0, 1.0])
    gaussians = state.scene.gaussians
    positions = gaussians.positions.at[0].set(behind[:3])
    state = state.replace(scene=state.scene.replace(gaussians=gaussians.replace(positions=positions)))
    noise = drawn.per_view["loss"]["noise"].at[1, 3, 4, 0].set(jnp.nan)
    failing = drawn.replace(per_view=drawn.per_view | {"loss": {**drawn.per_view["loss"], "noise": noise}})
    after, numbers = compiled_step(state, prompted, failing)
    assert int(numbers["skipped"]) == 1 and not np.isfinite(numbers["loss"])
    chex.assert_trees_all_equal(after.replace(iteration=0, key=()), state.replace(iteration=0, key=()))
    assert int(after.iteration) == 1
    moved, numbers = compiled_step(state, prompted, drawn)
    assert int(numbers["skipped"]) == 0 and int(moved.optimizer_state.count) == 1
    chex.assert_tree_all_finite((moved.scene.gaussians, moved.scene.statistics.gradient_sum))


def test_unused_splats_stay_as_they_are(task, tiny_model, prompted, draw, compiled_step):
    state = first_state(task, tiny_model)
    after, numbers = compiled_step(state, prompted, draw(state))
    used = np.asarray(state.scene.gaussians.mask)
    assert int(numbers["splats"]) == 40 == used.sum() and int(numbers["overflow"]) == 0
    for field in FIELDS:
        before, now = (np.asarray(getattr(s.scene.gaussians, field)) for s in (state, after))
        np.testing.assert_array_equal(now[~used], before[~used])
        if field != "quaternions":
            assert not np.array_equal(now[used], before[used]), field
    assert float(after.scene.statistics.view_count.max()) == 2


def test_rates_follow_the_iteration(task, tiny_model, prompted, draw, compiled_step):
    state = first_state(task, tiny_model)
    drawn = draw(state)
    rates = task.scene.learning_rates
    used = np.asarray(state.scene.gaussians.mask)
    for iteration in (0, 3):
        at = state.replace(iteration=jnp.int32(iteration))
        after, _ = compiled_step(at, prompted, drawn)
        moved = after.scene.gaussians.opacity_logits - state.scene.gaussians.opacity_logits
        # Adam's first step is the rate, whatever the gradient.
        expected = float(rates.at("opacity", iteration / 4))
        assert float(jnp.max(jnp.abs(moved[used]))) == pytest.approx(expected, rel=1e-3)


def test_views_are_told_what_the_settings_say_of_their_prompts(tiny_config, tiny_model, prompted, draw):
    asked = {
        "prompts.use_perp_neg": True,
        "prompts.perp_neg_weight": -1.5,
        "prompts.perp_neg_rule": "threestudio",
    }
    task = task_of(tiny_config, **asked)
    state = first_state(task, tiny_model)
    drawn = draw(state)
    overhead = prompted.embeddings.front + 1.0
    context = dataclasses.replace(
        prompted, embeddings=dataclasses.replace(prompted.embeddings, overhead=overhead)
    )
    perturbations = task.scene.perturbations(state.scene, 2)

    @jax.jit
    def told(state):
        return task.see(state.scene, perturbations, context, drawn, Progress(0, 4)).text

    expected = view_texts(
        context.embeddings,
        drawn.per_view["azimuth"],
        use_perp_neg=True,
        weight=-1.5,
        rule="threestudio",
        polar=polar_angles(drawn.per_view["cameras"]),
    )
    assert float(jnp.abs(expected.weights).max()) > 0
    chex.assert_trees_all_close(told(state), expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_the_residual_and_the_pictures_error_carried_through_render_and_encoder(
    task, tiny_model, prompted, draw, compiled_step
):
    state = first_state(task, tiny_model, 3)
    drawn = draw(state)
    no_noise = {"scale_noise": jnp.zeros_like(drawn.per_view["scene"]["scale_noise"])}
    drawn = drawn.replace(
        shared=drawn.shared | {"flip": jnp.bool_(True)}, per_view=drawn.per_view | {"scene": no_noise}
    )

    @jax.jit
    def expected_by_hand(state, drawn):
        def pictures_and_latents(sh, log_scales):
            gaussians = state.scene.gaussians.replace(sh=sh, log_scales=log_scales)
            images = []
            for view in range(2):
                camera = jax.tree.map(lambda leaf, view=view: leaf[view], drawn.per_view["cameras"])
                background = drawn.per_view["backgrounds"][view]
                rendered = render(gaussians, camera, background=background, buffer_capacity=BUFFER)
                images.append(jnp.fliplr(rendered.rgb))
            images = jnp.stack(images)
            posterior = encode_posterior(tiny_model, images)
            return images, latents_from_posterior(tiny_model, *posterior, drawn.per_view["posterior_noise"])

        splats = state.scene.gaussians
        (x, z), carry_back = jax.vjp(pictures_and_latents, splats.sh, splats.log_scales)
        residual, numbers = residual_of(task, prompted, drawn, z)
        # GE3D's residual is a tenth of the distance.
        error = x - decode_latents(tiny_model, z - 10 * residual)
        return numbers["loss"], *carry_back((0.3 * error + 0.5 * jax.grad(total_variation)(x), residual))

    losses, of_sh, of_scales = map(np.array, expected_by_hand(state, drawn))
    # The penalty's gradient: d/d(log s) of 2·mean(s) over 3·40 entries of 0.15.
    of_scales[:40] += 2 * 0.15 / 120
    after, numbers = compiled_step(state, prompted, drawn)
    for name, expected in (("sh", of_sh), ("log_scales", of_scales)):
        # Adam's first moment after one step is (1 − 0.9) times the gradient.
        assert relative_error(10 * np.asarray(after.optimizer_state.mu[name]), expected) < 1e-3, name
    assert float(numbers["loss"]) == pytest.approx(float(losses.mean()), rel=1e-4)


def test_guidance_asks_the_network_once_per_node_for_all_branches(tiny_config, tiny_model, prompted, draw):
    batches = []

    def recording(model, x, t, text):
        batches.append((x.shape[0], text.shape[0]))
        return predict_epsilon(model, x, t, text)

    drawn = draw(first_state(task_of(tiny_config), tiny_model))
    z = jnp.zeros((2, 8, 8, 4))
    for use_perp_neg, guided in ((True, 8), (False, 4)):
        config = task_of(tiny_config, **{"prompts.use_perp_neg": use_perp_neg}).config
        batches.clear()
        jax.eval_shape(partial(residual_of, Distillation(config, predict=recording)), prompted, drawn, z)
        assert batches == [(2, 2), (guided, guided)]


def test_the_network_is_asked_only_for_what_the_loss_uses(tiny_config, tiny_model, prompted, draw):
    asked = []

    def counting(model, x, t, text):
        jax.debug.callback(lambda t, size=x.shape[0]: asked.append((int(t), size)), t, ordered=True)
        return x

    task = Distillation(tiny_config, predict=counting)
    # Two of three jumps were made, so the top node's time repeats.
    drawn = with_loss_inputs(
        draw(first_state(task, tiny_model)), node_times=jnp.array([0, 70, 150, 150]), active=jnp.int32(2)
    )
    residual = jax.jit(partial(residual_of, task))(prompted, drawn, jnp.zeros((2, 8, 8, 4)))[0]
    residual.block_until_ready()
    jax.effects_barrier()
    # Up without text, one sample per view, never at the top; down with text, two per view, never at 0.
    assert asked == [(0, 2), (70, 2), (150, 4), (70, 4)]


def test_views_in_turn_take_the_same_ways(tiny_config, tiny_model, prompted, draw):
    def mixing(model, x, t, text):
        times = jnp.broadcast_to(t, x.shape[:1])[:, None, None, None]
        return 0.1 * x * jnp.mean(text**2, axis=(1, 2))[:, None, None, None] + 0.01 * times

    together = with_overrides(tiny_config, {"prompts.use_perp_neg": True})
    in_turn = with_overrides(together, {"views_per_batch": 1})
    drawn = draw(first_state(Distillation(together), tiny_model))
    z = jax.random.normal(jax.random.key(1), (2, 8, 8, 4))
    expected, got = (
        jax.jit(partial(residual_of, Distillation(config, predict=mixing)))(prompted, drawn, z)
        for config in (together, in_turn)
    )
    assert not np.allclose(expected[0][0], expected[0][1])
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


def test_two_devices_that_keep_little_do_what_one_does(
    tiny_config, tiny_model, prompted, draw, compiled_step
):
    # One of two views on each device; test_learned.py covers several views per device.
    task = task_of(tiny_config, vae_rematerialize=True, attention_chunk=24)
    state = first_state(task, tiny_model)
    drawn = draw(state)
    mesh = batch_mesh(2)
    assert mesh.size == 2
    placed = jax.device_put((state, prompted, drawn), replicated(mesh))
    expected, expected_numbers = compiled_step(state, prompted, drawn)
    got, numbers = jax.jit(partial(train_step, task=task, mesh=mesh))(*placed)
    for name in ("loss", "gradient_norm"):
        assert float(numbers[name]) == pytest.approx(float(expected_numbers[name]), rel=1e-5)
    assert int(numbers["intersections"]) == int(expected_numbers["intersections"])
    # Compare moments, not splats: Adam's first step is the gradient's sign, regardless of its size.
    assert relative_error(moments(got), moments(expected)) < 1e-4
    chex.assert_trees_all_close(got.scene.statistics, expected.scene.statistics, rtol=1e-3, atol=1e-7)


def test_views_encoded_in_turn_keep_little_for_the_gradient(tiny_config, tiny_model):
    images = jax.ShapeDtypeStruct((6, 16, 16, 3), jnp.float32)

    def kept(**settings):
        encode = task_of(tiny_config, views=6, **settings).encoder(tiny_model)
        pull_back = jax.eval_shape(lambda x: jax.vjp(encode, x)[1], images)
        return sum(leaf.size for leaf in jax.tree.leaves(pull_back))

    parameters = sum(np.size(leaf) for leaf in jax.tree.leaves(tiny_model.vae_params))
    whole = kept(vae_rematerialize=False) - parameters
    assert kept(vae_rematerialize=True) - parameters < 0.1 * whole


def test_regularizers_are_what_they_say(task, tiny_config, tiny_model):
    image = jnp.zeros((1, 3, 3, 3)).at[0, 1, 1].set(1.0)
    # Two unit edges in each direction, averaged over 6 neighbor pairs.
    assert float(total_variation(image)) == pytest.approx(2 * (2 / 6 + 2 / 6))
    # Only 40 of the 48 splats are in use; the others do not count.
    state = first_state(task, tiny_model).scene
    assert float(mean_scale(state.gaussians)) == pytest.approx(0.15)
    penalized = with_overrides(tiny_config, {"scene.scale_penalty": 3.0}).scene
    assert float(penalized.penalty(state)) == pytest.approx(0.45)


def test_renders_are_drawn_to_the_decoded_latents_that_the_loss_wants():
    random = np.random.default_rng(8)
    encoder, decoder, pull = (random.normal(size=shape) for shape in ((6, 4), (4, 6), (3, 4)))
    images = jnp.asarray(random.normal(size=(3, 6)))

    def loss(images, weight):
        latents = images @ encoder
        scalar, numbers = with_pictures(
            lambda z: (0.5 * jnp.sum((z - pull) ** 2), {"seen": jnp.sum(z)}),
            lambda z: jnp.tanh(z @ decoder),
            images,
            latents,
            weight=weight,
            steps=0.7,
        )
        assert set(numbers) == {"seen"}
        return scalar

    latents = np.asarray(images) @ encoder
    residual = latents - pull
    wanted = np.tanh((latents - 0.7 * residual) @ decoder)
    expected = residual @ encoder.T + 0.3 * (np.asarray(images) - wanted)
    np.testing.assert_allclose(jax.grad(loss)(images, 0.3), expected, rtol=1e-4, atol=1e-4)
    difference = float(loss(images, 0.3) - loss(images, 0.0))
    assert difference == pytest.approx(0.15 * np.sum((np.asarray(images) - wanted) ** 2), rel=1e-4)
