"""The live view: what it shows and when, its controls, and its cost."""

import signal
import sys

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from ge3d_jax.cli import live_flags
from ge3d_jax.core.errors import UserError
from ge3d_jax.runs import live
from ge3d_jax.runs.live import LiveView
from ge3d_jax.runs.observers import Observer
from tests.runs.toy_run import run_toy


class Page:
    """Records the calls it receives, and behaves as the test requires."""

    def __init__(self):
        self.address = "http://somewhere:1"
        self.is_watched = True
        self.is_pausing = self.is_stopping = False
        self.edits_wanted = 0
        self.opened, self.told, self.shown, self.plotted, self.pictures = [], [], [], [], []
        self.closed = 0

    def __call__(self, title, *, port, can_edit):
        self.opened.append((title, port, can_edit))
        return self

    def take_edit_request(self):
        wanted, self.edits_wanted = self.edits_wanted > 0, max(self.edits_wanted - 1, 0)
        return wanted

    def tell(self, text):
        self.told.append(text)

    def show_splats(self, gaussians):
        self.shown.append(np.array(gaussians))

    def plot(self, iterations, losses):
        self.plotted.append((list(iterations), list(losses)))

    def show_pictures(self, sheet):
        self.pictures.append(sheet)

    def close(self):
        self.closed += 1


class Clock:
    """A clock on which each iteration takes a fixed time, and each reading a little more."""

    def __init__(self, iteration=0.3, look=0.0):
        self.now, self.iteration, self.look = 50.0, iteration, look

    def __call__(self):
        self.now += self.look
        return self.now


class After(Observer):
    """Lets time pass in each iteration, and calls a function at its end; it runs before the live view."""

    def __init__(self, clock, do=lambda done: None):
        self.clock, self.do = clock, do

    def on_iteration(self, done, numbers, state):
        self.clock.now += self.clock.iteration
        self.do(done)
        return False


def run(folder, page, clock=None, do=lambda done: None, *, wait=None, edit=None, **options):
    clock = clock or Clock()

    def no_wait(seconds):
        raise AssertionError("nobody asked for a pause")

    view = LiveView(5, open_page=page, clock=clock, wait=wait or no_wait, edit=edit)
    return run_toy(folder, [After(clock, do), view], **options)


def iterations_shown(page):
    """The iteration numbers in the lines that contain one."""
    return [int(text.split()[1]) for text in page.told if text.startswith("iteration")]


def test_it_shows_splats_loss_and_how_far_the_run_is(tmp_path):
    page = Page()
    outcome = run(tmp_path, page, Clock(iteration=6.0))
    assert page.opened == [("a toy", 5, False)] and page.closed == 1
    assert page.told[0] == "Running the first iteration."
    assert iterations_shown(page) == [1, 2, 3, 4, 5, 6]
    losses = [line["loss"] for line in outcome.history]
    assert page.told[-1] == f"iteration 6 of 6 · loss {losses[-1]:.4g} · 6.00 s an iteration"
    assert page.plotted[-1] == ([1, 2, 3, 4, 5, 6], losses)
    np.testing.assert_array_equal(page.shown[-1], outcome.result.object)
    assert not np.array_equal(page.shown[0], page.shown[-1])


def test_the_curve_of_a_run_that_goes_on_begins_at_its_start(tmp_path):
    half = run_toy(tmp_path, [After(Clock()), Stop(3)])
    page = Page()
    whole = run(tmp_path, page, Clock(6.0), history=half.history, state=half.result.state)
    assert page.plotted[0] == ([1, 2, 3, 4], [line["loss"] for line in whole.history[:4]])


class Stop(Observer):
    """Ends the run after an iteration."""

    def __init__(self, number):
        self.number = number

    def on_iteration(self, done, numbers, state):
        return done == self.number


def test_it_is_renewed_every_five_seconds(tmp_path):
    page = Page()
    run(tmp_path, page, Clock(iteration=2.0), iterations=8)
    assert iterations_shown(page) == [1, 4, 7]


def test_renewing_takes_a_fiftieth_of_the_time_at_most(tmp_path):
    page, clock = Page(), Clock(iteration=4.0)

    def costly(gaussians):
        clock.now += 0.5

    page.show_splats = costly
    run(tmp_path, page, clock, iterations=14)
    # 25 seconds pass between the end of a refresh and the next one, which comes with the following iteration.
    assert iterations_shown(page) == [1, 8]


def test_nothing_is_done_while_nobody_watches(tmp_path):
    page = Page()
    page.is_watched = False

    def do(done):
        page.is_watched = done >= 4

    run(tmp_path, page, Clock(6.0), do)
    assert iterations_shown(page) == [4, 5, 6]


def test_it_pauses_until_it_may_go_on(tmp_path):
    page, waits = Page(), []

    def do(done):
        page.is_pausing = done == 2

    def wait(seconds):
        waits.append(seconds)
        page.is_pausing = len(waits) < 3

    outcome = run(tmp_path, page, None, do, wait=wait)
    assert len(waits) == 3 and len(outcome.history) == 6 and not outcome.result.interrupted
    # The state at the pause is shown, although no refresh was due yet.
    assert [text for text in page.told if text.endswith("paused")][0].startswith("iteration 2 of 6")
    assert 2 in iterations_shown(page)


def test_it_stops_the_run_also_from_a_pause(tmp_path):
    page = Page()

    def do(done):
        page.is_pausing = page.is_stopping = done == 3

    outcome = run(tmp_path, page, None, do)
    assert outcome.result.interrupted and outcome.result.iterations == 3


def test_ctrl_c_ends_a_pause(tmp_path):
    page = Page()
    page.is_pausing = True
    outcome = run(tmp_path, page, wait=lambda seconds: signal.raise_signal(signal.SIGINT))
    assert outcome.result.interrupted and outcome.result.iterations == 1


def test_edited_views_are_shown_when_asked_for_also_in_a_pause(tmp_path):
    page, edited = Page(), []

    def do(done):
        page.is_pausing = done == 4
        page.edits_wanted = int(done == 2)

    def wait(seconds):
        page.edits_wanted, page.is_pausing = int(len(edited) == 1), len(edited) == 1

    def edit(run, state, azimuths):
        edited.append((run.description["prompt"], int(state.iteration)))
        np.testing.assert_allclose(azimuths, [0, np.pi / 2, np.pi, 3 * np.pi / 2])
        return np.full((4, 8, 8, 3), 0.25)

    run(tmp_path, page, None, do, wait=wait, edit=edit)
    assert edited == [("a toy", 2), ("a toy", 4)]
    for sheet in page.pictures:
        assert sheet.dtype == np.uint8 and (sheet == 64).mean() > 0.5
    assert any("editing" in text for text in page.told) and "editing" not in page.told[-1]


def test_the_port_of_the_flag_is_that_of_the_view():
    assert flags.FLAGS["live_port"].default == live.DEFAULT_PORT
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    assert live_flags.observers() == []
    pytest.importorskip("viser", reason="viser is not installed")
    with flagsaver.flagsaver(live=True):
        (view,) = live_flags.observers()
    assert isinstance(view, LiveView)


def test_without_viser_there_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(UserError) as raised:
        LiveView()
    assert str(raised.value) == "--live needs the package viser; run pip install viser."
