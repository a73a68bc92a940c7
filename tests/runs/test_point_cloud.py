"""Point clouds for sentences, and runs that start from them."""

import json

import numpy as np
import pytest
from PIL import Image

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.point_clouds import read_cloud
from ge3d_jax.runs.asked import asked_by_file, asked_by_preset
from ge3d_jax.runs.object_request import ObjectRequest
from ge3d_jax.runs.point_cloud import point_cloud
from ge3d_jax.toybox import model_folder
from ge3d_jax.training.presets import PRESETS
from tests.scenes.start.point_e import small

PROMPT = "a red mushroom"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.save(tmp_path_factory.mktemp("point_e"))


def test_a_sentence_becomes_a_cloud_with_pictures(model, tmp_path):
    cloud, folder = point_cloud(PROMPT, model=model, out=tmp_path / "cloud")
    written = read_cloud(folder / "cloud.ply")
    assert np.array_equal(written.positions, cloud.positions) and len(cloud.positions) == 32
    np.testing.assert_allclose(written.colors, cloud.colors, atol=1e-6)
    assert Image.open(folder / "views.png").width > 800
    assert "<html" in (folder / "viewer.html").read_text()
    told = json.loads((folder / "config.json").read_text())
    assert told["prompt"] == PROMPT and told["start"]["model"] == str(model)
    # Runs start from the file unchanged.
    start = asked_by_preset("toybox", guidance=None, density=None, start=folder / "cloud.ply", overrides=None)
    splats = start.settings.scene.from_file()
    np.testing.assert_allclose(splats.positions, cloud.positions, atol=1e-6)


def test_what_cannot_be_made_is_told_first(model, tmp_path):
    for given, message in (
        ({"prompt": "a red elephant", "model": model}, '"elephant"'),
        ({"prompt": PROMPT, "model": model, "seed": -1}, "-1"),
        ({"prompt": PROMPT, "model": tmp_path}, "put base_40m_textvec.pt and upsample_40m.pt there"),
    ):
        with pytest.raises(UserError, match=message):
            point_cloud(**given, out=tmp_path / "cloud")
    assert not (tmp_path / "cloud").exists()


def _request(model, tmp_path, **overrides):
    asked = asked_by_preset(
        "toybox",
        guidance=None,
        density=None,
        start="point_e",
        overrides={"scene.start.model": str(model), **overrides},
    )
    return asked.but(prompt=PROMPT), tmp_path / "run"


def test_a_run_begins_with_point_e_s_cloud_of_its_prompt_or_of_its_own(model, tmp_path):
    asked, out = _request(model, tmp_path)
    request = ObjectRequest.checked(asked, model_folder(), out=out)
    assert request.started is None and request.description["start"] == "point_e"
    assert request.description["settings"]["scene"]["start"]["kind"] == "point_e"
    asked, out = _request(model, tmp_path, **{"scene.start.prompt": "a red elephant"})
    with pytest.raises(UserError, match='"elephant"'):
        ObjectRequest.checked(asked, model_folder(), out=out)
    asked, out = _request(tmp_path, tmp_path)
    with pytest.raises(UserError, match="put base_40m_textvec.pt .*--start=ball"):
        ObjectRequest.checked(asked, model_folder(), out=out)


def test_a_saved_run_tells_its_start(model, tmp_path):
    asked, out = _request(model, tmp_path)
    request = ObjectRequest.checked(asked, model_folder(), out=out)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(request.description))
    again = asked_by_file(file, overrides=None)
    assert again.settings == request.settings and again.start == "point_e"
    ball = asked_by_file(file, start="ball", overrides=None).settings.scene.start
    assert ball == PRESETS["toybox_ball"].scene.start and ball.count == 6000
