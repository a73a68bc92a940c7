"""The README's example of a custom loss runs as described."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import ge3d_jax
from ge3d_jax.formats.ply import load_ply
from ge3d_jax.guidance.losses import LOSSES
from tests.tiny_model import IMAGE_SIZE, write_tiny_model

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "docs" / "own_loss.py"


@pytest.fixture
def registered():
    spec = importlib.util.spec_from_file_location("own_loss", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del LOSSES["one_step"]


def test_the_readme_shows_it():
    # Imports are not counted.
    assert FILE.read_text() in (ROOT / "README.md").read_text()
    loss = FILE.read_text().split("\n\n\n", 1)[1]
    assert len([line for line in loss.splitlines() if line]) <= 20


def test_it_moves_the_splats_and_has_settings(registered, tmp_path):
    write_tiny_model(tmp_path / "model")
    small = {"iterations": 2, "views": 1, "image_size": IMAGE_SIZE, "start.kind": "ball", "start.count": 50}
    result = ge3d_jax.generate(
        "a red mushroom",
        model=tmp_path / "model",
        out=tmp_path / "out",
        guidance="one_step",
        overrides=small | {"guidance.scale": 5},
        preview_every=0,
        progress=False,
    )
    norms = [line["gradient_norm"] for line in result.metrics]
    assert np.all(np.isfinite(norms)) and min(norms) > 0
    settings = json.loads((result.folder / "config.json").read_text())["settings"]
    assert settings["guidance"] == {"kind": "one_step", "scale": 5.0}
    assert load_ply(result.folder / "object.ply").capacity == 50
