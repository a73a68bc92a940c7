"""Section 8.1: shares of the nodes, and a run that is observed, stopped and resumed."""

import dataclasses
import json

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.guidance.base import Progress
from ge3d_jax.guidance.ge3d import GE3D
from ge3d_jax.guidance.trajectories import Nodes
from ge3d_jax.runs.figures import dbc_curves
from ge3d_jax.runs.figures.base import Record, Work, write_made
from ge3d_jax.runs.figures.dbc_curves import SIZES, Settings
from ge3d_jax.training.presets import configured
from tests.runs.figures.observed import PROMPT, SMALL, Stopped, files_of, stopping

SETTINGS = Settings("toybox", (PROMPT,), seed=3, looks=3, overrides=SMALL)


def test_shares_are_of_the_weighted_norms():
    differences = np.zeros((3, 2, 1, 1, 2))
    differences[0, 0, 0, 0] = [3.0, 4.0]
    differences[1, 1, 0, 0, 0] = 20.0
    np.testing.assert_allclose(
        dbc_curves.shares(differences, np.asarray([0.5, 0.25, 0.25])), [1 / 3, 2 / 3, 0]
    )
    np.testing.assert_allclose(dbc_curves.shares(differences, np.ones(3)), [0.2, 0.8, 0])
    np.testing.assert_array_equal(dbc_curves.shares(0 * differences, np.ones(3)), 0)


def test_curves_of_weights_are_the_loss_s_own():
    config = configured("toybox64")
    iterations, weights = dbc_curves.weight_curves(config)
    assert iterations[0] == 0 and iterations[-1] == config.iterations and len(weights) == 101
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    loss = config.guidance
    wanted = loss.weights(Progress(int(iterations[30]), config.iterations), loss.nodes.count)
    np.testing.assert_allclose(weights[30], wanted)
    assert weights[0].argmax() == loss.nodes.count - 1 and weights[-1].argmax() == 0
    short = dataclasses.replace(config, iterations=4, guidance=GE3D(nodes=Nodes(count=2)))
    assert dbc_curves.weight_curves(short)[0].tolist() == [0, 1, 2, 3, 4]


def record(shares, active=2):
    return Record(
        {"active": active, "times": [0, 100], "weights": [0.5, 0.5], "shares": shares, "plain_shares": shares}
    )


def test_rows_are_means_over_prompts_and_skip_nodes_that_are_not_active():
    records = {
        "one": {1: record([0.2, 0.8]), 9: record([0.4, 0.6])},
        "other": {1: record([0.4, 0.6]), 9: record([1.0, 0.0], active=1)},
    }
    rows = dbc_curves.rows_of(records)
    assert [(row["iteration"], row["node"]) for row in rows] == [(1, 0), (1, 1), (9, 0), (9, 1)]
    np.testing.assert_allclose([row["share"] for row in rows], [0.3, 0.7, 0.7, 0.6])
    assert rows[0]["share_error"] == pytest.approx(0.1, rel=0.05) and rows[3]["share_error"] is None
    table = dbc_curves.table(rows)
    assert "| 0 | 30 % | – | 70 % | 30 % | – | 70 % |" in table
    assert "| 1 | 70 % | – | 60 % |" in table


def test_thirds_of_a_run_end_where_they_should():
    rows = [
        {"iteration": done, "node": 0, "share": share, "plain_share": 1.0 - share}
        for done, share in zip(range(1, 10), np.repeat([0.1, 0.2, 0.6], 3), strict=True)
    ]
    line = dbc_curves.table(rows).splitlines()[-1]
    assert line == "| 0 | 10 % | 20 % | 60 % | 90 % | 80 % | 40 % |"


def test_a_stopped_figure_goes_on_to_the_same_files(tiny_place, tmp_path):
    def make(folder, report):
        made = dbc_curves.make_of(SETTINGS, Work("small", folder, str(tiny_place), report))
        write_made(made, name="dbc_curves", command="", out=folder / "out")
        return files_of(folder / "out")

    # One line for the prompt, then one for each observation.
    with pytest.raises(Stopped):
        make(tmp_path / "stopped", stopping(3))
    kept = sorted((tmp_path / "stopped" / "a-red-mushroom").glob("iteration-*.json"))
    assert [file.name for file in kept] == ["iteration-00001.json", "iteration-00002.json"]
    written = [file.stat().st_mtime_ns for file in kept]
    again = make(tmp_path / "stopped", lambda line: None)
    assert [file.stat().st_mtime_ns for file in kept] == written
    whole = make(tmp_path / "whole", lambda line: None)
    assert again == whole and set(whole) == {f"dbc_curves.{kind}" for kind in ("json", "csv", "md", "png")}

    rows = json.loads(whole["dbc_curves.json"])["rows"]
    assert [row["iteration"] for row in rows] == [1, 1, 2, 2, 4, 4]
    # The bound falls below two jumps at the end of the run, so that one node carries the entire gradient.
    first, last = rows[:2], rows[-2:]
    assert [row["time"] for row in first] == [0, 89]
    assert first[0]["share"] + first[1]["share"] == pytest.approx(1.0, abs=1e-4)
    assert first[0]["weight"] < first[1]["weight"]
    assert last[0]["share"] == last[0]["weight"] == 1.0 and last[1]["share"] is None
    # Both kinds of shares come from the same differences.
    ratio = first[0]["share"] / first[1]["share"] / (first[0]["weight"] / first[1]["weight"])
    assert ratio == pytest.approx(first[0]["plain_share"] / first[1]["plain_share"], rel=0.02)

    # Existing records are reused; a missing observation makes the run start over.
    missing = tmp_path / "whole" / "a-red-mushroom" / "iteration-00002.json"
    before = json.loads(missing.read_text())
    missing.unlink()
    assert make(tmp_path / "whole", lambda line: None) == whole
    assert json.loads(missing.read_text()) == before


@pytest.mark.parametrize("size", SIZES)
def test_settings_can_be_used(size):
    settings = SIZES[size]
    for prompt in settings.prompts:
        run = settings.run(prompt)
        assert isinstance(run.config.guidance, GE3D) and run.config.guidance.dbc
        assert run.iterations[0] == 1 and run.iterations[-1] == run.config.iterations
        assert len(run.iterations) == settings.looks
        if size != "paper":
            run.check(None)


def test_mistakes_are_found_first(tiny_place, tmp_path):
    work = Work("small", tmp_path, str(tiny_place))
    with pytest.raises(UserError, match="dragon"):
        dbc_curves.make_of(dataclasses.replace(SETTINGS, prompts=("a red dragon",)), work)
    other = dataclasses.replace(SETTINGS, overrides={"guidance.kind": "sds"})
    with pytest.raises(UserError, match="loss ge3d"):
        dbc_curves.make_of(other, work)
    assert not list(tmp_path.iterdir())
