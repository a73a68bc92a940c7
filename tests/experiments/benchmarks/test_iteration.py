"""What the benchmark of an iteration counts, and what it refuses because it would be counted wrongly."""

import pytest
from benchmarks.iteration import WITHOUT, check
from benchmarks.models import SIZES

from ge3d_jax.core.errors import UserError
from ge3d_jax.training.presets import configured

SIZE = SIZES["toybox"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"picture_weight": 0.1}, "picture_weight is 0.1, but decoding is not counted"),
        ({"guidance.inversion": "direct"}, "guidance.inversion is not plain"),
        ({"image_size": 64}, "image_size is 64"),
    ],
)
def test_what_would_be_counted_wrongly_is_refused(overrides, says):
    check(SIZE, configured("toybox", start="ball", overrides=WITHOUT))
    with pytest.raises(UserError, match=says):
        check(SIZE, configured("toybox", start="ball", overrides=WITHOUT | overrides))
