"""UNet, VAE, text encoder and their parts, compared with stored results of diffusers and transformers."""

import numpy as np
import pytest

from tests.reference_models import CASES, GOLDEN_FILE, TOLERANCE, relative_difference


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case):
    with np.load(GOLDEN_FILE) as golden:
        stored = {name: golden[name] for name in golden.files if name.startswith(f"{case}/")}
    outputs = CASES[case]()
    assert stored.keys() == {f"{case}/{name}" for name in outputs}
    for name, output in outputs.items():
        assert relative_difference(output, stored[f"{case}/{name}"]) <= TOLERANCE
