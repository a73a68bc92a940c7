"""The figure of edited objects on a tiny random model: rows, files, and resuming."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.ply import load_ply
from ge3d_jax.runs.figures import edit_objects
from ge3d_jax.runs.figures.base import Work
from ge3d_jax.runs.figures.edit_objects import SIZES, Edit, Settings, way_overrides
from ge3d_jax.runs.made_objects import make_object
from ge3d_jax.toybox.world.captions import parse
from ge3d_jax.training.presets import configured
from tests.runs.figures.observed import Stopped
from tests.tiny_model import IMAGE_SIZE

TINY = Settings(
    edits=(Edit("color", "a red mushroom", "a blue mushroom"),),
    ways=("direct", "start"),
    preset="toybox64",
    overrides={
        "iterations": 2,
        "views": 1,
        "image_size": IMAGE_SIZE,
        "nodes.count": 2,
        "scene.buffer_capacity": 4096,
    },
    source_overrides={"start.count": 50},
    edit_overrides={"guidance.scale": 2.0},
)


@pytest.fixture(scope="module")
def model(tiny_place):
    return str(tiny_place)


def work_in(folder, model, stop_at=None):
    told = []

    def report(line):
        if len(told) == stop_at:
            raise Stopped
        told.append(line)

    return Work("small", folder, model, report), told


@pytest.fixture(scope="module")
def made(model, tiny_gallery, tmp_path_factory):
    """The figure, stopped after two objects and resumed; the messages of both runs, and the folder."""
    folder = tmp_path_factory.mktemp("work")
    work, first = work_in(folder, model, stop_at=2)
    with pytest.raises(Stopped):
        edit_objects.edited_rows(TINY, work, lambda: tiny_gallery)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("object.ply")}
    work, second = work_in(folder, model)
    rows = edit_objects.edited_rows(TINY, work, lambda: tiny_gallery)
    # Existing objects are not made again.
    assert len(before) == 2 and before == {file: file.stat().st_mtime_ns for file in before}
    return rows, first, second, folder


def test_every_edit_has_a_row_of_each_way(made):
    rows, *_ = made
    ways = ["source", "direct", "start", "truth"]
    assert [(row.edit.name, row.way) for row in rows] == [("color", way) for way in ways]
    source, direct, _, truth = rows
    assert source.numbers["outline"] == 1.0 and source.numbers["moved"] == 0.0
    assert source.numbers["way_left"] == pytest.approx(1.0)
    assert truth.numbers["way_left"] == 0.0 and truth.numbers["reached"] == 1.0
    assert truth.numbers["overlap"] == 1.0 and truth.numbers["recognized"] == 1.0
    assert 0 < direct.numbers["outline"] < 1 and direct.numbers.keys() == truth.numbers.keys()
    assert all(row.pictures.shape == (8, 128, 128, 3) and row.pictures.dtype == np.uint8 for row in rows)


def test_the_ways_differ_and_begin_with_the_source(made):
    *_, folder = made
    (objects,) = (path for path in folder.iterdir() if path.is_dir())
    (source,) = objects.glob("source/*/*/object.ply")
    told = {}
    for way in ("source", "direct", "start"):
        (file,) = objects.glob(f"{way}/*/*/config.json")
        told[way] = json.loads(file.read_text())
    inversions = {way: one["settings"]["guidance"]["inversion"] for way, one in told.items()}
    assert inversions == {"source": "plain", "direct": "direct", "start": "plain"}
    assert told["direct"]["edit_from"] == "a red mushroom"
    assert "edit_from" not in told["source"] and "edit_from" not in told["start"]
    assert told["source"]["start"] is None
    assert told["direct"]["start"] == told["start"]["start"] == str(source)
    scales = {way: one["settings"]["guidance"]["scale"] for way, one in told.items()}
    assert scales["source"] != 2.0 and scales["direct"] == scales["start"] == 2.0
    splats = [load_ply(next(objects.glob(f"{way}/*/*/object.ply"))).sh for way in ("direct", "start")]
    assert not np.array_equal(*splats)


def test_an_edit_of_something_else_is_another_object(made, model, tmp_path):
    *_, folder = made
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (file,) = tmp_path.glob("*/direct/*/*/config.json")

    def told(**changes):
        make_object(
            "a blue mushroom",
            seed=0,
            folder=file.parents[2],
            preset="toybox64",
            model=model,
            overrides=way_overrides(TINY, "direct"),
            **changes,
        )
        config = json.loads(file.read_text())
        return config["start"], config["edit_from"]

    (start,) = tmp_path.glob("*/source/*/*/object.ply")
    assert told(start=start, edit_from="a red mushroom") == (str(start), "a red mushroom")
    assert told(start=start, edit_from="a green mushroom") == (str(start), "a green mushroom")


def test_a_stopped_figure_goes_on_and_ends_the_same(made, model, tiny_gallery, tmp_path):
    rows, first, second, _ = made
    assert len(first) == 2 and len(second) == 3
    work, told = work_in(tmp_path, model)
    through = edit_objects.edited_rows(TINY, work, lambda: tiny_gallery)
    assert told == second
    assert edit_objects.rows_of(through) == edit_objects.rows_of(rows)
    for one, other in zip(through, rows, strict=True):
        np.testing.assert_array_equal(one.pictures, other.pictures)

    # Finished objects are not evaluated again, and different settings are rejected.
    def never():
        raise Stopped

    assert len(edit_objects.edited_rows(TINY, work, never)) == 4 and told == second
    with pytest.raises(UserError, match="made with another seed"):
        edit_objects.edited_rows(dataclasses.replace(TINY, seed=1), work, never)


def test_tables_and_pictures(made):
    rows, *_ = made
    kind = Edit("kind", "a red mushroom", "a red duck")
    rows = rows + [dataclasses.replace(row, edit=kind) for row in rows]
    text = edit_objects.tables(rows)
    assert 'From "a red mushroom" to "a blue mushroom":\n\n| color | outline as the source\'s, IoU |' in text
    assert "| (the source) | 1.000 | 0.000 | 99.0 | " in text and text.count("| restyled by --start |") == 2
    told = edit_objects.rows_of(rows)
    assert told[0]["edit"] == "color" and told[0]["way"] == "source" and told[0]["outline"] == 1.0
    json.dumps(told)
    sheets = edit_objects.pictures(rows)
    assert list(sheets) == ["color", "kind"]
    # Eight views in four rows.
    height, width = sheets["color"].shape[:2]
    assert width == 8 * (128 + 6) + 6 and 4 * 128 < height < 5 * 150
    np.testing.assert_array_equal(sheets["color"][6:134, 6:134], rows[0].pictures[0])


def test_without_a_truth_only_what_stays_is_measured(made, model, tmp_path):
    *_, folder = made
    # Its objects exist, but its record does not.
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("color.*"))
    for file in tmp_path.glob("*/*/*/*/config.json"):
        file.write_text(file.read_text().replace(str(folder), str(tmp_path)))
    settings = dataclasses.replace(TINY, ways=("start",), has_truth=False)
    work, _ = work_in(tmp_path, model)

    def never():
        raise Stopped

    rows = edit_objects.edited_rows(settings, work, never)
    assert [row.way for row in rows] == ["source", "start"]
    assert rows[1].numbers.keys() == {"outline", "moved"}
    assert "recognized" not in edit_objects.tables(rows)


@pytest.mark.parametrize("size", SIZES)
def test_the_settings_of_each_size_can_be(made, size):
    *_, folder = made
    settings = SIZES[size]
    start = str(next(folder.glob("*/source/*/*/object.ply")))
    for way in ("source", *settings.ways):
        config = configured(settings.preset, start=start, overrides=way_overrides(settings, way))
        assert config.guidance.inversion == (way if way in ("delta", "direct", "npi") else "plain")
    names = ["color", "part", "kind"]
    assert [edit.name for edit in settings.edits] == (names[:1] if size == "small" else names)
    assert settings.ways == (("delta", "start") if size == "small" else ("delta", "direct", "npi", "start"))
    if settings.has_truth:
        for edit in settings.edits:
            parse(edit.source), parse(edit.target)
