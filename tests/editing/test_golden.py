"""The methods compared with results of the authors' programs on the bundled model (tests/golden/editing).

Trajectories stored at steps 1, 10 and 11 are followed for 11 steps, and one of them to its end.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.diffusion.denoiser import Denoiser
from ge3d_jax.diffusion.pipeline import encode_images
from ge3d_jax.editing.control import local_blend
from ge3d_jax.editing.ddim import DDIM
from ge3d_jax.editing.ddpm import DDPM, noise_space
from ge3d_jax.editing.descent import Plan
from ge3d_jax.editing.direct import Direct
from ge3d_jax.editing.edict import EDICT, couple_down
from ge3d_jax.editing.embedding_search import search_texts
from ge3d_jax.editing.imagic import Imagic
from ge3d_jax.editing.inversion import invert, steps_up
from ge3d_jax.editing.npi import NPI, slerp
from ge3d_jax.editing.nti import NTI
from ge3d_jax.editing.spdinv import SPDInv, fixed_point_inversion
from tests.editing import golden
from tests.editing.golden import assert_close, latents

LATENT = 2e-4
EARLY = 11


@pytest.fixture(scope="module")
def up():
    """The inversion of all three pictures at once, (51, 3, h, w, C)."""
    tasks = [golden.task(edit) for edit in golden.FORMS]
    picture, source = (
        jnp.concatenate([getattr(task, name) for task in tasks]) for name in ("latents", "source")
    )
    three = dataclasses.replace(golden.denoiser(), views_at_a_time=3)
    with jax.disable_jit():
        return invert(three, picture, source, DDIM().times(three), asks="end")


@dataclasses.dataclass(frozen=True)
class _Found:
    """Makes a method use the existing inversion."""

    states: jax.Array

    def plan(self, method, task):
        found = type("Found", (type(method),), {"up": lambda *_: self.states})
        values = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
        return found(**values).plan(task, golden.denoiser())


def _plan(method, task, up, edit) -> Plan:
    index = list(golden.FORMS).index(edit)
    return _Found(up[:, index : index + 1]).plan(method, task)


def _assert_states(found, stored, kept, tolerance=LATENT):
    """Compare the states after the given steps, skipping those that were not reached."""
    walked = [index for index, step in enumerate(kept) if step < len(found)]
    assert walked
    assert_close(found[np.asarray(kept)[walked]], latents(stored)[walked], tolerance)


def test_the_picture_its_latents_and_the_way_up(up):
    stored = golden.arrays("sources")
    np.testing.assert_array_equal(stored["timesteps"], DDIM().times(golden.denoiser())[:-1])
    for index, edit in enumerate(golden.FORMS):
        assert_close(up[stored["inverted_nodes"], index], latents(stored[f"{edit}.inverted"]), LATENT)
    picture = jnp.asarray(stored["color.image"] / np.float32(255))
    assert_close(encode_images(golden.model(), picture[None], None), latents(stored["color.latent"]), LATENT)


@pytest.mark.parametrize(
    ("file", "edit", "prefix", "method"),
    [
        ("ddim_p2p", "kind", "", DDIM()),
        ("npi", "refine", "npi.", NPI()),
        ("npi", "color", "prox_l1.", NPI(proximal="l1")),
        ("direct", "refine", "", Direct()),
    ],
)
def test_early_steps_of_the_way_down(up, file, edit, prefix, method):
    task, stored = golden.task(edit), golden.arrays(file)
    source, target = golden.walk(task, _plan(method, task, up, edit), EARLY)[:2]
    expected = stored[f"{edit}.{prefix}target_latents"]
    kept = golden.arrays("sources")["kept_steps" if len(expected) == 4 else "kept_steps_short"]
    _assert_states(target, expected, kept)
    if f"{edit}.{prefix}source_latents" in stored:
        _assert_states(source, stored[f"{edit}.{prefix}source_latents"], [10, 11, 50])


@pytest.mark.slow
def test_proximal_guidance_to_the_end(up):
    task, stored = golden.task("color"), golden.arrays("npi")
    source, target, _ = golden.walk(task, _plan(NPI(proximal="l0"), task, up, "color"))
    _assert_states(target, stored["color.prox_l0.target_latents"], [1, 10, 11, 50])
    _assert_states(source, stored["color.prox_l0.source_latents"], [50])
    assert_close(slerp(task.source, task.empties, 0.5), stored["color.npi.slerp_half"], 1e-5)


def test_reweighting_with_a_blend_and_a_strict_one(up):
    stored, words = golden.arrays("reweight"), golden.arrays("sources")["kind.words"].tolist()
    task = golden.task("kind", factors={words[2]: 2.0})
    np.testing.assert_array_equal(task.control.emphasis[0], stored["kind.equalizer"])
    tokenizer = golden.model().tokenizer

    def blended(**more):
        return local_blend(
            tokenizer, [golden.prompts("kind")], [words[:2]], steps=50, length=golden.TOKENS, **more
        )

    task = dataclasses.replace(task, blend=blended())
    plan = _plan(Direct(), task, up, "kind")
    _, target, masks = golden.walk(task, plan, EARLY)
    _assert_states(target, stored["kind.with_blend.target_latents"], [10, 11, 50])
    # Axis 1 of the stored array: the mask of the source, and of both.
    np.testing.assert_array_equal(masks[10], stored["kind.with_blend.masks"][0, 1])
    assert masks[:10].all()

    stored = golden.arrays("local_blend")
    np.testing.assert_array_equal(task.blend.words[:, 0], stored["kind.alpha_layers"])
    threshold, kept_threshold = map(float, stored["kind.strict.th"])
    strict = blended(
        kept=[sorted(set(stored["kind.strict.substruct_words"].tolist()))],
        threshold=threshold,
        kept_threshold=kept_threshold,
    )
    np.testing.assert_array_equal(strict.kept[:, 0], stored["kind.strict.substruct_layers"])
    task = dataclasses.replace(golden.task("kind"), blend=strict)
    _, target, masks = golden.walk(task, _plan(Direct(), task, up, "kind"), EARLY)
    _assert_states(target, stored["kind.strict.target_latents"], [10, 11, 50])
    np.testing.assert_array_equal(masks[10], stored["kind.strict.masks"][0])


def _null_texts(edit, steps):
    """Results in float64 at the first N steps: texts (N, L, D), losses (N, rounds)."""
    with jax.enable_x64(True):
        method, task = NTI(), golden.in_double(golden.task(edit))
        found = Denoiser(golden.double_model(), golden.double_model().schedule, 1)
        times = method.times(found)
        up = jax.jit(partial(invert, asks="end"))(found, task.latents, task.source, times)
        searched = search_texts(
            found,
            times[: steps + 1],
            up[-steps - 1 :],
            task.empties,
            task.source,
            scale=method.scale,
            rates=method.rates[:steps],
            stop_below=method.stop_losses[:steps],
            rounds=method.rounds,
            searches_conditional=False,
        )
    texts, losses, _ = map(np.asarray, searched)
    return texts[:, 0], losses[..., 0]


@pytest.mark.slow
def test_null_texts_and_their_losses():
    stored, steps = golden.arrays("nti"), 2
    texts, losses = _null_texts("refine", steps)
    expected = stored["refine.losses_float64"][:steps]
    np.testing.assert_array_equal(np.isnan(losses), np.isnan(expected))
    assert_close(losses, expected, 1e-8)
    # PyTorch's time sinusoids are float32 even in its float64 run, and are rounded differently from XLA's.
    assert_close(texts, stored["refine.uncond_float64"][:steps], 1e-5)
    assert np.nanmin(losses[0]) < losses[0, 0]


@pytest.mark.slow
def test_fixed_points_and_their_losses():
    stored, steps = golden.arrays("spdinv"), 2
    with jax.enable_x64(True):
        method, task = SPDInv(), golden.in_double(golden.task("color"))
        found = Denoiser(golden.double_model(), golden.double_model().schedule, 1)
        moves = tuple(array[:steps] for array in steps_up(method.times(found), method.asks))
        states, losses = fixed_point_inversion(
            found,
            task.latents,
            task.source,
            moves,
            rate=method.rate,
            rounds=method.rounds,
            stop_below=method.stop_below,
        )
    assert_close(states[1:, 0], latents(stored["color.inverted_float64"])[:steps], 1e-5)
    np.testing.assert_array_equal(np.isnan(losses[..., 0]), np.isnan(stored["color.losses"][:steps]))


def test_edit_friendly_noise():
    stored, method = golden.arrays("ddpm"), DDPM(steps=20, skip=0.35)
    task = golden.task("color", steps=20, cross=0.6, self_attention=0.2)
    noise = jnp.asarray(latents(stored["noise"]))[:, None]
    found = golden.denoiser()
    times = method.times(found)
    np.testing.assert_array_equal(times[:-1], stored["timesteps"])
    with jax.disable_jit():
        states, drawn = noise_space(
            found, task.latents, task.source, task.empties, times, noise, scale=method.source_scale
        )
        edited = method.edit(task, found, noise)
    nodes = stored["nodes"]
    assert_close(states[nodes, 0], latents(stored["color.xts"]), LATENT)
    assert_close(drawn[::-1][nodes, 0], latents(stored["color.zs"]), 5e-4)
    _assert_states(edited.down[:, 0], stored["color.p2p.target_latents"], stored["kept_steps"])
    assert_close(edited.source[-1, 0], latents(stored["color.reconstruction.latent"]), LATENT)


def test_coupled_chains_one_step():
    stored, method = golden.arrays("edict"), EDICT()
    task = golden.uncontrolled(golden.task("refine"))
    found = golden.denoiser()
    times = method.times(found)
    top, texts = jnp.asarray(latents(stored["refine.inverted"]))[:, None], (task.source, task.target)
    with jax.disable_jit():
        down, _ = couple_down(
            found,
            top,
            jnp.concatenate(texts),
            jnp.concatenate([task.empties] * 2),
            times[-method.made - 1 :][:2],
            task.control,
            scale=method.scale,
            mixing=method.mixing,
        )
    zero, one = latents(stored["refine.edit.updates"][0])
    mixed = method.mixing * zero + (1 - method.mixing) * one
    assert_close(down[-1, 0, 0], mixed, 5e-4)
    assert_close(down[-1, 1, 0], (1 - method.mixing) * mixed + method.mixing * one, 5e-4)


@pytest.mark.slow
def test_coupled_chains():
    stored, method = golden.arrays("edict"), EDICT()
    task = golden.task("refine", form="match", cross=1.0, self_attention=1.0)
    found = golden.denoiser()
    with jax.disable_jit():
        up = method.up(task, found)
        down, _ = method.down(task, found, up[-1])
    assert_close(up[-1, :, 0], latents(stored["refine.inverted"]), 5e-4)
    assert_close(down[-1, :, 0], latents(stored["refine.p2p"]), 5e-4)


@pytest.mark.slow
def test_imagic_learns_the_text_and_the_network():
    stored = golden.arrays("imagic")
    method = Imagic(text_rounds=20, network_rounds=10, network_rate=2e-5)
    task = golden.task("color")
    times, noise = jnp.asarray(stored["timesteps_train"]), jnp.asarray(latents(stored["noise_train"]))[:, 0]
    network = Denoiser(golden.model(), golden.model().schedule, 1)
    trained = method.train(network, task.latents[0], task.target[0], times, noise)
    expected = np.concatenate([stored["color.losses_embedding"], stored["color.losses_unet"]])
    assert_close(trained.losses, expected, 1e-5)
    assert_close(trained.text, stored["color.embeddings_optimised"][0], 2e-5)
    moved = trained.parameters["conv_out"]["bias"] - golden.model().unet_params["conv_out"]["bias"]
    assert_close(moved, stored["color.delta.conv_out.bias"], 1e-5)
    start = jnp.asarray(latents(stored["noise_start"]))[0]
    np.testing.assert_array_equal(method.times(network)[:-1], stored["timesteps"])
    for mixture in (0.7, 1.2):
        states = dataclasses.replace(method, mixture=mixture).sample(
            network, trained, task.target[0], task.empty, method.times(network), start
        )
        assert_close(states[-1], latents(stored[f"color.alpha{mixture}.latent"])[0], LATENT)
