"""Evaluation of objects with known metrics: the ground truth itself, one with two faces, a missing one."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.metrics.likeness import compare_views, true_views
from ge3d_jax.metrics.recognition import build_gallery
from ge3d_jax.runs.evaluate import likeness_cameras, object_pictures
from ge3d_jax.runs.judged import Judged, see, see_truths
from ge3d_jax.runs.judging import METRICS, judge_group, judge_object
from ge3d_jax.splatting.gaussians import make_gaussians
from ge3d_jax.toybox.world.captions import parse
from ge3d_jax.toybox.world.render import render_sentence
from ge3d_jax.viewer.turntable import Viewpoint, cameras_around, turntable_azimuths

DUCK, MUSHROOM = "a green duck", "a red mushroom"


@pytest.fixture(scope="module")
def gallery():
    return build_gallery(("duck", "mushroom"), azimuths=8, polar_degrees=(70.0,))


@pytest.fixture(scope="module")
def truths():
    cameras = cameras_around(turntable_azimuths(8), Viewpoint(size=64))
    prompts = (DUCK, "a blue duck", MUSHROOM)
    return {prompt: true_views(parse(prompt), cameras) for prompt in prompts}


@pytest.fixture(scope="module")
def ball():
    random = np.random.default_rng(0)
    places = random.normal(size=(200, 3))
    places *= 0.5 / np.linalg.norm(places, axis=1, keepdims=True)
    reds = np.tile((0.8, 0.1, 0.1), (200, 1))
    return make_gaussians(places, reds, np.full((200, 3), 0.05), np.full(200, 0.9), capacity=200)


def changed(views, order):
    """The same views in a different order."""
    fields = {name: getattr(views, name)[order] for name in ("pictures", "alphas", "depths")}
    return replace(views, **fields)


def test_the_truth_itself(gallery, truths, ball):
    found = judge_object(Judged(DUCK, 0, ball, truths[DUCK], truths[DUCK], 12.5), gallery)
    assert list(found) == [name for name, metric in METRICS.items() if metric.of_object]
    assert {
        name: found[name] for name in ("views_right", "one_front", "fronts", "multi_faced", "failed")
    } == {
        "views_right": 1.0,
        "one_front": 1.0,
        "fronts": 1,
        "multi_faced": 0.0,
        "failed": 0.0,
    }
    # PSNR is capped, because files cannot store infinity.
    assert found["psnr"] == 99.0 and found["ssim"] == pytest.approx(1.0)
    assert found["overlap"] == found["sharpness"] == 1.0 and found["chamfer"] == found["depth"] == 0.0
    assert found["saturation"] == found["contrast"] == 1.0 and found["seconds"] == 12.5


def test_a_face_in_front_and_one_behind(gallery, truths, ball):
    duck = truths[DUCK]
    janus = Judged(DUCK, 0, ball, changed(duck, [0, 1, 2, 3, 0, 5, 6, 7]), duck)
    found = judge_object(janus, gallery)
    assert (found["multi_faced"], found["fronts"], found["one_front"]) == (1.0, 2, 0.0)
    assert found["views_right"] == 1.0 and found["failed"] == 0.0 and found["overlap"] < 1
    faceless = Judged(DUCK, 0, ball, changed(duck, [4, 1, 2, 3, 4, 5, 6, 7]), duck)
    found = judge_object(faceless, gallery)
    assert (found["multi_faced"], found["fronts"], found["one_front"]) == (0.0, 0, 0.0)


def test_a_kind_without_a_front_has_no_faces_to_count(gallery, truths, ball):
    found = judge_object(Judged(MUSHROOM, 0, ball, truths[MUSHROOM], truths[MUSHROOM]), gallery)
    assert found["multi_faced"] is found["fronts"] is found["one_front"] is found["seconds"] is None
    assert found["failed"] == 0.0


def test_failed_is_what_is_recognized_from_fewer_than_half_of_its_sides(gallery, truths, ball):
    duck, blue = truths[DUCK], truths["a blue duck"]

    def failed(wrong):
        pictures, alphas = duck.pictures.copy(), duck.alphas
        pictures[:wrong] = blue.pictures[:wrong]
        return judge_object(
            Judged(DUCK, 0, ball, replace(duck, pictures=pictures, alphas=alphas), duck), gallery
        )

    half = failed(4)
    assert (half["views_right"], half["failed"]) == (0.5, 0.0)
    assert (failed(5)["views_right"], failed(5)["failed"]) == (0.375, 1.0)


def test_an_object_that_is_not_there_has_failed_and_is_a_size_away(gallery, truths, ball):
    duck = truths[DUCK]
    nothing = replace(
        duck,
        pictures=np.ones_like(duck.pictures),
        alphas=np.zeros_like(duck.alphas),
        points=np.zeros((0, 3)),
    )
    found = judge_object(Judged(DUCK, 0, ball, nothing, duck), gallery)
    assert found["failed"] == found["chamfer"] == found["depth"] == 1.0 and found["overlap"] == 0.0
    assert found["saturation"] is None and found["contrast"] is None
    # A missing object counts as at least as far away as any visible one.
    far = replace(duck, depths=duck.depths + 9.0, points=duck.points + 9.0)
    found = judge_object(Judged(DUCK, 0, ball, far, duck), gallery, metrics=["chamfer", "depth"])
    assert found == {"chamfer": 1.0, "depth": 1.0}
    # An object with correct pictures also counts as missing if no pixel is covered by more than half.
    faint = replace(duck, alphas=np.minimum(duck.alphas, 0.5))
    assert judge_object(Judged(DUCK, 0, ball, faint, duck), gallery, metrics=["failed"]) == {"failed": 1.0}


def test_ratios_are_those_of_the_object_to_the_truth(gallery, truths, ball):
    duck = truths[DUCK]
    inside = duck.alphas[..., None]
    # Halfway to gray, with the same coverage.
    dull = replace(duck, pictures=0.5 * duck.pictures + 0.5 * (0.4 * inside + 1.0 - inside))
    found = judge_object(Judged(DUCK, 0, ball, dull, duck), gallery)
    assert found["saturation"] == pytest.approx(0.5, abs=0.01)
    assert found["contrast"] == pytest.approx(0.5, abs=0.01)
    # Its outline against white is nearly as sharp.
    assert found["sharpness"] < 0.97
    # Without color, its brightness is unchanged.
    gray = replace(duck, pictures=np.repeat(duck.pictures @ [[0.2126], [0.7152], [0.0722]], 3, axis=-1))
    found = judge_object(Judged(DUCK, 0, ball, gray, duck), gallery, metrics=["saturation", "contrast"])
    assert found == {"saturation": pytest.approx(0.0, abs=1e-5), "contrast": pytest.approx(1.0, abs=0.01)}


def test_of_every_number_it_is_known_which_is_better():
    by_direction = {}
    for name, metric in METRICS.items():
        by_direction.setdefault(metric.better, set()).add(name)
    assert by_direction["one"] == {"fronts", "sharpness", "saturation", "contrast"}
    assert by_direction[None] == {"brisque"}
    assert by_direction["lower"] == {
        *("multi_faced", "failed", "lpips", "chamfer", "depth", "tint", "specks", "seconds"),
        *("shrunken_fid", "shrunken_kid", "cmmd", "fid"),
    }


def test_only_what_was_asked_for(gallery, truths, ball):
    judged = Judged(DUCK, 0, ball, truths[DUCK], truths[DUCK])
    assert list(judge_object(judged, gallery, metrics=["overlap", "psnr"])) == ["psnr", "overlap"]
    assert list(judge_group([judged], metrics=["shrunken_kid"])) == ["shrunken_kid", "shrunken_kid_error"]
    for judge in (
        lambda: judge_object(judged, gallery, metrics=["beauty"]),
        lambda: judge_group([], metrics=["beauty"]),
    ):
        with pytest.raises(UserError, match="no metric 'beauty'; use some of views_right"):
            judge()


def test_diversity_is_within_prompts(truths, ball):
    def made(prompt, seed, views):
        return Judged(prompt, seed, ball, views, truths[prompt])

    duck, blue, mushroom = truths[DUCK], truths["a blue duck"], truths[MUSHROOM]
    objects = [
        made(DUCK, 0, duck),
        made(MUSHROOM, 0, mushroom),
        made(DUCK, 1, blue),
        made(MUSHROOM, 1, mushroom),
    ]
    found = judge_group(objects)
    # The ducks differ only in color, and the mushrooms not at all.
    assert found["shape_diversity"] == 0.0 and 0.05 < found["texture_diversity"] < 0.5
    ducks = judge_group([objects[0], objects[2]])
    assert found["texture_diversity"] == pytest.approx(ducks["texture_diversity"] / 2)
    assert found["texture_diversity_error"] > 0 and ducks["texture_diversity_error"] is None
    single = judge_group(objects[:2])
    assert single["shape_diversity"] is single["texture_diversity"] is single["shape_diversity_error"] is None


def test_sets_that_are_the_truth_have_no_distance_from_it(truths, ball):
    right = [Judged(prompt, 0, ball, views, views) for prompt, views in truths.items()]
    found = judge_group(right)
    # Pictures are rounded to eight bits, as in files.
    assert found["shrunken_fid"] == pytest.approx(0.0, abs=1e-3) and found["shrunken_kid"] < 0.0
    assert found["shrunken_fid_error"] is None
    wrong = [replace(one, views=truths[MUSHROOM]) for one in right]
    far = judge_group(wrong)
    assert (
        far["shrunken_fid"] > 10 * abs(found["shrunken_fid"]) and far["shrunken_kid"] > found["shrunken_kid"]
    )
    # Four prompts give a standard error, even if some of them are alike.
    more = [*wrong, replace(wrong[0], prompt="a white duck")]
    assert judge_group(more)["shrunken_fid_error"] > 0


def test_an_object_is_seen_as_the_evaluation_sees_it(ball, tmp_path, monkeypatch):
    truths = see_truths([MUSHROOM, "a blue mushroom"], tmp_path / "ge3d_jax")
    truth, blue = truths.values()
    assert truth.pictures.shape == (8, 128, 128, 3)
    judged = see(MUSHROOM, 3, ball, 7.0, truth=truth)
    assert (judged.prompt, judged.seed, judged.seconds) == (MUSHROOM, 3, 7.0)
    np.testing.assert_allclose(judged.pictures, object_pictures(ball), atol=0.6 / 255)
    assert judged.pictures.dtype == np.float32
    np.testing.assert_allclose(255 * judged.pictures, np.round(255 * judged.pictures), atol=1e-4)
    likeness = compare_views(judged.views, truth, ball, parse(MUSHROOM))
    assert judge_object(judged, None, metrics=list(likeness)) == likeness
    # The ground truth is seen from the evaluation's cameras, here the one behind.
    camera = jax.tree.map(lambda each: each[4], likeness_cameras())
    expected = render_sentence(parse(MUSHROOM), camera, background=np.ones(3))
    np.testing.assert_allclose(truth.pictures[4], expected, atol=1e-6)
    # Both colors share one file, whose views are not traced again.
    assert len(list((tmp_path / "ge3d_jax").iterdir())) == 1 and (blue.pictures != truth.pictures).any()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    again = see(MUSHROOM, 3, ball)
    for name in ("pictures", "alphas", "depths", "points"):
        np.testing.assert_array_equal(getattr(again.truth, name), getattr(truth, name))
    assert again.seconds is None
    with pytest.raises(UserError, match="not a sentence"):
        see_truths(["a dragon"])
