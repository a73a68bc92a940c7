"""Write tests/golden/diffusion.npz: results of diffusers and transformers for the cases of reference_models.

.venv-torch/bin/python -m tests.write_golden     (half a minute; `make test-torch` sets up .venv-torch)
"""

import numpy as np

from ge3d_jax.core.files import atomic_path
from tests.reference_models import CASES, GOLDEN_FILE
from tests.reference_torch import reference


def main() -> None:
    """Write the file and print its size."""
    arrays = {f"{case}/{name}": value for case in CASES for name, value in reference(case).items()}
    with atomic_path(GOLDEN_FILE) as path:
        np.savez_compressed(path, **arrays)
    print(f"{GOLDEN_FILE}: {len(arrays)} arrays, {GOLDEN_FILE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
