"""The whole iteration: learns, counts overflow, and means the same under vmap as in a loop.

Compiling is nearly all of the time, so the tests share one compiled iteration wherever they can.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.devices import batch_mesh, replicated
from ge3d_jax.diffusion.pipeline import encode_posterior, latents_from_posterior
from ge3d_jax.guidance.prompts import ViewEmbeddings
from ge3d_jax.splatting.rasterize import render
from ge3d_jax.splatting.tiles import TILE_SIZE
from ge3d_jax.training import step as step_module
from ge3d_jax.training.config import with_overrides
from ge3d_jax.training.loop import begin
from ge3d_jax.training.step import ge3d_step, inputs_of
from tests.errors import relative_error

# An image of 16 pixels; room for 44 splats that cover it all.
TILES = (16 // TILE_SIZE) ** 2
BUFFER = 44 * TILES
FIELDS = ("positions", "log_scales", "quaternions", "opacity_logits", "sh")


def moments(state):
    """Adam's first moments of all fields, as one row."""
    return np.concatenate([np.ravel(state.optimizer_state.mu[field]) for field in FIELDS])


@pytest.fixture(scope="module")
def draw(tiny_config, tiny_model):
    return jax.jit(lambda state: inputs_of(state, tiny_model, tiny_config))


@pytest.fixture(scope="module")
def pure_step(tiny_config):
    return partial(ge3d_step, config=tiny_config, buffer_capacity=BUFFER)


@pytest.fixture(scope="module")
def compiled_step(pure_step):
    return jax.jit(pure_step)


def test_ten_iterations_with_chance_held_fixed_are_finite_and_lower_the_loss(
    tiny_config, tiny_model, draw, monkeypatch
):
    # A model that knows one picture, by its latent: ε is 0 without text and exact for that picture with it.
    wanted = jax.random.normal(jax.random.key(5), (8, 8, 4))

    def knows_one_picture(model, x, t, text):
        alpha = model.schedule.alphas_cumprod[t]
        epsilon = (x - jnp.sqrt(alpha) * wanted) / jnp.sqrt(1 - alpha)
        return jnp.mean(text, axis=(1, 2))[:, None, None, None] * epsilon

    monkeypatch.setattr(step_module, "predict_epsilon", knows_one_picture)
    with_text, without = jnp.ones((12, 8)), jnp.zeros((12, 8))
    embeddings = ViewEmbeddings(with_text, with_text, with_text, without, without)
    config = with_overrides(tiny_config, {"guidance.scale": 1.0})
    state = begin(config, jax.random.key(0))
    inputs = draw(state)
    learn = jax.jit(partial(ge3d_step, config=config, buffer_capacity=BUFFER))
    losses = []
    for done in range(1, 11):
        state, metrics = learn(state, tiny_model, embeddings, inputs)
        assert int(state.iteration) == 1 and int(state.optimizer_state.count) == done
        losses.append(float(metrics.loss))
        # The balance of the nodes moves with the iteration: held fixed like the rest.
        state = state.replace(iteration=jnp.int32(0))
    chex.assert_tree_all_finite(state.gaussians)
    assert np.all(np.isfinite(losses)) and np.all(np.diff(losses) < 0), losses


def test_vmap_over_seeds_equals_a_loop(tiny_config, tiny_model, embeddings, draw, pure_step, compiled_step):
    states = [begin(tiny_config, jax.random.key(seed)) for seed in (0, 1)]
    inputs = [draw(state) for state in states]
    apart = [
        compiled_step(state, tiny_model, embeddings, chance)
        for state, chance in zip(states, inputs, strict=True)
    ]

    def stack(*leaves):
        return jnp.stack(leaves)

    many_step = jax.jit(jax.vmap(pure_step, in_axes=(0, None, None, 0)))
    state, metrics = many_step(
        jax.tree.map(stack, *states), tiny_model, embeddings, jax.tree.map(stack, *inputs)
    )
    expected_state, expected_metrics = jax.tree.map(stack, *apart)
    np.testing.assert_allclose(metrics.loss, expected_metrics.loss, rtol=1e-5)
    assert not np.allclose(metrics.loss[0], metrics.loss[1])
    # The moments and not the splats: Adam's first step is the gradient's sign, deaf to its size.
    assert relative_error(moments(state), moments(expected_state)) < 1e-5


def test_a_buffer_too_small_changes_nothing_and_says_so(
    tiny_config, tiny_model, embeddings, draw, compiled_step
):
    state = begin(tiny_config, jax.random.key(0))
    # All 48 splats, each over the whole image.
    every = jnp.ones_like(state.gaussians.mask)
    opacities = jnp.zeros_like(state.gaussians.opacity_logits)
    sizes = jnp.full_like(state.gaussians.log_scales, jnp.log(1.0))
    full = state.replace(
        gaussians=state.gaussians.replace(mask=every, opacity_logits=opacities, log_scales=sizes)
    )
    after, metrics = compiled_step(full, tiny_model, embeddings, draw(full))
    assert int(metrics.intersections) == 48 * TILES and int(metrics.overflow) == 4 * TILES
    assert int(after.iteration) == 0
    for name in ("gaussians", "optimizer_state", "statistics"):
        chex.assert_trees_all_equal(getattr(after, name), getattr(full, name))


def test_unused_splats_stay_as_they_are(tiny_config, tiny_model, embeddings, draw, compiled_step):
    state = begin(tiny_config, jax.random.key(0))
    after, metrics = compiled_step(state, tiny_model, embeddings, draw(state))
    used = np.asarray(state.gaussians.mask)
    assert int(metrics.splats) == tiny_config.start.count == used.sum() and int(metrics.overflow) == 0
    for field in FIELDS:
        before, now = (np.asarray(getattr(s.gaussians, field)) for s in (state, after))
        np.testing.assert_array_equal(now[~used], before[~used])
        if field != "quaternions":
            assert not np.array_equal(now[used], before[used]), field
    assert float(after.statistics.view_count.max()) == 2


def test_the_gradient_is_the_residual_carried_through_render_and_encoder(
    tiny_config, tiny_model, embeddings, draw, compiled_step
):
    state = begin(tiny_config, jax.random.key(3))
    inputs = draw(state)
    inputs = inputs.replace(flip=jnp.bool_(True), scale_noise=jnp.zeros_like(inputs.scale_noise))

    @jax.jit
    def expected_by_hand(state, inputs):
        def latents(sh):
            gaussians = state.gaussians.replace(sh=sh)
            images = []
            for view in range(2):
                camera = jax.tree.map(lambda leaf, view=view: leaf[view], inputs.cameras)
                rendered = render(
                    gaussians, camera, background=inputs.backgrounds[view], buffer_capacity=BUFFER
                )
                images.append(jnp.fliplr(rendered.rgb))
            posterior = encode_posterior(tiny_model, jnp.stack(images))
            return latents_from_posterior(tiny_model, *posterior, inputs.posterior_noise)

        z, carry_back = jax.vjp(latents, state.gaussians.sh)
        residual = step_module.trajectory_residual(tiny_model, embeddings, inputs, z, 0, config=tiny_config)
        return residual, carry_back(residual.gradient)[0]

    residual, expected = expected_by_hand(state, inputs)
    after, metrics = compiled_step(state, tiny_model, embeddings, inputs)
    # Adam's first moment after one step is (1 − 0.9) of the gradient.
    got = 10 * after.optimizer_state.mu["sh"]
    assert float(jnp.linalg.norm(got - expected)) < 1e-3 * float(jnp.linalg.norm(expected))
    assert float(metrics.loss) == pytest.approx(float(residual.loss), rel=1e-4)


def test_guidance_asks_the_network_once_per_node_for_all_branches(
    tiny_config, tiny_model, embeddings, draw, monkeypatch
):
    batches = []
    original = step_module.predict_epsilon

    def recording(model, x, t, text):
        batches.append((x.shape[0], text.shape[0]))
        return original(model, x, t, text)

    monkeypatch.setattr(step_module, "predict_epsilon", recording)
    inputs = draw(begin(tiny_config, jax.random.key(0)))
    z = jnp.zeros((2, 8, 8, 4))
    for use_perp_neg, guided in ((True, 8), (False, 4)):
        config = with_overrides(tiny_config, {"guidance.use_perp_neg": use_perp_neg})
        batches.clear()
        jax.eval_shape(
            partial(step_module.trajectory_residual, config=config), tiny_model, embeddings, inputs, z, 0
        )
        assert batches == [(2, 2), (guided, guided)]


def test_the_network_is_asked_only_for_what_the_loss_uses(
    tiny_config, tiny_model, embeddings, draw, monkeypatch
):
    asked = []

    def counting(model, x, t, text):
        jax.debug.callback(lambda t, size=x.shape[0]: asked.append((int(t), size)), t, ordered=True)
        return x

    monkeypatch.setattr(step_module, "predict_epsilon", counting)
    inputs = draw(begin(tiny_config, jax.random.key(0)))
    # Two jumps of three were made: the top node's time repeats.
    inputs = inputs.replace(node_times=jnp.array([0, 70, 150, 150]), active=jnp.int32(2))
    z = jnp.zeros((2, 8, 8, 4))
    residual = partial(step_module.trajectory_residual, config=tiny_config)
    jax.jit(residual)(tiny_model, embeddings, inputs, z, 0).loss.block_until_ready()
    jax.effects_barrier()
    # Up without the text, one sample a view, never at the top; down with it, two a view, never at 0.
    assert asked == [(0, 2), (70, 2), (150, 4), (70, 4)]


def test_views_in_turn_take_the_same_ways(tiny_config, tiny_model, embeddings, draw, monkeypatch):
    def mixing(model, x, t, text):
        return 0.1 * x * jnp.mean(text**2, axis=(1, 2))[:, None, None, None] + 0.01 * t

    monkeypatch.setattr(step_module, "predict_epsilon", mixing)
    inputs = draw(begin(tiny_config, jax.random.key(0)))
    z = jax.random.normal(jax.random.key(1), (2, 8, 8, 4))
    together = with_overrides(tiny_config, {"guidance.use_perp_neg": True})
    in_turn = with_overrides(together, {"views_per_batch": 1})
    expected, got = (
        jax.jit(partial(step_module.trajectory_residual, config=config))(tiny_model, embeddings, inputs, z, 0)
        for config in (together, in_turn)
    )
    assert not np.allclose(expected.gradient[0], expected.gradient[1])
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"views_per_batch": 1, "attention_chunk": 24}, {"vae_rematerialise": True}]
)
def test_settings_that_save_memory_do_not_change_the_result(
    settings, tiny_config, tiny_model, embeddings, draw, compiled_step
):
    frugal = with_overrides(tiny_config, settings)
    state = begin(tiny_config, jax.random.key(0))
    inputs = draw(state)
    frugal_step = jax.jit(partial(ge3d_step, config=frugal, buffer_capacity=BUFFER))
    results = [step(state, tiny_model, embeddings, inputs) for step in (compiled_step, frugal_step)]
    (expected, got), (expected_metrics, metrics) = zip(*results, strict=True)
    assert float(metrics.loss) == pytest.approx(float(expected_metrics.loss), rel=1e-5)
    # The moments and not the splats: Adam's first step is the gradient's sign, deaf to its size.
    assert relative_error(moments(got), moments(expected)) < 1e-4


def test_two_devices_do_what_one_does(tiny_config, tiny_model, embeddings):
    one = with_overrides(tiny_config, {"views": 4})
    # Half of the views at a time: each device has one of its own.
    two = with_overrides(one, {"views_per_batch": 2, "vae_rematerialise": True})
    state = begin(one, jax.random.key(0))
    inputs = jax.jit(lambda state: inputs_of(state, tiny_model, one))(state)
    mesh = batch_mesh(2)
    assert mesh.size == 2
    placed = jax.device_put((state, tiny_model, embeddings, inputs), replicated(mesh))
    expected, expected_metrics = jax.jit(partial(ge3d_step, config=one, buffer_capacity=BUFFER))(
        state, tiny_model, embeddings, inputs
    )
    got, metrics = jax.jit(partial(ge3d_step, config=two, buffer_capacity=BUFFER, mesh=mesh))(*placed)
    assert float(metrics.loss) == pytest.approx(float(expected_metrics.loss), rel=1e-5)
    assert int(metrics.intersections) == int(expected_metrics.intersections)
    assert relative_error(moments(got), moments(expected)) < 1e-4
    chex.assert_trees_all_close(got.statistics, expected.statistics, rtol=1e-3, atol=1e-7)


def test_views_encoded_in_turn_keep_little_for_the_gradient(tiny_config, tiny_model):
    views = with_overrides(tiny_config, {"views": 6, "vae_rematerialise": False})
    images = jax.ShapeDtypeStruct((6, 16, 16, 3), jnp.float32)

    def kept(config):
        encode = step_module.views_encoder(tiny_model, config=config)
        pull_back = jax.eval_shape(lambda x: jax.vjp(encode, x)[1], images)
        return sum(leaf.size for leaf in jax.tree.leaves(pull_back))

    parameters = sum(np.size(leaf) for leaf in jax.tree.leaves(tiny_model.vae_params))
    whole = kept(views) - parameters
    assert kept(with_overrides(views, {"vae_rematerialise": True})) - parameters < 0.1 * whole


def test_regularisers_are_what_they_say(tiny_config):
    image = jnp.zeros((1, 3, 3, 3)).at[0, 1, 1].set(1.0)
    # Two unit edges across and two along, each shared over 6 neighbour pairs.
    assert float(step_module.total_variation(image)) == pytest.approx(2 * (2 / 6 + 2 / 6))
    # All but 40 of the 48 splats are unused and do not count.
    gaussians = begin(tiny_config, jax.random.key(0)).gaussians
    assert float(step_module.mean_scale(gaussians)) == pytest.approx(0.15)
