"""Tables of means and standard errors from handmade rows."""

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.runs.judging_table import estimates, table


def some_rows():
    numbers = {
        "ge3d": {"a": [20.0, 22.0], "b": [23.0, 25.0], "c": [27.0, 27.0]},
        "sds": {"a": [15.0], "b": [15.0], "c": [18.0]},
    }
    rows = [
        {
            "loss": loss,
            "prompt": prompt,
            "seed": seed,
            "psnr": value,
            "one_front": None,
            "sharpness": value / 24,
        }
        for loss, prompts in numbers.items()
        for prompt, values in prompts.items()
        for seed, value in enumerate(values)
    ]
    whole = {"loss": "ge3d", "shrunken_fid": 1.234, "shrunken_fid_error": 0.1, "shape_diversity": None}
    return [*rows, whole, {"loss": "sds", "shrunken_fid": 3.0, "shrunken_fid_error": None}]


def test_means_are_over_prompts_and_groups_bring_their_own():
    found = estimates(some_rows(), "loss", ["psnr", "shrunken_fid", "one_front"])
    mean, error = found["ge3d"]["psnr"]
    assert mean == pytest.approx(24.0)
    assert error == pytest.approx(np.std([21, 24, 27], ddof=1) / np.sqrt(3), rel=0.05)
    assert found["sds"]["psnr"][0] == pytest.approx(16.0)
    assert found["ge3d"]["shrunken_fid"] == (1.234, 0.1) and found["sds"]["shrunken_fid"] == (3.0, None)
    assert found["ge3d"]["one_front"] == (None, None)


def test_a_table_has_a_line_for_each_group_and_the_best_in_bold():
    metrics = ["psnr", "one_front", "sharpness", "shrunken_fid"]
    lines = table(some_rows(), metrics=metrics).splitlines()
    assert lines[:2] == [
        "| loss | PSNR to the truth, dB ↑ | sharpness, of the truth's → 1 | FID of shrunken pictures ↓ |",
        "| --- | --- | --- | --- |",
    ]
    assert lines[2].startswith("| ge3d | **24.0** ± 1.") and lines[2].endswith("| **1.23** ± 0.10 |")
    assert "| **1.00** ± " in lines[2]
    assert lines[3].startswith("| sds | 16.0 ± ") and lines[3].endswith("| 3.00 |") and "**" not in lines[3]
    assert len(lines) == 4


def test_what_looks_equal_has_no_best_and_what_is_missing_a_dash():
    rows = [
        {"jump": 1, "prompt": "a", "psnr": 20.01, "seconds": None, "failed": 0.0},
        {"jump": 2, "prompt": "a", "psnr": 20.04, "seconds": 61.4, "failed": 1.0},
        {"jump": 3, "prompt": "a", "psnr": 20.0, "seconds": 70.0, "failed": 0.0},
    ]
    lines = table(rows, "jump", metrics=["psnr", "seconds", "failed"]).splitlines()
    assert lines[0].startswith("| jump |") and lines[2] == "| 1 | 20.0 | – | **0.00** |"
    assert lines[3] == "| 2 | 20.0 | **61** | 1.00 |" and lines[4] == "| 3 | 20.0 | 70 | **0.00** |"


def test_an_unknown_metric_is_refused():
    with pytest.raises(UserError, match="no metric 'beauty'"):
        table(some_rows(), metrics=["psnr", "beauty"])
