"""The scripts that compare losses: their own flags, and inputs rejected before any work."""

import pytest

from tests.cli.test_figure_flags import FOLDER, run


@pytest.mark.parametrize("name", ["compare_losses", "convergence"])
@pytest.mark.parametrize(
    ("flag", "says"),
    [("--losses=none", "The loss 'none' does not exist"), ("--metrics=beauty", "no metric 'beauty'")],
)
def test_names_that_do_not_exist_are_refused(tmp_path, name, flag, says):
    done = run(FOLDER / f"{name}.py", flag, "--size=small", folder=tmp_path)
    assert done.returncode == 2 and says in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_the_help_has_all_flags():
    done = run(FOLDER / "compare_losses.py", "--help")
    assert (
        done.returncode == 0 and "--only_done" in done.stdout.replace("[no]", "") and "--size" in done.stdout
    )
