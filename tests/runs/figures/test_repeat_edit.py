"""Figure 2: the edits, their metrics, and a figure that was stopped and resumed."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.denoiser import Denoiser
from ge3d_jax.diffusion.pipeline import encode_text
from ge3d_jax.diffusion.schedule import add_noise, predict_x0
from ge3d_jax.diffusion.weights.checkpoint import load_model
from ge3d_jax.guidance.base import DrawKeys, Progress
from ge3d_jax.guidance.trajectories import sample_time_nodes
from ge3d_jax.metrics.colors import saturation
from ge3d_jax.runs.figures import repeat_edit, repeated_edits
from ge3d_jax.runs.figures.base import Record, Work, write_made
from ge3d_jax.runs.figures.repeat_edit import SIZES
from ge3d_jax.runs.figures.repeated_edits import Settings, Task
from ge3d_jax.runs.request import check_prompt
from ge3d_jax.toybox import MODELS, model_folder
from tests.runs.figures.observed import Stopped, files_of, stopping
from tests.tiny_model import IMAGE_SIZE

TASKS = (Task("a red mushroom", "a blue mushroom", 30.0), Task("a red mushroom", "a green mushroom", 0.0))
SMALL = Settings(preset="toybox64", tasks=TASKS, seeds=(0, 1), edits=3, shown=(1, 3), node_counts=(1, 2))


@pytest.fixture(scope="module")
def model(tiny_place):
    return load_model(tiny_place)


@pytest.fixture(scope="module")
def gallery(tiny_gallery):
    """A gallery of pictures as small as the tiny model's."""
    whole = tiny_gallery
    kinds, views, edge, _, layers = whole.layers.shape
    tiles = whole.layers.reshape(kinds, views, IMAGE_SIZE, edge // IMAGE_SIZE, IMAGE_SIZE, -1, layers)
    return dataclasses.replace(whole, layers=tiles.mean(axis=(3, 5)).round().astype(np.uint8))


@pytest.fixture(scope="module")
def pictures(model):
    return repeated_edits.draw_pictures(model, SMALL, use_overhead=False, is_toybox=True)


@pytest.fixture(scope="module")
def edited(model, pictures):
    """The latents before and after each edit, by the name of the method."""
    latents = jax.random.normal(jax.random.key(5), (2, IMAGE_SIZE // 4, IMAGE_SIZE // 4, 4))
    return latents, {
        way.name: repeated_edits.edited_latents(model, latents, pictures.text, way, seed=3, edits=3)
        for way in repeated_edits.ways(SMALL)
    }


def drawn_for(loss, latents, k, seed=3):
    key = jax.random.key(seed)
    times, noise = jax.random.split(jax.random.fold_in(key, k))
    return loss.draw(DrawKeys(times=times, noise=noise, run=key), Progress(k, 3), latents.shape)


@pytest.mark.parametrize(("name", "scale"), [("SDS, scale 100", 101.0), ("SDS, scale 7.5", 8.5)])
def test_an_edit_by_sds_puts_what_it_predicts_in_the_picture_s_place(model, pictures, edited, name, scale):
    latents, found = edited
    (way,) = [way for way in repeated_edits.ways(SMALL) if way.name == name]
    before = latents
    for k in range(2):
        drawn = drawn_for(way.loss, latents, k)
        times, noise = drawn.per_view["times"], drawn.per_view["noise"]
        x = add_noise(model.schedule, before, noise, times)
        texts = pictures.text
        empty, wanted = Denoiser(model, model.schedule, 2).predict_for(
            x, times, texts.negative, texts.positive
        )
        clean = predict_x0(model.schedule, x, empty + scale * (wanted - empty), times)
        np.testing.assert_allclose(found[name][k], clean, rtol=2e-3, atol=2e-3)
        before = found[name][k]


def test_an_edit_by_ge3d_puts_the_mean_of_its_nodes_wishes_there(model, pictures, edited):
    latents, found = edited
    for way, count in zip(repeated_edits.ways(SMALL)[2:], (1, 2), strict=True):
        assert way.name == f"GE3D, {count} node{'s' * (count > 1)}" and way.loss.nodes.count == count
        drawn = drawn_for(way.loss, latents, 0)
        noised, denoised = way.loss.trajectories(
            latents, pictures.text, drawn, Denoiser(model, model.schedule, 2)
        )
        weights = way.loss.weights(Progress(0, 3), drawn.shared["active"])
        wanted = denoised[0] if count == 1 else None
        if count == 2:
            differences = jnp.stack([latents - denoised[0], noised[1] - denoised[1]])
            wanted = latents - jnp.tensordot(weights, differences, 1)
        np.testing.assert_allclose(found[way.name][0], wanted, rtol=2e-3, atol=2e-3)


def test_each_target_is_told_as_its_camera_sees_it(model):
    tasks = [
        Task("a red mushroom", f"a {color} mushroom", azimuth)
        for color, azimuth in (("blue", 0.0), ("green", 180.0), ("pink", -90.0), ("red", None))
    ]
    text = repeated_edits.target_texts(model, tasks, negative_prompt="a grey gift", use_overhead=False)
    said = [
        "The front view of a blue mushroom",
        "The back view of a green mushroom",
        "The side view of a pink mushroom",
        "a red mushroom",
    ]
    np.testing.assert_allclose(text.positive, encode_text(model, said), atol=1e-5)
    np.testing.assert_allclose(text.negative, encode_text(model, ["a grey gift"])[0], atol=1e-5)
    # The camera is 20° above the horizon, where a sixth of the text embedding names the overhead view.
    above = repeated_edits.target_texts(model, tasks[:1], negative_prompt="", use_overhead=True).positive
    overhead = encode_text(model, ["The overhead view of a blue mushroom"])
    np.testing.assert_allclose(above, text.positive[:1] * 5 / 6 + overhead / 6, atol=1e-5)


def test_another_seed_edits_otherwise(model, pictures, edited):
    latents, found = edited
    way = repeated_edits.ways(SMALL)[0]
    other = repeated_edits.edited_latents(model, latents, pictures.text, way, seed=4, edits=3)
    assert np.abs(other - found[way.name]).max() > 1e-2


@pytest.mark.parametrize("size", SIZES)
def test_every_number_of_nodes_goes_equally_far(size):
    settings = SIZES[size]
    for way in repeated_edits.ways(settings)[len(settings.sds_scales) :]:
        for k, farthest in ((0, settings.farthest[0]), (settings.edits, settings.farthest[1])):
            keys = jax.random.split(jax.random.key(0), 300)
            progress = Progress(k, settings.edits)
            times, active = jax.vmap(
                lambda key, progress=progress, way=way: sample_time_nodes(key, progress, way.loss.nodes)
            )(keys)
            assert (active == way.loss.nodes.count).all()
            assert 0.7 * farthest < times[:, -1].min() < times[:, -1].max() <= farthest
            if way.loss.nodes.count == 1:
                assert times[:, -1].min() < 0.8 * farthest and times[:, -1].max() > 0.95 * farthest
            assert not (np.diff(times, axis=1) <= 0).any()


def test_the_truth_is_right_in_every_respect_and_the_source_is_not(pictures, gallery):
    truth = repeated_edits.measure_pictures(pictures.truths, pictures.truths, TASKS, gallery)
    best = {"psnr": 99.0, "recognized": 1.0, "saturation": 1.0, "contrast": 1.0}
    assert truth == {name: [value] * 2 for name, value in best.items()}
    source = repeated_edits.measure_pictures(pictures.sources, pictures.truths, TASKS, gallery)
    assert source["recognized"] == [0.0, 0.0] and max(source["psnr"]) < 25
    for index, decibels in enumerate(source["psnr"]):
        error = np.mean((pictures.sources[index] - pictures.truths[index]) ** 2)
        assert 10 ** (-decibels / 10) == pytest.approx(error, rel=1e-3)
    grey = pictures.truths.mean(axis=-1, keepdims=True)
    paler = repeated_edits.measure_pictures(
        grey + (pictures.truths - grey) / 2, pictures.truths, TASKS, gallery
    )
    np.testing.assert_allclose(paler["saturation"], 0.5, rtol=1e-4)
    flatter = repeated_edits.measure_pictures(0.4 + pictures.truths / 5, pictures.truths, TASKS, gallery)
    np.testing.assert_allclose(flatter["contrast"], 0.2, rtol=1e-4)
    without = repeated_edits.measure_without_truth(0.4 + pictures.sources / 5, pictures.sources)
    np.testing.assert_allclose(list(without.values()), 0.2, rtol=1e-4)


def test_means_are_over_pictures_and_seeds():
    records = [
        Record({"psnr": [[10.0, 20.0], [30.0, 50.0]]}),
        Record({"psnr": [[12.0, 22.0], [30.0, 50.0]]}),
    ]
    before, after = repeat_edit.mean_rows("a way", records, TASKS)
    assert (before["edits"], before["psnr"], after["edits"], after["psnr"]) == (0, 16.0, 1, 40.0)
    # For two pictures, the standard error of the mean is half their difference.
    assert after["psnr_error"] == pytest.approx(10.0, rel=0.05)
    text = repeat_edit.table([before, after], (1,))
    assert "| the picture as it was | 16.0 ± " in text and "| a way, after 1 edit | 40.0 ± " in text


def test_a_stopped_figure_goes_on_to_the_same_files(tiny_place, gallery, tmp_path):
    def make(folder, report):
        work = Work("small", folder, str(tiny_place), report)
        made = repeat_edit.make_of(SMALL, work, gallery=gallery)
        write_made(made, name="repeat_edit", command="", out=folder / "out")
        return files_of(folder / "out")

    with pytest.raises(Stopped):
        make(tmp_path / "stopped", stopping(4))
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "stopped").glob("*.npz")}
    assert len(kept) == 3
    told = []
    again = make(tmp_path / "stopped", told.append)
    assert again == make(tmp_path / "whole", told.append)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept

    rows = json.loads(again["repeat_edit.json"])["rows"]
    assert [(row["way"], row["edits"]) for row in rows[:5]] == [
        *(("SDS, scale 100", edits) for edits in range(4)),
        ("SDS, scale 7.5", 0),
    ]
    assert len(rows) == 4 * 4 and {row["psnr"] for row in rows if row["edits"] == 0} == {rows[0]["psnr"]}
    assert set(again) == {
        "repeat_edit.json", "repeat_edit.csv", "repeat_edit.md", "repeat_edit.png", "repeat_edit_curves.png"
    }  # fmt: skip


def test_words_that_the_model_does_not_know_are_refused_first(tiny_place, gallery, tmp_path):
    wrong = dataclasses.replace(SMALL, tasks=(Task("a red mushroom", "a blue dragon", 0.0),))
    with pytest.raises(UserError, match="dragon"):
        repeat_edit.make_of(wrong, Work("small", tmp_path, str(tiny_place)), gallery=gallery)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", SIZES)
def test_settings_can_be_used(size):
    settings = SIZES[size]
    assert settings.shown[-1] == settings.edits
    assert all(way.loss.latest_time < 1000 for way in repeated_edits.ways(settings))
    if settings.preset in MODELS:
        for task in settings.tasks:
            check_prompt(task.source, model_folder(settings.preset))
            check_prompt(task.target, model_folder(settings.preset))
            assert task.azimuth_degrees is not None


def test_without_a_world_the_model_draws_the_sources(model):
    settings = dataclasses.replace(SMALL, tasks=(Task("a red mushroom", "a blue mushroom"),))
    drawn = repeated_edits.draw_pictures(model, settings, use_overhead=False, is_toybox=False)
    assert drawn.truths is None and drawn.sources.shape == (1, IMAGE_SIZE, IMAGE_SIZE, 3)
    way = repeated_edits.ways(settings)[0]
    record = repeated_edits.edit_and_measure(model, drawn, way, settings, seed=0, gallery=None)
    assert set(record.numbers) == {"saturation", "contrast"} and record.numbers["saturation"][0] == [1.0]
    # The pictures are those after the displayed numbers of edits.
    told = record.numbers["saturation"]
    ratios = [
        saturation(shown[0] / 255.0) / saturation(drawn.sources[0]) for shown in record.arrays["pictures"]
    ]
    assert ratios == pytest.approx([told[1][0], told[3][0]], rel=3e-3)
    assert len({round(ratio[0], 2) for ratio in told}) == 4
    sheet = repeat_edit.sheet(drawn, {way.name: record}, settings)
    # The source and two numbers of edits, without a ground truth.
    assert 3 * 128 < sheet.shape[1] < 4 * 128
    assert repeat_edit.curves(repeat_edit.mean_rows(way.name, [record], settings.tasks)).shape[2] == 3
