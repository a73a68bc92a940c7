"""Editing pictures by the methods: the output files, and inputs rejected before any long computation."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ge3d_jax
from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.pipeline import encode_text
from ge3d_jax.editing.words import find_words
from ge3d_jax.runs.edit import edit_2d
from ge3d_jax.runs.edit_by_method import SMALLEST_PICTURE, draw_source, edit_by_method, make_task
from ge3d_jax.runs.model_choice import ModelChoice
from ge3d_jax.runs.request import check_edit
from ge3d_jax.toybox.world.captions import parse
from ge3d_jax.toybox.world.render import render_sentence, toybox_camera
from ge3d_jax.training.presets import configured, preset

SOURCE, TARGET = "a red mushroom", "a blue mushroom"


def test_two_methods_side_by_side(model, tmp_path):
    folder = edit_by_method(
        TARGET,
        methods=["direct", "npi"],
        source_prompt=SOURCE,
        model=model,
        words="blue x2 until 0.5",
        blend="mushroom, not red",
        form="replace",
        overrides={"steps": "2"},
        out=tmp_path,
    )
    for name in ("direct", "npi"):
        written = {path.name for path in (folder / name).iterdir()}
        assert written == {"edited.png", "inversion.png", "trajectory.png", "words.png"}
    with Image.open(folder / "compare.png") as sheet:
        assert sheet.width > 3 * 190
    told = json.loads((folder / "config.json").read_text())
    assert told["methods"]["npi"]["steps"] == 2 and told["seconds"].keys() == {"direct", "npi"}
    page = (folder / "compare.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2 * 5 and "{{" not in page
    # The inversion is the end of the source's way, and the edit that of the way down.
    with Image.open(folder / "direct" / "trajectory.png") as sheet:
        rows = np.array_split(np.asarray(sheet.convert("RGB"))[6:], 3)
    for name, row in (("inversion", rows[1]), ("edited", rows[2])):
        with Image.open(folder / "direct" / f"{name}.png") as picture:
            edge = picture.width
            last = row[:edge, -(edge + 6) : -6]
            np.testing.assert_allclose(last, np.asarray(picture.convert("RGB")), rtol=0, atol=1)
    # Direct inversion reproduces the source as decoded by the autoencoder.
    edit_by_method(
        TARGET,
        methods=["direct"],
        image=folder / "source.png",
        source_prompt=SOURCE,
        model=model,
        overrides={"steps": 2},
        out=tmp_path / "again",
    )
    assert (tmp_path / "again" / "direct" / "edited.png").is_file()
    # An edit by GE3D replaces them all, also where the picture to edit is one of them.
    edit_2d(TARGET, image=folder / "source.png", model=model, max_step=100, nodes=1, out=folder)
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        *("config.json", "source.png", "edited.png", "nodes.png", "again"),
    }


def test_a_sentence_is_drawn_from_the_side_that_was_asked_for():
    camera = toybox_camera(np.pi / 2, np.deg2rad(70.0), size=24)
    expected = render_sentence(parse("a green duck"), camera, background=jnp.ones(3))
    np.testing.assert_allclose(draw_source("a green duck", 90.0, 24), expected, atol=1e-5)


def test_an_edit_stays_within_its_words(model):
    diffusion = ModelChoice.of(model).load(model)
    task = make_task(
        diffusion,
        jnp.zeros((1, 16, 16, 3)),
        [(SOURCE, TARGET)],
        steps=2,
        edits=None,
        blends=[(("mushroom",), ("red",))],
        negative_prompt="a grey gift",
    )
    told = encode_text(diffusion, [SOURCE, TARGET, "a grey gift"])
    np.testing.assert_allclose(jnp.stack([task.source[0], task.target[0], task.empty]), told, atol=1e-5)
    for word, marked in (("mushroom", task.blend.words), ("red", task.blend.kept)):
        expected = [
            find_words(diffusion.tokenizer, prompt, word, task.source.shape[1]) for prompt in (SOURCE, TARGET)
        ]
        np.testing.assert_array_equal(np.asarray(marked)[:, 0] > 0, expected)


def test_each_trajectory_has_its_own_row(model, tmp_path):
    # FlowEdit has no way up, only the picture itself: a single state in the first row.
    folder = edit_by_method(
        TARGET,
        methods=["flow"],
        source_prompt=SOURCE,
        model=model,
        overrides={"steps": "3", "strength": "1.0"},
        out=tmp_path,
    )
    with Image.open(folder / "flow" / "trajectory.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    is_blank = [
        [not np.any(column != 255) for column in np.array_split(row[:SMALLEST_PICTURE], 4, axis=1)]
        for row in np.array_split(pixels[6:], 3)
    ]
    assert is_blank == [[False, True, True, True], [False] * 4, [False] * 4]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"source_prompt": None}, "Neither image nor source_prompt"),
        ({"source_prompt": None, "image": "a.png"}, "direct needs to know what the picture shows"),
        ({"image": "missing.png"}, "missing.png"),
        ({"methods": ["swap"]}, "no method 'swap'; use one of ddim"),
        ({"methods": []}, "There is no method; use one of"),
        ({"methods": ["ge3d", "direct"]}, "ge3d has other settings and results than these: use it alone"),
        ({"overrides": {"stepz": 2}}, "stepz does not exist|'stepz' does not exist"),
        ({"overrides": {"steps": 1001}}, "1001 steps do not fit"),
        ({"form": "replace", "source_prompt": "a red mushroom with a yellow stem"}, "form refine"),
        ({"words": "stem x2"}, "'stem' are not in the prompt 'a blue mushroom'"),
        ({"words": "blue"}, "does not say what to do"),
        ({"blend": "stem"}, "neither in the prompt"),
        ({"methods": ["imagic"], "words": "blue x2"}, "imagic does not control attention"),
        (
            {"methods": ["imagic"], "form": "replace"},
            "imagic does not control attention; leave out words, form",
        ),
        ({"methods": ["imagic"], "cross": 0.3}, "imagic does not control attention"),
        ({"methods": ["imagic"], "self_attention": 0.3}, "imagic does not control attention"),
        ({"methods": ["edict"], "blend": "blue"}, "edict does not blend"),
        ({"source_prompt": "mushroom"}, "not a sentence"),
        ({"cross": 1.5}, "between 0 and 1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_done_is_told(model, tmp_path, changes, says):
    asked = {"methods": ["direct"], "source_prompt": SOURCE, "overrides": {"steps": 2}} | changes
    with pytest.raises(UserError, match=says):
        edit_by_method(TARGET, model=model, out=tmp_path, **asked)


def test_an_object_is_edited_from_what_there_is(model, tmp_path):
    with pytest.raises(UserError, match="no object to edit; give its splat file as start"):
        small = {"image_size": 16}
        ge3d_jax.generate(
            TARGET, edit_from=SOURCE, model=model, out=tmp_path, overrides=small, progress=False
        )
    toybox = preset("toybox")
    check_edit(toybox, SOURCE, model, has_start=True)
    check_edit(toybox, None, model, has_start=False)
    with pytest.raises(UserError, match="this loss has no use for it; choose guidance ge3d"):
        check_edit(configured("toybox", guidance="sds"), SOURCE, model, has_start=True)
    with pytest.raises(UserError, match="dragon"):
        check_edit(toybox, "a red dragon", model, has_start=True)
