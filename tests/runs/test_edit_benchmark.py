"""The editing benchmark: metrics of editors with known results, PIE-Bench's file layout, and resuming."""

import dataclasses
import json
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import normal
from ge3d_jax.diffusion.weights.checkpoint import load_model
from ge3d_jax.editing.base import Edited, Method
from ge3d_jax.editing.control import WordEdit
from ge3d_jax.editing.ddim import DDIM
from ge3d_jax.metrics.recognition import build_gallery
from ge3d_jax.runs.edit_benchmark import (
    benchmark,
    editor_of,
    mean_rows,
    measure,
    measure_kept_lpips,
    measure_recognized,
    run_editor,
    save_benchmark,
    tables,
    timings,
)
from ge3d_jax.runs.edit_cases import pie_cases, toybox_cases
from ge3d_jax.toybox import model_folder
from ge3d_jax.toybox.world.captions import Sentence
from ge3d_jax.toybox.world.edits import Edit, draw_edits

SIZE = 32


@pytest.fixture(scope="module")
def cases():
    white = (1.0, 1.0, 1.0)
    red, blue = Sentence("mushroom", "red"), Sentence("mushroom", "blue")
    stem = dataclasses.replace(red, second_color="green")
    edits = [
        Edit("color", red, blue, (20.0, 20.0), white),
        Edit("part", stem, dataclasses.replace(stem, second_color="purple"), (20.0, 20.0), white),
        Edit("color", red, blue, (20.0, 20.0), (0.2, 0.3, 0.4)),
    ]
    return toybox_cases(edits, SIZE, WordEdit())


def unchanged(cases, batch):
    return np.stack([case.picture for case in cases]) / 255.0


def perfect(cases, batch):
    return np.stack([case.truth for case in cases]) / 255.0


def halfway(cases, batch):
    return (unchanged(cases, batch) + perfect(cases, batch)) / 2


def spoiling(cases, batch):
    """The true edit, with the rest of the picture darkened by a tenth."""
    rest = np.stack([case.kept for case in cases])[..., None]
    return perfect(cases, batch) * np.where(rest, 0.9, 1.0)


def rows_of(editor, cases):
    edited, _ = run_editor(editor, cases, 2, lambda text: None)
    return [measure(case, picture) for case, picture in zip(cases, edited, strict=True)]


def test_a_case_keeps_what_both_sentences_show_alike(cases):
    color, part, behind = cases
    assert color.kept[0].all() and 0.5 < color.kept.mean() < 1
    # The cap stays when the stem, which is thin, changes.
    assert part.kept.mean() > color.kept.mean()
    np.testing.assert_array_equal(part.picture[part.kept], part.truth[part.kept])
    assert np.any(part.picture[~part.kept] != part.truth[~part.kept])
    np.testing.assert_array_equal(behind.picture[0, 0], [51, 76, 102])
    np.testing.assert_array_equal(color.kept, behind.kept)
    assert color.prompts == ("a red mushroom", "a blue mushroom") and color.kind == "color"


def test_the_truth_is_reached_and_the_source_is_not(cases):
    for row in rows_of(perfect, cases):
        assert row["way_left"] == 0 and row["reached"] == 1
        assert row["truth_psnr"] == row["kept_psnr"] == 99.0
        assert row["kept_ssim"] == pytest.approx(1.0)
    for row in rows_of(unchanged, cases):
        assert row["way_left"] == pytest.approx(1.0) and row["reached"] == 0
        assert row["kept_psnr"] == 99.0 and row["truth_psnr"] < 30
    for row in rows_of(halfway, cases):
        assert row["way_left"] == pytest.approx(0.5, abs=0.01)


def test_what_happens_to_the_rest_counts_for_the_rest_alone(cases):
    for case, row in zip(cases, rows_of(spoiling, cases), strict=True):
        assert row["way_left"] == 0 and row["reached"] == 1
        rest = case.picture[case.kept] / 255.0
        # PIE-Bench's convention: the mean is over all pixels, and pixels outside the mask count as equal.
        error = np.sum((0.1 * rest) ** 2) / case.picture.size
        assert row["kept_psnr"] == pytest.approx(-10 * np.log10(error), abs=0.3)  # eight bits
        assert row["kept_ssim"] < 0.999 and row["truth_psnr"] < 40


def test_lpips_sees_the_rest_alone(cases):
    seen = []

    def distance(first, second):
        seen.append((first, second))
        return np.arange(len(first))

    edited = np.stack([255 - case.picture for case in cases])
    rows = measure_kept_lpips(distance, cases, edited)
    assert rows == [{"kept_lpips": float(index)} for index in range(len(cases))]
    ((sources, results),) = seen
    for case, source, result in zip(cases, sources, results, strict=True):
        np.testing.assert_allclose(source[case.kept], case.picture[case.kept] / 255.0)
        np.testing.assert_allclose(result[case.kept], 1.0 - case.picture[case.kept] / 255.0)
        assert not source[~case.kept].any() and not result[~case.kept].any() and (~case.kept).any()


def test_pictures_are_recognized_as_what_they_are_to_show(cases):
    gallery = build_gallery(["mushroom"], azimuths=4, polar_degrees=(70.0,))
    big = toybox_cases(
        [Edit("color", Sentence("mushroom", "red"), Sentence("mushroom", "blue"), (15.0, 15.0), (1, 1, 1))],
        64,
        WordEdit(),
    )
    (right,) = measure_recognized(gallery, big, np.stack([case.truth for case in big]))
    (wrong,) = measure_recognized(gallery, big, np.stack([case.picture for case in big]))
    assert right == {"recognized": 1.0} and wrong == {"recognized": 0.0}


def test_a_short_batch_is_filled_up_and_sorts_do_not_mix(cases):
    seen = []

    def editor(batch_cases, number):
        seen.append((number, [case.name for case in batch_cases]))
        return unchanged(batch_cases, number)

    mixed = [cases[0], dataclasses.replace(cases[1], blend=("red", "red")), cases[2]]
    edited, seconds = run_editor(editor, mixed, 2, lambda text: None)
    assert seen == [(0, ["000", "002"]), (1, ["001", "001"])] and len(seconds) == 2
    np.testing.assert_array_equal(edited, [case.picture for case in mixed])
    assert timings([9.0, 2.0, 4.0], 2) == {"seconds": 1.5, "compiling": 6.0}
    assert timings([1.0, 2.0, 2.0], 2)["compiling"] == 0.0, "compiled before"
    assert timings([9.0], 2) == {"seconds": None, "compiling": None}
    with pytest.raises(UserError, match="non-finite"):
        run_editor(lambda some, number: np.full((2, SIZE, SIZE, 3), np.nan), cases, 2, lambda text: None)


def test_what_is_done_is_not_done_again(tmp_path, cases):
    made = []

    def counted(editor, name):
        def make():
            made.append(name)
            return editor

        return make

    def run(settings, chosen=cases, fail=False):
        def broken():
            raise KeyboardInterrupt

        editors = {"perfect": counted(perfect, "perfect"), "(nothing)": counted(unchanged, "nothing")}
        if fail:
            editors["(nothing)"] = broken
        measures = [
            lambda some, edited: [{"recognized": float(case.name == "000")} for case in some],
            lambda some, edited: [{"kept_lpips": edited[index].mean() / 1e3} for index in range(len(some))],
        ]
        return benchmark(
            chosen, editors, settings, tmp_path, batch=2, measures=measures, report=lambda text: None
        )

    with pytest.raises(KeyboardInterrupt):
        run({"perfect": 1}, fail=True)
    results = run({"perfect": 1})
    lpips = [row["kept_lpips"] for row in results["(nothing)"]]
    assert lpips == pytest.approx([case.picture.mean() / 1e3 for case in cases])
    assert made == ["perfect", "nothing"]
    assert run({"perfect": 1}) == results and made == ["perfect", "nothing"]
    # Different settings of a method, or different pictures, are computed anew.
    run({"perfect": 2})
    assert made[2:] == ["perfect"]
    run({"perfect": 2}, cases[:2])
    assert made[3:] == ["perfect", "nothing"]
    words = dataclasses.replace(cases[0].words, spans={"red": (0.0, 0.5)})
    run({"perfect": 2}, [dataclasses.replace(cases[0], words=words), cases[1]])
    assert made[5:] == ["perfect", "nothing"]
    save_benchmark(tmp_path, cases[:2], run({"perfect": 2}, cases[:2]), {"title": "# Edits"})
    page = (tmp_path / "README.md").read_text()
    far = np.mean([case.truth.mean() / 1e3 for case in cases[:2]])
    assert page.startswith("# Edits\n\n| method | rest, PSNR |")
    assert f"| perfect | 99.0 | 1.000 | {far:.3f} | 50 % | 100 % | 0 % |" in page
    assert "| (nothing) | 100 % | 100 % |" in page
    assert json.loads((tmp_path / "results.json").read_text())["methods"]["perfect"][1]["kind"] == "part"
    sheet = np.asarray(Image.open(tmp_path / "edits.png"))
    assert sheet.shape[1] > 4 * 128 and sheet.shape[0] > 2 * 128


def test_means_are_over_the_cases_of_a_kind():
    rows = [
        {"kind": "color", "kept_psnr": 20.0, "recognized": 1.0},
        {"kind": "color", "kept_psnr": 30.0, "recognized": None},
        {"kind": "view", "kept_psnr": 40.0, "recognized": 0.0},
    ]
    assert mean_rows(rows)["kept_psnr"] == 30.0 and mean_rows(rows)["recognized"] == 0.5
    assert mean_rows(rows, "color")["kept_psnr"] == 25.0 and mean_rows(rows)["clip"] is None
    text = tables({"a method": rows})
    assert "| method | rest, PSNR | recognized |" in text and "| a method | 30.0 | 50 % |" in text
    # Without a ground truth, the second table shows the rest of the picture.
    assert "Rest, psnr, by kind" in text and "| a method | 25.0 | 40.0 |" in text


@pytest.fixture
def pie(tmp_path):
    folder = tmp_path / "PIE-Bench_v1"
    (folder / "annotation_images/0_random").mkdir(parents=True)
    rng = np.random.default_rng(0)
    entries = {}
    for index, kind in enumerate("0066"):
        picture = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(picture).save(folder / f"annotation_images/0_random/{index}.png")
        entries[f"{index:012d}"] = {
            "image_path": f"0_random/{index}.png",
            "original_prompt": "a round cake with orange frosting on a wooden plate",
            "editing_prompt": "a [square] cake with orange frosting on a [wooden] plate",
            "editing_instruction": "",
            "editing_type_id": kind,
            "blended_word": "cake cake" if index % 2 else "",
            "mask": [2 * SIZE + 3, 4],
        }
    (folder / "mapping_file.json").write_text(json.dumps(entries))
    return folder


def test_pie_bench_s_layout_is_read(pie):
    cases = pie_cases(pie, SIZE, WordEdit(cross=0.3))
    assert [case.kind for case in cases] == ["random", "random", "change color", "change color"]
    first, second = cases[:2]
    assert first.prompts[1] == "a square cake with orange frosting on a wooden plate"
    assert first.blend == () and second.blend == ("cake", "cake")
    assert dict(first.words.factors) == {} and dict(second.words.factors) == {"cake": 2.0}
    assert second.words.cross == 0.3 and first.truth is None and first.target is None
    stored = np.asarray(Image.open(pie / "annotation_images/0_random/0.png"))
    np.testing.assert_array_equal(first.picture, stored)
    edited = np.argwhere(~first.kept[1:-1, 1:-1]) + 1
    np.testing.assert_array_equal(edited, [[2, 3], [2, 4], [2, 5], [2, 6]])
    # The outermost pixels belong to the edited region.
    assert not first.kept[0].any() and not first.kept[:, -1].any()
    row = measure(first, first.picture)
    assert set(row) == {"kept_psnr", "kept_ssim"}
    some = pie_cases(pie, SIZE, WordEdit(), count=2)
    assert [case.name for case in some] == ["000000000000", "000000000002"]


def test_folders_that_are_not_pie_bench_are_refused(pie, tmp_path):
    with pytest.raises(UserError, match="mapping_file"):
        pie_cases(tmp_path, SIZE, WordEdit())
    with pytest.raises(UserError, match="64 by 64"):
        pie_cases(pie, 64, WordEdit())
    file = pie / "mapping_file.json"
    entries = json.loads(file.read_text())
    del entries["000000000001"]["mask"]
    file.write_text(json.dumps(entries))
    with pytest.raises(UserError, match="000000000001 .* lacks mask"):
        pie_cases(pie, SIZE, WordEdit())
    file.write_text("{}")
    with pytest.raises(UserError, match="no entries"):
        pie_cases(pie, SIZE, WordEdit())


def test_editors_refuse_times_that_do_not_fit_before_they_work():
    class Model:
        class schedule:  # noqa: N801
            steps = 10

    with pytest.raises(UserError, match="do not fit"):
        editor_of(DDIM(steps=50), Model(), 0)


@dataclasses.dataclass(frozen=True)
class Noise(Method):
    """Replaces the picture by noise."""

    def __call__(self, task, denoiser, key):
        return Edited(task.latents[None], normal(key, (1, *task.latents.shape)))


def test_every_batch_and_seed_has_its_own_noise(model, cases):
    loaded = load_model(model)
    first, other = (editor_of(Noise(steps=1), loaded, seed) for seed in (0, 1))
    made = [edit(cases[:1], batch) for edit, batch in ((first, 0), (first, 1), (other, 0))]
    np.testing.assert_array_equal(made[0], first(cases[:1], 0))
    assert all(np.abs(one - two).max() > 0.01 for one, two in combinations(made, 2))


def test_a_method_edits_the_cases():
    """DDIM with four steps on the fast bundled model: the edit succeeds, and the rest is partly preserved."""
    model = load_model(model_folder("toybox64"))
    edits = [edit for edit in draw_edits(0, 1) if edit.name in ("color", "background")]
    cases = toybox_cases(edits, 64, WordEdit())
    edited, _ = run_editor(editor_of(DDIM(steps=4), model, 0), cases, 2, lambda text: None)
    for case, picture in zip(cases, edited, strict=True):
        row = measure(case, picture)
        assert row["reached"] == 1 and row["way_left"] < 0.9 and row["kept_psnr"] > 12
