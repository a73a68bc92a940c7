"""What every test shares: the CPU unless told otherwise, and property tests that repeat their cases."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis

# A first example pays for compilation, so a deadline would measure XLA; a fixed seed keeps a red run red.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("project")
