"""UNet, VAE, text encoder and their parts, compared with live runs of diffusers and transformers."""

import pytest

from tests.reference_models import CASES, TOLERANCE, relative_difference
from tests.reference_torch import REFERENCES, reference


def test_every_case_has_a_reference():
    assert CASES.keys() == REFERENCES.keys()


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case):
    ours, theirs = CASES[case](), reference(case)
    assert ours.keys() == theirs.keys()
    for name, output in ours.items():
        assert relative_difference(output, theirs[name]) <= TOLERANCE
