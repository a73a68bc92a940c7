"""Identities of all methods on models with known ε, in float64; the inner loop compared with a plain one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import normal
from ge3d_jax.editing.base import edit_times
from ge3d_jax.editing.control import LocalBlend, blend_mask
from ge3d_jax.editing.ddpm import DDPM
from ge3d_jax.editing.edict import EDICT
from ge3d_jax.editing.inner_loop import minimize
from ge3d_jax.editing.inversion import invert
from ge3d_jax.editing.methods import METHODS
from ge3d_jax.editing.npi import slerp
from tests.editing import fakes

STEPS = 6
KEY = jax.random.key(0)
# All methods except the one that trains the network itself, and therefore needs a real network.
KNOWN = {name: kind for name, kind in METHODS.items() if name != "imagic"}
# Methods whose reconstruction of the source is exact on any model at any guidance scale.
EXACT = ("direct", "ddpm", "edict", "flow")
# Methods that retrace straight lines at any guidance scale, and those that do so without guidance.
RETRACING = ("npi", "proximal", "spdinv")
UNGUIDED = ("ddim", "nti")
# Adam takes full-size steps even for gradients of rounding errors, so this method only reduces large errors.
SEARCHED = ("pti",)
# With the source as target, on straight lines, these return the picture. Methods that guidance leads astray,
# or that have to search first, do not.
RETURNING = ("direct", "npi", "proximal", "spdinv", "edict", "flow")


def _method(name, **changes):
    return KNOWN[name](steps=STEPS, **changes)


def _edit(method, task, *, pictures=1, straight=False):
    return method(task, fakes.denoiser(pictures, knows_only_text=straight), KEY)


@settings(max_examples=3)
@given(seed=st.integers(0, 1000), name=st.sampled_from(RETURNING))
def test_a_picture_returns_where_nothing_is_asked(seed, name):
    with jax.enable_x64(True):
        task = fakes.task(1, STEPS, seed=seed, same=True)
        changes = {"source_scale": 7.5} if name == "flow" else {}
        edited = _edit(_method(name, **changes), task, straight=True)
        np.testing.assert_allclose(edited.source[-1], task.latents, atol=1e-6)
        # Direct inversion does not correct the target.
        if name != "direct":
            np.testing.assert_allclose(edited.latents, task.latents, atol=1e-6)


def test_every_method_has_its_round_trip():
    assert sorted(EXACT + RETRACING + UNGUIDED + SEARCHED) == sorted(KNOWN)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.0, 8.0), target_scale=st.floats(0.0, 8.0))
def test_exact_inversions_are_exact_on_any_model(seed, scale, target_scale):
    with jax.enable_x64(True):
        task = fakes.task(1, STEPS, seed=seed)
        direct = _edit(_method("direct", scale=scale), task)
        np.testing.assert_array_equal(direct.source, direct.up[::-1])
        noise = _edit(DDPM(steps=STEPS, scale=target_scale, source_scale=scale, skip=0.0), task)
        # The last step draws nothing; its noise is what the picture loses. Guidance must be as precise in
        # denoising as it was when the noise was found.
        np.testing.assert_allclose(noise.source[:-1], noise.up[:0:-1], atol=1e-11)
        chains = EDICT(steps=STEPS, scale=scale, strength=1.0)
        known = fakes.denoiser(1)
        up = chains.up(task, known)
        back, _ = chains.down(dataclasses.replace(task, target=task.source), known, up[-1])
        np.testing.assert_allclose(back, up[::-1], atol=1e-6)
        same = dataclasses.replace(task, target=task.source)
        flow = _edit(_method("flow", scale=scale, source_scale=scale), same)
        np.testing.assert_allclose(flow.latents, task.latents, atol=1e-11)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.0, 8.0), asks=st.sampled_from(["start", "end"]))
def test_straight_lines_are_retraced(seed, scale, asks):
    with jax.enable_x64(True):
        task = fakes.task(1, STEPS, seed=seed)
        for name in RETRACING + UNGUIDED:
            own_scale = 1.0 if name in UNGUIDED else scale
            back = _edit(_method(name, scale=own_scale, asks=asks), task, straight=True).source
            np.testing.assert_allclose(back[-1], task.latents, atol=1e-6, err_msg=name)
        # Guidance leads away from the line, which the other methods correct.
        off = _edit(_method("ddim", scale=scale + 1.5, asks=asks), task, straight=True).source[-1]
        assert np.max(np.abs(off - task.latents)) > 1e-3


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(2.0, 8.0))
def test_what_is_searched_for_comes_nearer_than_what_is_not(seed, scale):
    with jax.enable_x64(True):
        task = fakes.task(1, STEPS, seed=seed)
        error = {
            name: np.linalg.norm(
                _edit(_method(name, scale=scale, first_time=1), task).source[-1] - task.latents
            )
            for name in ("ddim", "nti", "pti")
        }
        assert error["nti"] < error["ddim"] and error["pti"] < error["ddim"]


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), source=st.floats(0.0, 8.0), target=st.floats(0.0, 8.0))
def test_scales_are_as_precise_as_latents(seed, source, target):
    with jax.enable_x64(True):
        task = fakes.task(1, STEPS, seed=seed)
        known = fakes.denoiser(1, knows_only_text=True)
        # On straight lines, FlowEdit moves the picture by σ times the difference of the guided predictions,
        # here over the lower half of the steps.
        made = _method("flow", strength=0.5, source_scale=source, scale=target)
        times = np.asarray(made.times(known))[[STEPS // 2, -1]]
        alphas = np.asarray(known.schedule.alphas_cumprod, np.float64)[times]
        sigmas = np.sqrt((1 - alphas) / alphas)

        def predicted(text):
            return np.asarray(known.predict(known.model, task.latents, jnp.asarray(1), text))

        empty, wanted, before = map(predicted, (task.empties, task.target, task.source))
        change = (1 - target) * empty + target * wanted - (1 - source) * empty - source * before
        moved = _edit(made, task, straight=True).latents
        np.testing.assert_allclose(
            moved, task.latents + (sigmas[1] - sigmas[0]) * change, atol=1e-10, rtol=1e-10
        )


def test_a_flow_asks_of_both_pictures_under_the_same_noise():
    with jax.enable_x64(True):
        task, known = fakes.task(1, STEPS), fakes.denoiser(1)
        made = _method("flow", strength=1.0, draws=2)
        times = np.asarray(made.times(known))
        alphas = np.asarray(known.schedule.alphas_cumprod, np.float64)[times]
        sigmas = np.sqrt((1 - alphas) / alphas)
        noise = normal(KEY, (STEPS, 2, *task.latents.shape))

        def guided(x, step, text, scale):
            empty, wanted = (
                known.predict(known.model, jnp.sqrt(alphas[step]) * x, jnp.asarray(times[step]), each)
                for each in (task.empties, text)
            )
            return empty + scale * (wanted - empty)

        moved = task.latents
        for step in range(STEPS):
            changes = [
                guided(moved + sigmas[step] * n, step, task.target, made.scale)
                - guided(task.latents + sigmas[step] * n, step, task.source, made.source_scale)
                for n in noise[step]
            ]
            moved = moved + (sigmas[step + 1] - sigmas[step]) * sum(changes) / 2
        np.testing.assert_allclose(_edit(made, task).latents, moved, rtol=1e-6, atol=1e-6)


def test_what_was_found_for_the_source_serves_the_target_too():
    with jax.enable_x64(True):
        same = fakes.task(1, STEPS, same=True)
        found = _edit(_method("nti"), same)
        np.testing.assert_allclose(found.latents, found.source[-1], atol=1e-9)
        task = fakes.task(1, STEPS)
        kept = _edit(_method("pti", mixture=0.0), task)
        np.testing.assert_allclose(kept.latents, kept.source[-1], atol=1e-9)
        # With the target's text alone, the search changes nothing.
        wanted = _edit(_method("pti", mixture=1.0), task)
        np.testing.assert_allclose(wanted.latents, _edit(_method("ddim"), task).latents, atol=1e-9)
        assert np.abs(wanted.latents - kept.latents).max() > 1e-3


def test_npi_s_text_turns_from_the_source_to_the_empty_prompt():
    with jax.enable_x64(True):
        low, high = jnp.asarray([[[1.0, 0.0]]]), jnp.asarray([[[0.0, 1.0]]])
        np.testing.assert_allclose(
            slerp(low, high, 1 / 3), [[[np.cos(np.pi / 6), np.sin(np.pi / 6)]]], atol=1e-12
        )
        task = fakes.task(1, STEPS)
        whole = _edit(_method("npi", towards_empty=1.0), task)
        np.testing.assert_allclose(whole.latents, _edit(_method("ddim"), task).latents, atol=1e-9)
        nearly = _edit(_method("npi", towards_empty=1e-6), task)
        np.testing.assert_allclose(nearly.latents, _edit(_method("npi"), task).latents, atol=1e-3)


@pytest.mark.parametrize("proximal", ["l0", "l1"])
def test_proximal_guidance_shrinks_differences_and_pulls_pictures_where_none_is_left(proximal):
    with jax.enable_x64(True):
        task, known = fakes.task(1, STEPS, seed=1), fakes.denoiser(1)
        made = _method("npi", first_time=1, scale=3.0, proximal=proximal, quantile=0.8, pulled_below=499)
        times = np.asarray(made.times(known))
        assert 499 in times
        alphas = np.asarray(known.schedule.alphas_cumprod, np.float64)
        edited = _edit(made, task)
        path = np.asarray(edited.up)[::-1]
        branches = [path[0], path[0]]
        pulled = []
        for step, (now, then) in enumerate(zip(times, times[1:], strict=False)):
            without, wanted = (
                [
                    np.asarray(known.predict(known.model, x, jnp.asarray(now), text))
                    for x, text in zip(branches, texts, strict=True)
                ]
                for texts in ((task.source, task.source), (task.source, task.target))
            )
            least = np.quantile(np.abs(np.subtract(wanted, without)), 0.8)
            for branch in range(2):
                x, delta = branches[branch], wanted[branch] - without[branch]
                left = np.sign(delta) * np.maximum(np.abs(delta) - least, 0.0)
                if proximal == "l1":
                    # What was positive and falls below 0 by the second shrinking is raised by it again.
                    once = np.where(left > 0, left - least, left)
                    left = np.where(once < 0, once + least, once)
                epsilon = without[branch] + 3.0 * left
                clean = (x - np.sqrt(1 - alphas[now]) * epsilon) / np.sqrt(alphas[now])
                x = np.sqrt(alphas[then]) * clean + np.sqrt(1 - alphas[then]) * epsilon
                if proximal == "l0" and now < 499:
                    padded = np.pad(np.abs(left) > least, [(0, 0), (1, 1), (1, 1), (0, 0)])
                    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
                    differs = windows.any(axis=(-2, -1))
                    x = np.where(differs, x, path[step + 1])
                    pulled.append(1.0 - differs.mean())
                branches[branch] = x
        # Some of the target's pixels are pulled, and some are not.
        assert proximal == "l1" or any(0 < share < 1 for share in pulled)
        np.testing.assert_allclose(edited.source[-1], branches[0], atol=1e-5)
        np.testing.assert_allclose(edited.latents, branches[1], atol=1e-5)


def test_pictures_together_are_as_alone():
    with jax.enable_x64(True):
        both = fakes.task(2, STEPS, seed=5)
        for name in ("proximal", "nti", "spdinv"):
            together = _edit(_method(name), both, pictures=2)
            for index in range(2):
                one = slice(index, index + 1)
                alone = dataclasses.replace(
                    fakes.task(1, STEPS),
                    latents=both.latents[one],
                    source=both.source[one],
                    target=both.target[one],
                    empty=both.empty,
                )
                np.testing.assert_allclose(
                    together.latents[one], _edit(_method(name), alone).latents, atol=1e-8
                )


def test_searches_lower_their_losses():
    with jax.enable_x64(True):
        task = fakes.task(1, STEPS, seed=3)
        for name in ("nti", "pti", "spdinv"):
            losses = np.asarray(_edit(_method(name, first_time=1), task).numbers["losses"])[..., 0]
            assert losses.shape[0] == STEPS
            searched = losses[np.sum(~np.isnan(losses), axis=1) > 1]
            assert len(searched) and np.all(np.nanmin(searched, axis=1) < searched[:, 0])


def test_both_conventions_of_the_way_up():
    with jax.enable_x64(True):
        task, known = fakes.task(1, STEPS), fakes.denoiser(1)
        times = np.array(edit_times(1000, 3, 1))
        alphas = np.asarray(known.schedule.alphas_cumprod, np.float64)
        for asks in ("start", "end"):
            x = np.asarray(task.latents)
            for i in range(2, -1, -1):
                low, high = times[i + 1], times[i]
                told = high if asks == "end" else low
                epsilon = np.asarray(known.predict(known.model, x, jnp.asarray(told), task.source))
                clean = (x - np.sqrt(1 - alphas[low]) * epsilon) / np.sqrt(alphas[low])
                x = np.sqrt(alphas[high]) * clean + np.sqrt(1 - alphas[high]) * epsilon
            found = invert(known, task.latents, task.source, jnp.asarray(times), asks=asks)[-1]
            np.testing.assert_allclose(found, x, atol=1e-6)


def test_the_inner_loop_is_adam_that_stops_by_picture():
    start, aims = np.array([[3.0, -1.0], [0.2, 0.1]]), np.array([1.0, 0.0])
    rate, decay, enough = 0.05, 0.01, 0.02

    def losses_of(value):
        return jnp.mean((value - aims[:, None]) ** 2, axis=1)

    with jax.enable_x64(True):
        found, losses = minimize(
            losses_of, jnp.asarray(start), rate=rate, rounds=6, stop_below=enough, decay=decay
        )
    for picture in range(2):
        value, mean, square = start[picture].copy(), 0.0, 0.0
        expected = np.full(6, np.nan)
        for index in range(6):
            expected[index] = np.mean((value - aims[picture]) ** 2)
            slope = 2 * (value - aims[picture]) / 2
            mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
            unbiased = mean / (1 - 0.9 ** (index + 1)), square / (1 - 0.999 ** (index + 1))
            value = value * (1 - rate * decay) - rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
            if expected[index] < enough:
                break
        np.testing.assert_allclose(losses[:, picture], expected, atol=1e-9)
        np.testing.assert_allclose(found[picture], value, atol=1e-9)
    assert np.isnan(np.asarray(losses)[-1]).tolist() == [False, True]


def test_a_blend_changes_only_where_words_are():
    maps = np.zeros((2, 1, 4, 4, 3), np.float32)
    maps[1, 0, 0, 0, 1] = 2.0  # the target's word, in one corner
    maps[0, 0, 3, 3, 2] = 1.0  # the source's other word, in another corner
    words = np.zeros((2, 1, 3), np.float32)
    words[1, 0, 1] = words[0, 0, 2] = 1.0
    kept = np.zeros_like(words)
    kept[0, 0, 2] = 1.0
    blend = LocalBlend(*map(jnp.asarray, (words, [0.3], 0 * kept, [0.3])), jnp.int32(0))
    mask = np.asarray(blend_mask(blend, jnp.asarray(maps), (8, 8)))[0]
    expected = np.zeros((8, 8), bool)
    expected[:4, :4] = expected[4:, 4:] = True
    np.testing.assert_array_equal(mask, expected)
    expected[6:, 6:] = False
    stricter = dataclasses.replace(blend, kept=jnp.asarray(kept))
    np.testing.assert_array_equal(blend_mask(stricter, jnp.asarray(maps), (8, 8))[0], expected)


def test_times_are_equally_far_apart_and_all_within_the_schedule():
    np.testing.assert_array_equal(edit_times(1000, 3, 1), [667, 334, 1, 0])
    np.testing.assert_array_equal(edit_times(1000, 1000, 0)[[0, -2, -1]], [999, 0, 0])
    np.testing.assert_array_equal(edit_times(1000, 500, 1)[[0, -2, -1]], [999, 1, 0])


def test_searches_slow_down_and_ask_for_less_from_step_to_step():
    made, steps = METHODS["nti"](steps=50), np.asarray([0, 1, 49])
    np.testing.assert_allclose(made.rates[steps], 0.01 * (1 - steps / 100), rtol=1e-6)
    np.testing.assert_allclose(made.stop_losses[steps], 1e-5 + 2e-5 * steps, rtol=1e-6)
    np.testing.assert_allclose(METHODS["pti"](steps=4).rates, 0.005 * np.asarray([1, 7 / 8, 3 / 4, 5 / 8]))
    assert not np.any(METHODS["pti"](steps=4).stop_losses)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: edit_times(1000, 1001, 0), "1001 steps do not fit"),
        (lambda: edit_times(1000, 500, 2), "500 steps do not fit"),
        (lambda: METHODS["ddim"](asks="middle"), "end, start"),
        (lambda: METHODS["npi"](proximal="l2"), "none, l0, l1"),
        (lambda: METHODS["ddpm"](skip=1.0), "leaves none"),
        (lambda: METHODS["ddpm"](first_time=0), "first_time is 0"),
        (lambda: METHODS["edict"](mixing=0.5), "above 0.5"),
        (lambda: METHODS["edict"](strength=0.0), "leaves none"),
        (lambda: METHODS["flow"](strength=2.0), "leaves none"),
        (lambda: METHODS["pti"](mixture=1.5), "from 0 to 1"),
    ],
)
def test_settings_that_cannot_be(make, says):
    with pytest.raises(UserError, match=says):
        make()
