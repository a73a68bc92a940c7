"""Quality over time and iterations on a tiny model: moments, curves, and the text."""

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.runs.evaluation_prompts import check_prompts
from ge3d_jax.runs.figures import convergence
from ge3d_jax.runs.figures.base import Work
from ge3d_jax.runs.figures.convergence import curves, first_reached
from ge3d_jax.runs.trials import Trial
from ge3d_jax.viewer.plot import Line
from tests.runs.figures.tiny_losses import (
    PROMPTS,
    SDS,
    dark_grays,
    done_by_hand,
    tiny_judges,
    tiny_settings,
)

SHARES = (0.25, 0.5)


@pytest.fixture(scope="module")
def made(tiny_place, tmp_path_factory):
    folder = tmp_path_factory.mktemp("convergence")
    settings = tiny_settings(prompts=PROMPTS[:1], seeds=(1,), shares=SHARES, budget=0.5, metrics=("psnr",))
    work = Work("small", folder, str(tiny_place), lambda line: None)
    return convergence.make(work, settings=settings, judges=tiny_judges())


def test_an_object_is_judged_at_its_shares_and_at_its_end(made):
    last = made.rows[-1]["iterations"]
    wanted = sorted({*(max(1, round(share * last)) for share in SHARES), last})
    assert [row["iterations"] for row in made.rows] == wanted
    assert [row["moment"] for row in made.rows] == list(range(len(wanted)))
    seconds = [row["seconds"] for row in made.rows]
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert {(row["loss"], row["prompt"], row["seed"]) for row in made.rows} == {(SDS.label, PROMPTS[0], 1)}
    assert len({row["psnr"] for row in made.rows}) == len(wanted)


def test_pictures_are_the_curves_and_the_object_on_the_way(made):
    assert set(made.pictures) == {"", "objects"}
    assert all(one.dtype == np.uint8 and one.ndim == 3 for one in made.pictures.values())
    assert made.pictures["objects"].shape[1] > 3 * 128


def test_the_table_tells_how_soon_a_level_is_reached(made):
    header, _, line = made.text.strip().splitlines()[-3:]
    level = f"{made.rows[-1]['psnr']:.1f} dB"
    assert f"seconds to {level}" in header and f"iterations to {level}" in header
    assert line.startswith(f"| {SDS.label} | {made.rows[-1]['iterations']} |")
    assert made.text.startswith("1 object, made in about 0.5 seconds each")


def row(loss, prompt, moment, seconds, psnr):
    return {"loss": loss, "prompt": prompt, "moment": moment, "seconds": seconds, "psnr": psnr}


def test_curves_are_means_over_prompts_at_each_moment():
    rows = [
        row("ge3d", "a", 0, 1.0, 10.0),
        row("ge3d", "b", 0, 3.0, 14.0),
        row("ge3d", "b", 0, 5.0, 16.0),
        row("ge3d", "a", 1, 6.0, 20.0),
        row("ge3d", "b", 1, 8.0, None),
        row("ge3d without DBC", "a", 0, 2.0, 11.0),
        row("sds", "a", 0, 2.0, 11.0),
        row("sds", "b", 0, 2.0, 12.0),
    ]
    ge3d, without, sds = curves(rows, "psnr", "seconds")
    assert (ge3d.x, ge3d.y) == ((3.0, 6.0), (12.5, 20.0)) and not ge3d.dashed
    # The standard error of both prompts' means, 10 and 15; a single prompt has none.
    assert ge3d.error[0] == pytest.approx(2.5, rel=0.1) and ge3d.error[1] == 0
    assert without.dashed and without.error == () and (sds.y, sds.error) == ((11.5,), ())
    assert curves(rows, "psnr", "moment")[0].x == (0.0, 1.0)
    assert curves([rows[4]], "psnr", "seconds") == []


def test_where_a_level_is_first_reached():
    line = Line("", (10.0, 20.0, 30.0), (1.0, 3.0, 2.0))
    assert first_reached(line, 2.0) == 15.0
    assert first_reached(line, 3.0) == 20.0 and first_reached(line, 0.5) == 10.0
    assert first_reached(line, 3.5) is None


def some_moments(iterations, seconds, psnr):
    return [
        {"iterations": done, "seconds": time, "psnr": decibels}
        for done, time, decibels in zip(iterations, seconds, psnr, strict=True)
    ]


def test_losses_are_compared_at_what_all_of_them_come_to():
    both = [
        done_by_hand(
            "ge3d", (1, 2, 3), some_moments((100, 200, 400), (10.0, 20.0, 40.0), (10.0, 20.0, 24.0))
        ),
        done_by_hand("sds", (1, 2), some_moments((50, 100), (20.0, 40.0), (8.0, 16.0))),
    ]
    settings = tiny_settings(trials=(Trial("ge3d"), Trial("sds")))
    text = convergence._text(settings, both, convergence.rows_of(both))
    header, _, ge3d, sds = text.strip().splitlines()[-4:]
    assert header.startswith("| loss | iterations | seconds to 16.0 dB | iterations to 16.0 dB |")
    # Linear interpolation from 10 to 20 dB in 10 seconds.
    assert ge3d == "| ge3d | 400 | 16 | 160 | 20.0 | 24.0 |"
    assert sds == "| sds | 100 | 40 | 100 | 8.0 | 16.0 |"
    assert text.startswith("2 objects, made")


def test_objects_on_the_way_end_in_one_column():
    long = done_by_hand("ge3d", (10, 20, 30), [{}] * 3, shares=(0.25, 0.5))
    short = done_by_hand("sds", (24, 34), [{}] * 2, shares=(0.25, 0.5))
    grays = dark_grays(convergence.draw_objects([long, short]))
    assert set(grays) == {10, 20, 30, 24, 34}
    assert grays[10][1] < grays[20][1] == grays[24][1] < grays[30][1] == grays[34][1]
    assert grays[10][0] == grays[30][0] < grays[24][0] == grays[34][0]


@pytest.mark.parametrize("metric", ["shape_diversity", "clip_similarity"])
def test_metrics_without_curves_are_refused(tmp_path, metric):
    settings = tiny_settings(metrics=("psnr", metric))
    with pytest.raises(UserError, match=f"'{metric}' gives no curve"):
        convergence.make(Work("small", tmp_path), settings=settings)


@pytest.mark.parametrize("size", ["small", "full", "paper"])
def test_ge3d_is_there_with_and_without_dbc(size):
    settings = convergence.SIZES[size]
    ge3d, without, *others = (trial.settings(settings.preset) for trial in settings.trials)
    assert ge3d.guidance.dbc and not without.guidance.dbc
    assert without.guidance == type(ge3d.guidance)(**{**vars(ge3d.guidance), "dbc": False})
    assert len(others) == (1 if size == "small" else 11)
    assert all(0 < share < 1 for share in settings.shares) and sorted(settings.shares) == list(
        settings.shares
    )
    if size != "paper":
        check_prompts(settings.prompts)
