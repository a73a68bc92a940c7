"""Figure 15: the network's clean predictions, one camera for all observations, and the gallery's rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.diffusion.pipeline import decode_latents
from ge3d_jax.diffusion.schedule import ddim_step, noise_schedule_from_config, predict_x0
from ge3d_jax.diffusion.weights.checkpoint import load_model
from ge3d_jax.guidance.base import Progress
from ge3d_jax.runs.figures import node_gallery
from ge3d_jax.runs.figures.base import Record, Work, write_made
from ge3d_jax.runs.figures.node_gallery import SIZES, Settings
from ge3d_jax.runs.figures.node_trajectories import clean_predictions, find_trajectories
from ge3d_jax.splatting.cameras import camera_center
from ge3d_jax.training.distillation import Distillation, Prompted, begin, prompt_embeddings
from ge3d_jax.training.presets import configured
from ge3d_jax.viewer.sheet import to_uint8
from tests.runs.figures.observed import PROMPT, SMALL, Stopped, files_of, stopping
from tests.tiny_model import IMAGE_SIZE

SETTINGS = Settings("toybox", PROMPT, seed=3, looks=2, azimuth_degrees=40.0, overrides=SMALL)


def test_neighboring_states_tell_what_the_network_said():
    schedule = noise_schedule_from_config(
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    )
    times = np.asarray([0, 60, 200, 470])
    keys = jax.random.split(jax.random.key(0), 4)
    noises = [jax.random.normal(key, (2, 3, 3, 4)) for key in keys]
    states, said = [noises[3]], []
    for index in range(3):
        now, then = times[index : index + 2]
        said.append(predict_x0(schedule, states[-1], noises[index], now))
        states.append(ddim_step(schedule, states[-1], noises[index], now, then))
    found = clean_predictions(schedule, np.asarray(states, np.float64), times)
    np.testing.assert_allclose(found, said, rtol=1e-3, atol=1e-3)
    # Denoising: the prediction at the upper state of each step.
    states, said = [noises[3]], []
    for index in range(3):
        now, then = times[3 - index], times[2 - index]
        said.append(predict_x0(schedule, states[-1], noises[index], now))
        states.append(ddim_step(schedule, states[-1], noises[index], now, then))
    found = clean_predictions(schedule, np.asarray(states[::-1], np.float64), times)
    np.testing.assert_allclose(found, said[::-1], rtol=1e-3, atol=1e-3)


def test_the_camera_stands_in_the_middle_of_those_of_the_run():
    camera = node_gallery.camera_of(configured("toybox64"), 90.0)
    x, y, z = np.asarray(camera_center(jax.tree.map(lambda leaf: leaf[0], camera)))
    assert (camera.width, camera.height) == (64, 64)
    polar = np.deg2rad(70)
    np.testing.assert_allclose([x, y, z], [0, 3.5 * np.sin(polar), 3.5 * np.cos(polar)], atol=1e-5)


@pytest.fixture(scope="module")
def made(tiny_place, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    lines = []
    work = Work("small", folder, str(tiny_place), lines.append)
    write_made(node_gallery.make_of(SETTINGS, work), name="node_gallery", command="", out=folder / "out")
    assert lines == ["iteration 1 of 4", "iteration 4 of 4"]
    return folder


def test_a_stopped_figure_goes_on_to_the_same_files(tiny_place, made, tmp_path):
    def make(report):
        result = node_gallery.make_of(SETTINGS, Work("small", tmp_path, str(tiny_place), report))
        write_made(result, name="node_gallery", command="", out=tmp_path / "out")

    with pytest.raises(Stopped):
        make(stopping(1))
    make(lambda line: None)
    assert files_of(tmp_path / "out") == files_of(made / "out")


def test_a_look_keeps_the_render_and_as_many_pictures_as_there_are_nodes(made):
    first, last = (dict(np.load(made / f"iteration-0000{done}.npz")) for done in (1, 4))
    edge = (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert first["noising"].shape == (2, *edge) and first["denoising"].shape == (3, *edge)
    # One jump remains at the end.
    assert last["noising"].shape == (1, *edge) and last["denoising"].shape == (2, *edge)
    assert first["render"].shape == last["render"].shape == edge
    # On a white background, regardless of the run's backgrounds.
    assert (first["render"][0, 0] > 240).all() and (last["render"][0, 0] > 240).all()


def test_a_look_decodes_what_the_network_takes_the_states_for(tiny_place):
    model = load_model(tiny_place)
    config = SETTINGS.run.config
    task = Distillation(config)
    context = Prompted(model, prompt_embeddings(config, model, PROMPT))
    state = begin(config, model, jax.random.key(0))
    drawn = task.draw(state, context)
    record = node_gallery.look(40.0, task, state, context, drawn)
    fixed = node_gallery.from_one_side(drawn, config, 40.0)
    found = find_trajectories(task, state, context, fixed)
    assert found.active == record.numbers["active"] == 2
    assert record.numbers["times"] == found.times.tolist() == [0, 89, 178]

    def decoded(latents):
        return to_uint8(np.asarray(decode_latents(model, jnp.asarray(latents, jnp.float32)))).astype(int)

    up, down = (
        clean_predictions(model.schedule, states[:, 0], found.times)
        for states in (found.noised, found.denoised)
    )
    for name, wanted in (("noising", up), ("denoising", np.concatenate([found.denoised[0], down]))):
        # Programs of different sizes round differently.
        assert np.abs(record.arrays[name] - decoded(wanted)).max() <= 1
    np.testing.assert_array_equal(record.arrays["render"], to_uint8(found.images[0]))
    np.testing.assert_allclose(found.differences[0], found.latents - found.denoised[0])
    np.testing.assert_allclose(found.differences[1], found.noised[1] - found.denoised[1])
    weights = config.guidance.weights(Progress(0, config.iterations), 2)
    np.testing.assert_allclose(found.weights, weights)


def test_rows_tell_how_near_to_the_truth_everything_is():
    truth = np.full((4, 4, 3), 100, np.uint8)
    half = np.full((4, 4, 3), 100 + 51, np.uint8)
    record = Record(
        {"active": 1, "times": [0, 60]},
        {"render": half, "noising": half[None], "denoising": np.stack([truth, half])},
    )
    render, lower, top = node_gallery.rows_of({7: record}, truth)
    # The error is a fifth of the range.
    assert render["render_psnr"] == lower["noising_psnr"] == top["denoising_psnr"] == pytest.approx(13.98)
    assert (
        lower["denoising_psnr"] == 99.0
        and top["noising_psnr"] is None
        and (top["node"], top["time"]) == (1, 60)
    )
    assert "| 7 | 60 | 14.0 dB | 14.0 dB | 99.0 dB |" in node_gallery.table([render, lower, top])
    assert "| 7 | 60 | – | – | – |" in node_gallery.table(node_gallery.rows_of({7: record}, None))


def test_the_gallery_has_a_row_for_each_node_of_each_way():
    def record(active, shade):
        own = np.full((96, 96, 3), shade, np.uint8)
        return Record(
            {"active": active, "times": list(range(0, 10 * active + 1, 10))},
            {"render": own, "noising": np.stack([own] * active), "denoising": np.stack([own] * (active + 1))},
        )

    records = {1: record(3, 10), 2: record(2, 20)}
    without = node_gallery.picture(records, None)
    # The rendering, three nodes up, four down; two observations.
    rows, columns = 1 + 3 + 4, 2
    assert without.shape[1] == columns * 102 + 6 and without.shape[0] % rows == 6
    height = without.shape[0] // rows
    lefts, tops = 54 + 102 * np.arange(columns), height // 2 - 10 + height * np.arange(rows)
    shades = without[np.ix_(tops, lefts)][..., 0]
    assert (shades[:, 0] == 10).all()
    # The second record has no third node up and no top node down.
    assert shades[:, 1].tolist() == [20, 20, 20, 255, 255, 20, 20, 20]
    beside = node_gallery.picture(records, np.full((96, 96, 3), 77, np.uint8))
    np.testing.assert_array_equal(beside[:, : 2 * 102], without[:, : 2 * 102])
    assert beside[height // 2 - 10, 54 + 2 * 102, 0] == 77 and beside[height + 40, 54 + 2 * 102, 0] == 255


@pytest.mark.parametrize("size", SIZES)
def test_settings_can_be_used(size):
    run = SIZES[size].run
    assert run.config.guidance.latest_time < 1000 and len(run.iterations) == SIZES[size].looks
    if size != "paper":
        run.check(None)
    truth = node_gallery.true_view(SIZES[size])
    assert (truth is None) == (size == "paper")
