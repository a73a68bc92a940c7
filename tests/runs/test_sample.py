"""Text-to-image sampling with a tiny random model: the pipeline's numbers, output files, invalid inputs."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.pipeline import decode_latents, encode_text
from ge3d_jax.diffusion.sampling import sample
from ge3d_jax.diffusion.weights.checkpoint import load_model
from ge3d_jax.runs import sample as sampling
from tests.tiny_model import IMAGE_SIZE, write_tiny_model

PROMPTS = ["a red mushroom", "a blue robot"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_tiny_model(folder)
    return folder


def test_step_by_step_gives_what_the_pipeline_gives(folder):
    model, key = load_model(folder), jax.random.key(5)
    text, negative = encode_text(model, ["a red mushroom", ""])
    steps = []
    picture = sampling.sample_picture(
        model,
        key,
        text,
        negative,
        steps=3,
        guidance_scale=4.0,
        size=IMAGE_SIZE,
        on_step=lambda: steps.append(None),
    )
    latents = sample(model, key, text[None], negative[None], steps=3, guidance_scale=4.0)
    np.testing.assert_allclose(picture, jax.jit(decode_latents)(model, latents)[0], atol=1e-4)
    assert len(steps) == 3


def test_every_prompt_and_seed_has_its_picture(folder, tmp_path):
    where = sampling.sample_to_folder(
        PROMPTS, model=folder, steps=2, seed=7, count=2, size=2 * IMAGE_SIZE, out=tmp_path, progress=False
    )
    files = json.loads((where / "config.json").read_text())["files"]
    assert files == [
        "00-a-red-mushroom-7.png",
        "00-a-red-mushroom-8.png",
        "01-a-blue-robot-7.png",
        "01-a-blue-robot-8.png",
    ]
    pictures = [np.asarray(Image.open(where / name)) for name in files]
    # Small pictures are enlarged.
    assert all(picture.shape == (192, 192, 3) for picture in pictures)
    assert (pictures[0] != pictures[1]).any() and (pictures[0] != pictures[2]).any()
    with Image.open(where / "sheet.png") as sheet:
        assert sheet.width > 4 * 192

    one = sampling.sample_to_folder(
        PROMPTS[:1], model=folder, steps=2, seed=8, size=2 * IMAGE_SIZE, out=tmp_path / "one", progress=False
    )
    assert (one / "00-a-red-mushroom-8.png").read_bytes() == (where / files[1]).read_bytes()


@pytest.mark.parametrize(
    ("prompts", "how", "reason"),
    [
        ([], {}, "no prompt"),
        (["a zebra"], {}, "zebra"),
        (PROMPTS, {"count": 0}, "number of pictures"),
        (PROMPTS, {"seed": -1}, "seed"),
        (PROMPTS, {"size": 12}, "multiple of 8"),
        (PROMPTS, {"steps": 0}, "steps"),
        (PROMPTS, {"model": "nowhere/at-all/here"}, "nowhere"),
    ],
)
def test_errors_are_reported_and_nothing_is_written(folder, tmp_path, prompts, how, reason):
    with pytest.raises(UserError, match=reason):
        sampling.sample_to_folder(prompts, **{"model": folder, "out": tmp_path, "progress": False} | how)
    assert not list(tmp_path.glob("*.png"))
