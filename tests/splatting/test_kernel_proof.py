"""The kernel is used if it passes its check, and rejected if it is wrong, slower or fails to run."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.splatting.groups import GROUPS
from ge3d_jax.splatting.kernel import kernel
from ge3d_jax.splatting.kernel_proof import Verdict, announce, judge, outside_of_tracing, prove, remembered
from ge3d_jax.splatting.techniques import check_device

RIGHT = {"image": np.array([3.0, 4.0]), "gradients": np.array([0.0, 10.0])}


def stopwatch(*readings: float):
    """A stopwatch that returns the given seconds, one program after the other."""
    told = iter(readings)
    return lambda run: next(told)


def verdict_on(values: dict, *readings: float) -> Verdict:
    return judge(lambda: lambda: values, lambda: RIGHT, seconds=stopwatch(*readings))


def test_a_program_that_is_right_and_faster_is_trusted():
    nearly = RIGHT | {"gradients": RIGHT["gradients"] * (1 + 0.9e-4)}
    assert verdict_on(RIGHT, 0.001, 0.002) == Verdict(
        True, "equals XLA's results to 0e+00 and takes 1.00 for 2.00 ms"
    )
    assert verdict_on(nearly, 0.001, 0.002).is_trusted


@pytest.mark.parametrize("part", RIGHT)
def test_one_that_is_wrong_is_put_aside(part):
    off = RIGHT | {part: RIGHT[part] * (1 + 1.1e-4)}
    assert verdict_on(off) == Verdict(False, "gives results that differ by 1e-04")
    nothing = RIGHT | {part: RIGHT[part] * np.nan}
    assert verdict_on(nothing) == Verdict(False, "gives results that differ by nan")


def test_one_that_is_slower_is_put_aside():
    assert verdict_on(RIGHT, 0.002, 0.002) == Verdict(False, "is slower, 2.00 instead of 2.00 ms")


def test_one_that_does_not_compile_is_put_aside():
    def build():
        raise NotImplementedError("no such instruction\nin line 1")

    assert judge(build, lambda: RIGHT) == Verdict(False, "does not run (no such instruction)")


def test_a_kernel_made_wrong_on_purpose_is_put_aside():
    def wrong(*arrays):
        return 1.001 * kernel(interpret=True).backward(*arrays)

    candidate = dataclasses.replace(kernel(interpret=True), backward=wrong)
    verdict = prove(candidate, GROUPS, count=40, size=24)
    assert verdict == Verdict(False, "gives results that differ by 1e-03")


def test_a_verdict_is_kept_for_the_same_card_and_versions(tmp_path):
    file, verdicts = (
        tmp_path / "cache" / "verdict.json",
        [Verdict(True, "is right"), Verdict(False, "is wrong")],
    )
    found = iter(verdicts)
    assert remembered(file, {"card": "A"}, lambda: next(found)) == (verdicts[0], True)
    assert remembered(file, {"card": "A"}, lambda: next(found)) == (verdicts[0], False)
    assert remembered(file, {"card": "B"}, lambda: next(found)) == (verdicts[1], True)
    assert json.loads(file.read_text())["of"] == {"card": "B"}
    file.write_text("{")
    assert remembered(file, {"card": "B"}, lambda: verdicts[0]) == (verdicts[0], True)


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(tmp_path):
    (tmp_path / "file").write_text("")
    verdict = Verdict(True, "is right")
    with pytest.warns(UserWarning, match="could not be stored"):
        assert remembered(tmp_path / "file" / "verdict.json", {}, lambda: verdict) == (verdict, True)


def test_one_line_is_said(capsys):
    announce(Verdict(True, "is right"), is_new=False)
    assert capsys.readouterr().err == ""
    announce(Verdict(True, "is right"), is_new=True)
    assert capsys.readouterr().err == "The kernel that renders splats is right; it is used.\n"
    with pytest.warns(UserWarning, match="splats is wrong, so XLA renders them"):
        announce(Verdict(False, "is wrong"), is_new=False)


def test_a_proof_computes_while_jax_traces():
    @jax.jit
    @jax.vmap
    def doubled(value):
        found = outside_of_tracing(lambda: float(jax.jit(jnp.sum)(jnp.ones(3))))
        assert isinstance(found, float)
        return value * found

    np.testing.assert_array_equal(doubled(jnp.arange(2.0)), [0.0, 3.0])


def test_a_kernel_without_a_card_is_refused():
    assert jax.local_devices()[0].platform == "cpu"
    check_device("auto")
    with pytest.raises(UserError, match='"kernel" needs an NVIDIA GPU'):
        check_device("kernel")
