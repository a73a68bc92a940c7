"""The figure scripts: their help, and inputs rejected before any work."""

import subprocess
import sys
from pathlib import Path

import pytest

from ge3d_jax.runs.figures.figures import FIGURES
from ge3d_jax.runs.figures.making import duration

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "figures"
SCRIPT = (
    '"""A figure.\n\nMore of it."""\nfrom ge3d_jax.cli import figure_flags\nfigure_flags.run_figure("none")\n'
)


def run(script, *arguments, folder=ROOT):
    return subprocess.run(
        [sys.executable, script, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder)},
    )


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    file = tmp_path_factory.mktemp("scripts") / "look.py"
    file.write_text(SCRIPT, encoding="utf-8")
    return file


def test_the_help_is_the_scripts_own(script):
    done = run(script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"A figure.\n\nMore of it.\n\n{script}:\n")
    for flag in ("  --size: <small|full|paper>", "  --out:", "  --work:", "  --model:"):
        assert flag in done.stdout
    own = run(FOLDER / "page.py", "--help").stdout
    assert own.startswith("Make the paper's tables and figures") and "  --size:" in own and "  --only:" in own


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--size=huge", "value should be one of <small|full|paper>"),
        ("--out=", "The name of the output folder is empty"),
        ("--work= ", "The name of the work folder is empty"),
        ("full", "'full' does not belong to a flag"),
    ],
)
def test_what_cannot_be_gets_a_sentence(script, argument, says):
    done = run(script, argument)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr and done.stderr.count("\n") == 1


def test_the_page_checks_before_it_makes(tmp_path):
    for argument, says in (
        ("--only=none", "There is no figure 'none'"),
        (f"--out={tmp_path / 'file' / 'x'}", "cannot be written to"),
        (f"--work={tmp_path / 'file'}", "cannot be written to"),
        ("--times --pages_only", "exclude each other"),
    ):
        (tmp_path / "file").touch()
        done = run(FOLDER / "page.py", *argument.split(), "--size=paper", folder=tmp_path)
        assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1


def test_a_first_look_leaves_the_committed_results_alone(tmp_path):
    done = run(FOLDER / "page.py", "--size=small", "--pages_only", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "The page is outputs/figures/small/README.md\n")
    done = run(FOLDER / "page.py", "--pages_only", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "The page is docs/results.md\n")
    assert (tmp_path / "docs" / "results.md").is_file()


def test_times_are_told_and_nothing_is_made(tmp_path):
    done = run(FOLDER / "page.py", "--size=paper", "--times", "--at_a_time=1", folder=tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == len(FIGURES) + 1
    assert not (tmp_path / "docs").exists() and not (tmp_path / "outputs").exists()


def test_each_figure_has_one_script():
    assert {file.stem for file in FOLDER.glob("*.py")} == {*FIGURES, "page"}
    for name in FIGURES:
        text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
        assert f'_figure("{name}")' in text and f"experiments/figures/{name}.py" in text


@pytest.mark.parametrize("name", FIGURES)
def test_each_script_tells_its_command_its_time_and_what_to_expect(name):
    told = (FOLDER / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]
    small, full = (duration(FIGURES[name].seconds[size]) for size in ("small", "full"))
    assert f"    python experiments/figures/{name}.py --size=small  # {small} on two CPU cores\n" in told
    assert f"    python experiments/figures/{name}.py               # {full}, for docs/results.md\n" in told
    assert "\n\nExpected" in told
