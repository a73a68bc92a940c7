"""The output that remains with --quiet, and the observers requested by flags."""

import pytest
from absl import flags
from absl.testing import flagsaver

from ge3d_jax.cli import watching_flags

if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_leaves_what_goes_wrong(quiet, capsys):
    with flagsaver.flagsaver(quiet=quiet):
        watching_flags.say("It is there.")
        assert watching_flags.conclude(["Some advice."], failed=False) == 0
        assert capsys.readouterr() == ("" if quiet else "It is there.\nSome advice.\n", "")
        assert watching_flags.conclude(["Why."], failed=True) == 1
        assert watching_flags.conclude(["Advice."], failed=False, unwritten=["a.gif is not."]) == 2
        assert capsys.readouterr() == ("", "Why.\nAdvice.\na.gif is not.\n")


def test_observers_are_those_that_are_asked_for():
    assert watching_flags.observers() == []
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    with flagsaver.flagsaver(tensorboard=True):
        (one,), (another,) = watching_flags.observers(), watching_flags.observers()
    assert type(one).__name__ == "TensorBoard" and one is not another
