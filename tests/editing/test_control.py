"""Attention control in the bundled network: no effect if gates are closed, else the authors' arrays."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.diffusion.networks.attention_control import attention_probabilities, edited_attention
from ge3d_jax.diffusion.networks.unet import UNetConfig
from ge3d_jax.diffusion.pipeline import predict_controlled, predict_epsilon
from tests.editing import golden
from tests.editing.golden import latents


@pytest.fixture(scope="module")
def batch():
    """Noisy latents and texts of ∅, ∅, source, target."""
    task = golden.task("color")
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 16, 16, 4)), jnp.float32)
    return x, jnp.int32(500), jnp.concatenate([task.empties, task.empties, task.source, task.target])


def _ask(batch, control):
    found = golden.denoiser()
    epsilon, maps = found.predict_controlled(found.model, *batch, control)
    return np.asarray(epsilon), np.asarray(maps)


def test_closed_gates_are_no_control_bit_for_bit(batch):
    control, model = golden.task("color").control, golden.model()
    x, t, text = batch
    # Run operation by operation, because two compiled programs may round differently.
    with jax.disable_jit():
        plain = predict_epsilon(model, x[2:], t, text[2:])
        closed, _ = predict_controlled(model, x[2:], t, text[2:], control.closed.at(0))
    np.testing.assert_array_equal(closed, plain)


def test_open_gates_change_the_target_alone(batch):
    control = golden.task("color").control
    closed, maps = _ask(batch, control.closed.at(0))
    edited, _ = _ask(batch, control.at(0))
    np.testing.assert_array_equal(edited[:3], closed[:3])
    assert np.abs(edited[3] - closed[3]).max() > 1e-3
    # The attention maps are probabilities over the words.
    assert maps.shape == (2, 8, 8, golden.TOKENS)
    np.testing.assert_allclose(maps.sum(axis=-1), 1.0, atol=1e-5)


def test_maps_of_wide_latents_are_wide(batch):
    x, t, text = batch
    control, model = golden.task("color").control, golden.model()
    _, maps = jax.eval_shape(predict_controlled, model, x[:, :8], t, text, control.at(0))
    assert maps.shape == (2, 4, 8, golden.TOKENS)


def test_maps_come_from_the_down_and_up_blocks_of_their_level(batch):
    control, model = golden.task("color").control.at(0), golden.model()
    for level, expected in ((1, {"down_blocks_1", "up_blocks_0"}), (0, set())):
        at_level = dataclasses.replace(control, map_level=level)
        ask = functools.partial(model.unet.apply, {"params": model.unet_params}, mutable="maps")
        _, sown = jax.eval_shape(ask, *batch, None, at_level)
        # The middle block, at the same level as the last down block, adds none.
        assert set(sown.get("maps", ())) == expected


def test_control_of_equal_prompts_changes_nothing(batch):
    x, t, text = batch
    same = (jnp.concatenate([x[:2], x[2:3], x[2:3]]), t, text.at[3].set(text[2]))
    control = golden.task("color").control
    for step in (0, 25, 40):
        edited, _ = _ask(same, control.at(step))
        np.testing.assert_allclose(edited[3], edited[2], atol=1e-5)


def test_factors_reach_only_their_words(batch):
    doubled, _ = _ask(batch, golden.task("color", cross=1.0, factors={"blue": 2.0}).control.at(0))
    plain, _ = _ask(batch, golden.task("color", cross=1.0).control.at(0))
    np.testing.assert_array_equal(doubled[:3], plain[:3])
    assert np.abs(doubled[3] - plain[3]).max() > 1e-3


@pytest.mark.parametrize("edit", ["color", "refine"])
def test_attention_before_and_after_the_edit(edit):
    """The first layer's attention at the first step, where source and target have the same latent."""
    stored, model = golden.arrays("ddim_p2p"), golden.model()
    top = jnp.asarray(latents(golden.arrays("sources")[f"{edit}.inverted"][-1:]))
    task = golden.task(edit)
    texts = jnp.concatenate([task.source, task.target])
    _, seen = model.unet.apply(
        {"params": model.unet_params},
        jnp.concatenate([top, top]),
        jnp.int32(980),
        texts,
        capture_intermediates=lambda module, _: module.name in ("to_q", "to_k"),
    )
    block = seen["intermediates"]["down_blocks_1"]["attentions_0"]["transformer_blocks_0"]
    pixels = np.array([3, 23, 43, 63])
    for name, layer in (("cross", "attn2"), ("self", "attn1")):
        heads = model.unet.config.heads[1]
        query, key = (
            block[layer][projection]["__call__"][0].reshape(2, -1, heads, 96 // heads)
            for projection in ("to_q", "to_k")
        )
        found = attention_probabilities(query, key)
        before = stored[f"{edit}.attention.{name}.step0.before"]
        after = stored[f"{edit}.attention.{name}.step0.after"]
        np.testing.assert_allclose(np.asarray(found)[:, :, pixels], before, atol=1e-5)
        if name == "cross":
            control = task.control.at(0)
            edited = edited_attention(control, found[:1], found[1:])
            gate = control.gate[:, None, None, :]
            edited = gate * edited + (1 - gate) * found[1:]
            np.testing.assert_allclose(
                np.asarray(edited)[0, :, pixels], np.moveaxis(after[1], 1, 0), atol=1e-5
            )
        else:
            np.testing.assert_allclose(np.asarray(found)[0][:, pixels], after[1], atol=1e-5)


def test_levels_of_published_networks():
    assert UNetConfig().map_level == 2
    # Without attention at a quarter of the edge: the next larger level, else the only one there is.
    for attending, level in (("AA..", 1), ("A..A", 0), ("...A", 3)):
        kinds = tuple("CrossAttnDownBlock2D" if kind == "A" else "DownBlock2D" for kind in attending)
        assert UNetConfig(down_block_types=kinds).map_level == level
    assert golden.model().unet.config.map_level == 1
    control = golden.task("color").control.at(0)
    shallow, deep = (control.at_level(level, returns_map=True) for level in (0, 1))
    assert not shallow.shares_self and deep.shares_self and deep.returns_map and not shallow.returns_map
    assert not dataclasses.replace(control, map_level=1).at_level(1, returns_map=False).returns_map


def test_a_target_takes_its_source_queries_and_keys():
    control = golden.task("color").control.at(0).at_level(1, returns_map=False)
    rng = np.random.default_rng(1)
    query, key, value = jnp.asarray(rng.normal(size=(3, 4, 5, 2, 8)), jnp.float32)

    def attend(query, key, value):
        return jnp.einsum("bhqk,bkhd->bqhd", attention_probabilities(query, key), value)

    mixed, _ = control.attend_itself(attend, query, key, value)
    expected = attend(query[2:3], key[2:3], value[3:])
    np.testing.assert_allclose(mixed[3:], expected, atol=1e-6)
    np.testing.assert_array_equal(mixed[:3], attend(query, key, value)[:3])


def test_one_program_for_all_prompts_and_steps(batch):
    compiled = []

    @jax.jit
    def traced(control):
        compiled.append(None)
        return jnp.sum(control.gate) + jnp.sum(control.mapping)

    for edit in golden.FORMS:
        for step in (0, 30):
            traced(golden.task(edit).control.at(step))
    assert len(compiled) == 1
