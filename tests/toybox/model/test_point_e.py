"""Training of the small Point-E: drawn clouds, losses, and resuming."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.progress import Progress

from ge3d_jax.diffusion.weights.clip import load_text_tower
from ge3d_jax.formats.point_clouds import PointCloud
from ge3d_jax.scenes.start.point_e.networks import BaseConfig, UpsamplerConfig, parameter_shapes
from ge3d_jax.scenes.start.point_e.start import BUNDLED_SIZE, in_world_axes
from ge3d_jax.toybox import model_folder
from ge3d_jax.toybox.model import point_e, point_e_recipe
from ge3d_jax.toybox.model.point_e_recipe import (
    Recipe,
    chamfer,
    evaluate,
    recognized_color,
    recognized_kind,
    train,
)
from ge3d_jax.toybox.world.captions import parse
from ge3d_jax.toybox.world.objects import COLORS, KINDS
from ge3d_jax.toybox.world.render import distance_to
from ge3d_jax.toybox.world.surfaces import Surface

BASE = BaseConfig(width=16, layers=1, heads=2, points=24, text_features=64)
UPSAMPLER = UpsamplerConfig(
    width=16, layers=1, heads=2, points=40, given_points=24, grid_tokens=1, grid_channels=8
)


@pytest.fixture(scope="module")
def surfaces():
    """Trivial points of all kinds, each kind around its own center, which take no time to compute."""
    rng = np.random.default_rng(0)
    count = len(KINDS)
    positions = rng.normal(size=(count, 64, 3)).astype(np.float32) * 0.02
    positions += 0.4 * rng.uniform(-1, 1, (count, 1, 3)).astype(np.float32)
    primary = (np.arange(64) < 40).astype(np.float32) * np.ones((count, 1), np.float32)
    return Surface(positions, primary, 1 - primary, np.zeros((count, 64, 3), np.float32))


@pytest.fixture(scope="module")
def tower():
    return load_text_tower(model_folder())


@pytest.fixture(scope="module")
def data(surfaces, tower):
    return jax.device_put(point_e.make_data(surfaces, tower))


def test_clouds_go_with_their_sentences(data, surfaces, tower):
    clouds, sentences = point_e.draw_clouds(jax.random.key(0), data, 64, 16)
    assert clouds.shape == (64, 16, 6) and sentences.ends.shape == (64,)
    texts = [
        tower.tokenizer.decode(ids[1:end].tolist())
        for ids, end in zip(np.asarray(sentences.ids), np.asarray(sentences.ends), strict=True)
    ]
    told = [(one.kind, one.color, one.second_color) for one in map(parse, texts)]
    assert len({kind for kind, _, _ in told}) > 10
    assert 0.25 < np.mean([second is None for _, _, second in told]) < 0.75
    for cloud, (kind, color, second) in zip(np.asarray(clouds), told, strict=True):
        own = surfaces.positions[list(KINDS).index(kind)]
        place = np.abs(cloud[:, None, :3] - own).max(axis=-1).argmin(axis=1)
        np.testing.assert_allclose(cloud[:, :3], own[place], atol=1e-6)
        paints = [COLORS[color], COLORS[second or KINDS[kind].part_color]]
        expected = 255 * np.asarray(paints)[(place >= 40).astype(int)]
        np.testing.assert_allclose(cloud[:, 3:], expected, atol=1e-3)


def test_the_duck_s_beak_points_to_x_again():
    beak = np.array([[0.73, 0.0, 0.17], [0.1, 0.3, -0.2]], np.float32)
    there = point_e.to_point_e_axes(beak)
    # Point-E's clouds face -y and lie within half a meter.
    np.testing.assert_allclose(there[0], [0.0, -0.365, 0.085], atol=1e-6)
    cloud = PointCloud(there, np.zeros((2, 3), np.float32))
    back = in_world_axes(cloud, mirrored=False, lift=0.0, size=BUNDLED_SIZE)
    np.testing.assert_allclose(back.positions, beak, atol=1e-6)
    assert np.abs(distance_to("duck", jnp.asarray(back.positions[:1]))) < 0.02


def test_the_loss_is_that_of_the_velocity():
    clean = jax.random.normal(jax.random.key(0), (6, 50, 6))
    signal = jnp.asarray(point_e.alphas_cumprod("cosine"), jnp.float32)
    times = []

    def predict(seen, at):
        times.append(np.asarray(at))
        kept = signal[at][:, None, None]
        noise = (seen - jnp.sqrt(kept) * clean) / jnp.sqrt(1 - kept)
        return jnp.concatenate([jnp.sqrt(kept) * noise - jnp.sqrt(1 - kept) * clean, seen], axis=-1)

    assert float(point_e._velocity_loss(predict, signal, jax.random.key(1), clean)) < 1e-4
    # One time from each sixth of the range.
    assert np.array_equal(np.floor(times[0] / 1024 * 6), np.arange(6))
    # Noise and clouds have unit variance here, and so does their mixture.
    nothing = point_e._velocity_loss(lambda seen, at: jnp.zeros_like(seen), signal, jax.random.key(1), clean)
    assert float(nothing) == pytest.approx(1.0, abs=0.1)


def test_the_sentence_reaches_the_base_network(data, tower):
    state = {
        "network": jax.tree.map(
            lambda leaf: 0.2 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
            parameter_shapes(BASE),
        ),
        "text": tower.parameters,
    }
    loss = partial(
        point_e.cloud_loss, config=BASE, text=tower.module, key=jax.random.key(3), clouds=8, points=24
    )
    gradients = jax.grad(lambda parameters: loss(parameters, data=data))(state)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients["network"]["clip_embed"]))
    assert np.abs(gradients["text"]["text_model"]["final_layer_norm"]["scale"]).max() > 0


def test_a_cloud_is_recognized_by_the_nearest_true_one(surfaces):
    kind = list(KINDS)[5]
    # The first 40 points of each kind have the object's own color, the others that of its part.
    colors = np.tile(np.float32(COLORS["green"]), (64, 1))
    colors[40:] = COLORS[KINDS[kind].part_color]
    cloud = PointCloud(surfaces.positions[5] + 0.0001, colors + 0.05)
    assert recognized_kind(cloud, surfaces) == kind
    assert recognized_color(cloud, surfaces, kind) == "green"
    # What has the part's color everywhere is an object in that color.
    all_alike = PointCloud(cloud.positions, colors[40] + 0 * colors)
    assert recognized_color(all_alike, surfaces, kind) == KINDS[kind].part_color
    first, second = np.zeros((1, 3)), np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 1.0]])
    assert chamfer(first, second) == pytest.approx(1 + (5 + 1) / 2)


def test_training_writes_a_model_and_goes_on_where_it_stopped(tmp_path, surfaces):
    small = Recipe(
        base_steps=4,
        base_clouds=2,
        upsampler_steps=2,
        upsampler_clouds=2,
        save_every=2,
        base=BASE,
        upsampler=UPSAMPLER,
    )
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        fields = {field: getattr(surfaces, field) for field in ("positions", "primary", "secondary", "fixed")}
        np.savez(tmp_path / name / "surfaces.npz", **fields)
    model = train(small, tmp_path / "whole", install=tmp_path / "installed")
    assert json.loads((model / "config.json").read_text())["base"]["points"] == 24

    class Stopped(Exception):
        pass

    class StoppingBar(Progress):
        """Ends the training when the base network's fourth step is reported, before it is saved."""

        steps = 0

        def update(self, task_id, **fields):
            super().update(task_id, **fields)
            self.steps += 1
            if self.steps == 4:
                raise Stopped

    with pytest.raises(Stopped):
        train(small, tmp_path / "parts", bar=StoppingBar(disable=True))
    again = train(small, tmp_path / "parts")
    steps = [int(line.split()[0]) for line in (tmp_path / "parts/base.loss.txt").read_text().splitlines()]
    # The step whose report ended the training is not in the log.
    assert steps == [1, 2, 3, 3, 4]
    text = "text_encoder/model.safetensors"
    assert (model / text).read_bytes() != (model_folder() / text).read_bytes()
    for name in ("base.safetensors", "upsampler.safetensors", "config.json", text):
        content = (model / name).read_bytes()
        assert (again / name).read_bytes() == content and (
            tmp_path / "installed" / name
        ).read_bytes() == content
    assert point_e_recipe.SHOWN_COLORS == ("red", "green", "blue", "yellow")
    found = evaluate(model, tmp_path / "whole", kinds=["duck"])
    assert (tmp_path / "whole/clouds.png").is_file() and len(found["clouds"]) == 4
    assert found["clouds"][0]["prompt"] == "a red duck" and 0 <= found["kind"] <= 1
    assert found["chamfer"] == pytest.approx(np.mean([one["chamfer"] for one in found["clouds"]]))


def test_the_small_point_e_is_small():
    names = ("base", "upsampler")
    sizes = [getattr(Recipe(), name) for name in names]
    count = sum(leaf.size for size in sizes for leaf in jax.tree.leaves(parameter_shapes(size)))
    # Stored as float16, next to the text encoder and its tokenizer, 0.6 MB.
    assert 2 * count < 2.4e6
    assert sizes[1].given_points == sizes[0].points
