"""The reconstruction stage: its cameras, its pictures, and the fit to them."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.diffusion.denoiser import Denoiser
from ge3d_jax.diffusion.pipeline import decode_latents, encode_images
from ge3d_jax.guidance.prompts import view_texts
from ge3d_jax.guidance.sds import SDS
from ge3d_jax.runs.live import edit_views
from ge3d_jax.runs.run import Run
from ge3d_jax.scenes.markov_chain import MarkovChain
from ge3d_jax.splatting.cameras import camera_center
from ge3d_jax.training.distillation import Distillation, begin
from ge3d_jax.training.iterations import iterate
from ge3d_jax.training.photometric import Photometric
from ge3d_jax.training.presets import PRESETS
from ge3d_jax.training.reconstruction import (
    as_views,
    begin_stage,
    cameras_at,
    draw_edits,
    edited_views,
    held_out_angles,
    ring_angles,
    stage_config,
)
from ge3d_jax.training.reconstruction_config import Reconstruction
from tests.training.fakes import predict


@pytest.fixture(scope="module")
def config(tiny_config):
    settings = dataclasses.replace(
        tiny_config.reconstruction, rings=((80.0, 2), (60.0, 3)), held_out=3, passes=8, views_per_step=2
    )
    return dataclasses.replace(tiny_config, reconstruction=settings)


@pytest.fixture(scope="module")
def perp_neg(config):
    """The same, with settings of prompts that differ from the usual ones."""
    prompts = dataclasses.replace(
        config.prompts, use_perp_neg=True, perp_neg_weight=-1.5, perp_neg_rule="threestudio"
    )
    return dataclasses.replace(config, prompts=prompts)


@pytest.fixture(scope="module")
def from_above(prompted):
    """The prompt, with an embedding for views from above."""
    overhead = prompted.embeddings.front + 1.0
    return dataclasses.replace(
        prompted, embeddings=dataclasses.replace(prompted.embeddings, overhead=overhead)
    )


@pytest.fixture(scope="module")
def state(config, tiny_model):
    return begin(config, tiny_model, jax.random.key(0))


def test_the_published_cameras_are_where_they_should_be():
    config = PRESETS["paper"]
    polar, azimuth = ring_angles(config.reconstruction)
    assert len(polar) == config.reconstruction.pictures == 36 and config.reconstruction.steps == 1440
    cameras = cameras_at(config, (polar, azimuth))
    centers = np.asarray(jax.vmap(camera_center)(cameras))
    np.testing.assert_allclose(np.linalg.norm(centers, axis=1), 0.9 * 4.25, rtol=1e-5)
    found = np.rad2deg(np.arccos(centers[:, 2] / np.linalg.norm(centers, axis=1)))
    np.testing.assert_allclose(found, [100] * 4 + [85] * 12 + [75] * 14 + [55] * 6, atol=1e-3)
    around = np.rad2deg(np.arctan2(centers[:, 1], centers[:, 0])) % 360
    np.testing.assert_allclose(around[:4], [0, 90, 180, 270], atol=1e-3)
    np.testing.assert_allclose(np.diff(around[4:16]), 30, atol=1e-3)
    np.testing.assert_allclose(cameras.intrinsics[:, 0], 256 / np.tan(0.275), rtol=1e-5)


def test_held_out_cameras_are_between_the_rings():
    polar, azimuth = held_out_angles(Reconstruction())
    np.testing.assert_allclose(np.rad2deg(polar), [65] * 4 + [80] * 4 + [92.5] * 4)
    np.testing.assert_allclose(np.rad2deg(azimuth[:4]), [45, 135, 225, 315])
    polar, azimuth = held_out_angles(Reconstruction(rings=((70.0, 6),), held_out=6))
    np.testing.assert_allclose(np.rad2deg(polar), 70)
    np.testing.assert_allclose(np.rad2deg(azimuth[0]), 30)


def test_numbers_that_do_not_divide_evenly_are_rounded_up():
    # A camera more in some gaps, rather than none in any; a step more, rather than a picture left out.
    assert [len(held_out_angles(Reconstruction(held_out=count))[0]) for count in (1, 3, 4)] == [3, 3, 6]
    assert Reconstruction(rings=((80.0, 3),), passes=5, views_per_step=2).steps == 8


def test_pictures_are_fitted_as_the_nearest_colors_that_a_file_could_hold(config):
    cameras = cameras_at(config, (np.full(1, 1.2), np.zeros(1)))
    views = as_views(np.array([-0.2, 0.4996, 1.3]) * np.ones((1, 16, 16, 3)), cameras)
    assert views.pixels.dtype == np.uint8
    np.testing.assert_array_equal(views.pixels, np.uint8([0, 127, 255, 255]) * np.ones((1, 16, 16, 4)))
    views = as_views(np.full((1, 16, 16, 3), 0.999), cameras)
    np.testing.assert_array_equal(views.pixels, 255)


def test_pictures_are_the_ends_of_ge3d_s_trajectories_whatever_ran_before(
    perp_neg, state, from_above, tiny_model
):
    config = dataclasses.replace(perp_neg, guidance=SDS())
    # Five views, two at a time, with a buffer that is initially too small.
    small = with_overrides(config, {"scene.buffer_capacity": 3})
    polar, azimuth = ring_angles(config.reconstruction)
    cameras = cameras_at(config, (polar, azimuth))
    edited = edited_views(Distillation(small, predict), state, from_above, cameras, azimuth)
    assert edited.shape == (5, 16, 16, 3) and edited.dtype == np.float32

    drawn = draw_edits(Distillation(config), state, from_above, 5)
    times = drawn.shared["node_times"]
    assert times[-1] <= 300 and drawn.shared["active"] == 5

    @jax.jit
    def at_once(drawn):
        scene = config.scene.grown(2000)
        perturbations = scene.perturbations(state.scene, 5)
        renders = scene.render(state.scene, 0, cameras, jnp.ones((5, 3)), None, perturbations)
        latents = encode_images(tiny_model, renders.rgb, None)
        text = view_texts(
            from_above.embeddings,
            jnp.asarray(azimuth),
            use_perp_neg=True,
            weight=-1.5,
            rule="threestudio",
            polar=jnp.asarray(polar),
        )
        denoiser = Denoiser(tiny_model, tiny_model.schedule, 5, predict)
        _, denoised = config.reconstruction.editor.trajectories(latents, text, drawn, denoiser)
        return decode_latents(tiny_model, denoised[0]), renders.overflow

    expected, overflow = at_once(drawn)
    assert not overflow.any()
    np.testing.assert_allclose(edited, expected, atol=2e-3)


def test_pictures_show_the_object_though_its_opacities_were_just_reset(perp_neg, state, from_above):
    task = Distillation(
        with_overrides(perp_neg, {"guidance.kind": "sds", "scene.buffer_capacity": 3}), predict
    )
    azimuth = np.array([0.5, 2.0])
    cameras = cameras_at(perp_neg, (np.full(2, 1.2), azimuth))
    before = state.scene.gaussians.opacity_logits
    reset = state.replace(
        scene=state.scene.replace(
            gaussians=state.scene.gaussians.replace(opacity_logits=jnp.full_like(before, -4.6)),
            statistics=dataclasses.replace(state.scene.statistics, logits_before_reset=before),
        )
    )
    expected = edited_views(task, state, from_above, cameras, azimuth)
    np.testing.assert_allclose(edited_views(task, reset, from_above, cameras, azimuth), expected, atol=1e-5)


def test_the_live_view_edits_the_same_way(perp_neg, state, from_above):
    """Tested here because it reuses the programs compiled above."""
    settings = {"guidance.kind": "sds", "scene.buffer_capacity": 3}
    task = Distillation(with_overrides(perp_neg, settings), predict)
    run = Run(Path("unused"), {}, task, from_above, parts=1, history=[], is_new=True)
    azimuth = np.array([0.5, 2.0])
    pictures = edit_views(run, state, azimuth)
    polar = np.deg2rad(np.mean(perp_neg.cameras.polar_degrees))
    cameras = cameras_at(perp_neg, (np.full(2, polar), azimuth))
    np.testing.assert_array_equal(pictures, edited_views(task, state, from_above, cameras, azimuth))
    assert pictures.shape == (2, 16, 16, 3) and np.abs(pictures[0] - pictures[1]).max() > 1e-3


def test_a_fit_to_fixed_pictures_lowers_their_error(config, state):
    stage = stage_config(config)
    polar, azimuth = ring_angles(config.reconstruction)
    cameras = cameras_at(config, (polar, azimuth))
    views = as_views(np.full((5, 16, 16, 3), [0.9, 0.2, 0.2]), cameras)
    begun = begin_stage(stage, state, state.scene.gaussians)
    assert int(begun.iteration) == 0 and not begun.optimizer_state.mu["positions"].any()
    steps = []
    result = iterate(
        begun,
        views,
        Photometric(stage),
        parts=2,
        on_iteration=lambda done, numbers, state: steps.append(numbers),
    )
    losses = [step["loss"] for step in steps]
    assert result.iterations == config.reconstruction.steps == 20
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    # 100 · mean squared error. Numbers are means of two views, so the PSNR's error is a geometric mean, which
    # is at most the arithmetic one.
    for step in steps:
        geometric = 100 * 10 ** (-step["psnr"] / 10)
        assert 0.999 * geometric <= step["loss"] < 1.2 * geometric


def test_the_stage_changes_only_how_the_scene_learns(config):
    stage = stage_config(with_overrides(PRESETS["paper"], {"reconstruction.views_per_step": 1}))
    assert stage.scene.learning_rates.position == (8e-4, 8e-6) and stage.background.replaced == 0
    density = stage.scene.density
    assert [done for done in range(1, 1441) if density.densifies_at(done)] == [100, 200, 300, 400, 500]
    assert density.gradient_threshold == 1e-3 and not any(
        density.resets_at(done, 1440) for done in range(1, 1441)
    )
    assert stage.scene.capacity == PRESETS["paper"].scene.capacity
    assert (stage.scene.scale_noise, stage.scene.scale_penalty, stage.scene.sh_every) == (0, 0, 0)
    # The stage uses the run's kind of density control.
    other = dataclasses.replace(config, scene=dataclasses.replace(config.scene, density=MarkovChain()))
    assert isinstance(stage_config(other).scene.density, MarkovChain)


def test_a_run_that_stops_early_is_complete_and_is_what_a_whole_one_was_by_then(config, state, prompted):
    short = with_overrides(config, {"reconstruction.start": 0.5})
    assert (config.distilled_iterations, short.distilled_iterations) == (4, 2)
    stopped = iterate(state, prompted, Distillation(config), parts=2, stop_at=2)
    assert stopped.iterations == 2 and not stopped.interrupted
    broken = iterate(state, prompted, Distillation(config), parts=2, on_iteration=lambda done, *_: done == 2)
    assert broken.interrupted
    np.testing.assert_array_equal(stopped.object.positions, broken.object.positions)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("start", 0, "reconstruction.start is 0"),
        ("start", 1, "between 0 and 1"),
        ("rings", [], "at least one ring"),
        ("rings", [[180, 3]], "at least one ring"),
        ("rings", [[80, 0]], "at least one ring"),
        ("fov_radians", 4, "fov_radians is 4"),
        ("radius_share", 0, "radius_share is 0"),
        ("loss_weight", 0, "loss_weight is 0"),
        ("passes", 0, "passes is 0"),
        ("held_out", 0, "held_out is 0"),
        ("node_jumps", [50, 50], "node_jumps"),
        ("latest_node", 20, "node_jumps"),
    ],
)
def test_mistakes_are_named(name, value, message):
    with pytest.raises(UserError, match=message):
        with_overrides(PRESETS["toybox"], {f"reconstruction.{name}": value})
