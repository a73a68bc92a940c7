"""Records of finished steps, and a figure's result files."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from ge3d_jax.core.errors import UserError
from ge3d_jax.runs.figures.base import MOST_BYTES, Made, Record, remember, write_made

ASKED = {"prompt": "a red mushroom", "seeds": (0, 1)}


class Step:
    """A step that counts its executions."""

    def __init__(self, record):
        self.record, self.done = record, 0

    def __call__(self):
        self.done += 1
        return self.record


def step():
    return Step(Record({"psnr": 20.5, "none": None}, {"pictures": np.arange(6, dtype=np.uint8)}))


def test_a_step_is_done_once(tmp_path):
    work = step()
    first = remember(tmp_path / "deep" / "a.b", ASKED, work)
    again = remember(tmp_path / "deep" / "a.b", ASKED, work)
    assert work.done == 1 and first.numbers == again.numbers == {"psnr": 20.5, "none": None}
    np.testing.assert_array_equal(again.arrays["pictures"], np.arange(6))
    assert again.arrays["pictures"].dtype == np.uint8
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"a.b.json", "a.b.npz"}
    # A step with the same name prefix is a separate one; a step without arrays has no .npz file.
    plain = Step(Record({"loss": 1}))
    assert remember(tmp_path / "deep" / "a", ASKED, plain) == remember(tmp_path / "deep" / "a", ASKED, plain)
    assert plain.done == 1 and not (tmp_path / "deep" / "a.npz").exists()


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        (ASKED | {"seeds": [0]}, "seeds"),
        (ASKED | {"model": None}, "model"),
        ({"prompt": "a blue mushroom"}, "prompt, seeds"),
    ],
)
def test_a_record_of_other_settings_is_refused(tmp_path, changed, names):
    work = step()
    remember(tmp_path / "a", ASKED, work)
    with pytest.raises(UserError, match=f"another {names}; give another folder with --work, or remove"):
        remember(tmp_path / "a", changed, work)
    assert work.done == 1


def test_a_step_that_was_stopped_is_done_again(tmp_path):
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remember(tmp_path / "a", ASKED, stopped)
    assert not list(tmp_path.iterdir())
    # The process was killed between writing the two files.
    np.savez(tmp_path / "a.npz", pictures=np.zeros(1))
    assert remember(tmp_path / "a", ASKED, step()).arrays["pictures"].size == 6


@pytest.mark.parametrize("damaged", ["a.json", "a.npz"])
@pytest.mark.parametrize("content", [None, b"{", b"[]", b"{}"])
def test_a_broken_record_gets_a_sentence(tmp_path, damaged, content):
    remember(tmp_path / "a", ASKED, step())
    if content is None:
        (tmp_path / "a.npz").unlink()
    else:
        (tmp_path / damaged).write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json cannot be read .*; remove it, and this step is done again"):
        remember(tmp_path / "a", ASKED, step())


def test_the_files_of_a_figure(tmp_path):
    rows = [{"prompt": 'a "red", pig', "psnr": 20.5}, {"prompt": "a cat", "other": None}]
    picture = np.full((4, 6, 3), 200, np.uint8)
    made = Made(
        rows, "| a |\n\n\n", {"": picture, "views": picture}, {"turn": np.zeros((2, 8, 8, 3), np.uint8)}
    )
    write_made(made, name="look", command="python look.py", out=tmp_path)
    files = {"look.json", "look.csv", "look.md", "look.png", "look_views.png", "look_turn.mp4"}
    assert {path.name for path in tmp_path.iterdir()} == files
    told = json.loads((tmp_path / "look.json").read_text(encoding="utf-8"))
    assert told["rows"] == rows and told["command"] == "python look.py" and "jax" in told["versions"]
    assert (told["pictures"], told["videos"]) == (["look.png", "look_views.png"], ["look_turn.mp4"])
    assert (tmp_path / "look.md").read_text() == "| a |\n"
    with open(tmp_path / "look.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [
            {"prompt": 'a "red", pig', "psnr": "20.5", "other": ""},
            {"prompt": "a cat", "psnr": "", "other": ""},
        ]
    assert (tmp_path / "look.csv").read_bytes().startswith(b"prompt,psnr,other\n")
    with Image.open(tmp_path / "look_views.png") as written:
        np.testing.assert_array_equal(np.asarray(written), picture)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_made(made, name="look", command="python look.py", out=tmp_path)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_picture_whose_file_would_be_too_large_is_made_smaller(tmp_path):
    noise = np.random.default_rng(0).integers(256, size=(800, 600, 3), dtype=np.uint8)
    write_made(Made([], "", {"": noise}), name="look", command="", out=tmp_path)
    with Image.open(tmp_path / "look.png") as written:
        width, height = written.size
    assert width / height == pytest.approx(600 / 800, rel=0.01)
    # Nearly as large as the limit allows.
    assert 0.6 * MOST_BYTES < (tmp_path / "look.png").stat().st_size <= MOST_BYTES == 1_000_000


def test_numbers_of_rows_are_such_as_files_can_hold(tmp_path):
    rows = [{"psnr": 20.1234567, "small": 0.000012345678, "none": float("nan"), "far": float("inf"), "n": 3}]
    write_made(Made(rows, ""), name="look", command="", out=tmp_path)
    (told,) = json.loads((tmp_path / "look.json").read_text(encoding="utf-8"))["rows"]
    assert told == {"psnr": 20.1235, "small": 0.0000123457, "none": None, "far": None, "n": 3}
    assert (tmp_path / "look.csv").read_text().splitlines()[1] == "20.1235,1.23457e-05,,,3"
