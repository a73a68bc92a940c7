"""Shared by the benchmark scripts: their flags, and the beginning and end of a run."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from ge3d_jax.core.extras import load_package

if TYPE_CHECKING:
    import jax.numpy as jnp

    from benchmarks.measure import Measurement

MODEL_SIZE = flags.DEFINE_enum(
    "model_size",
    "toybox",
    ["toybox", "toybox64", "sd21"],
    "The size of a bundled model or of Stable Diffusion 2.1.",
)
DTYPE = flags.DEFINE_enum(
    "dtype", "auto", ["auto", "float32", "bfloat16"], "auto: bfloat16 on a GPU, float32 on a CPU."
)
REPETITIONS = flags.DEFINE_integer("repetitions", 20, "Number of runs; the median is shown.", lower_bound=1)
WARM_UP = flags.DEFINE_integer("warm_up", 3, "Uncounted runs before those.", lower_bound=1)
PEER = flags.DEFINE_enum(
    "peer", "none", ["none", "torch"], "Another implementation to time on the same work."
)
COMPILE_PEER = flags.DEFINE_bool("compile_peer", True, "Also time the peer with torch.compile.")
OUT = flags.DEFINE_string("out", "outputs/benchmarks", "Folder for the JSON file and the page of all files.")


def begin() -> "jnp.dtype":
    """Prepare JAX for timing next to a peer, before its first use; returns the dtype to compute in."""
    # Otherwise JAX would reserve most of a GPU's memory and leave none for the peer.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    from ge3d_jax.core.devices import compute_dtype

    # Cached code from an earlier run would be loaded instead of compiled, whose time is measured.
    jax.config.update("jax_enable_compilation_cache", False)
    return compute_dtype(DTYPE.value)


def load_peer(module: str) -> Any:
    """The module of this package that runs PyTorch, or None without --peer.

    Raises:
        UserError: a package that it needs is not installed.
    """
    if PEER.value == "none":
        return None
    return load_package(
        module,
        wanted_by="--peer=torch",
        install="-r requirements-torch.txt, or on a machine without network install the wheels that pip "
        "download -r requirements-torch.txt fetches elsewhere (for a GPU, a torch built for CUDA)",
    )


def finish(
    benchmark: str, measurements: Sequence["Measurement"], dtype: "jnp.dtype", **settings: Any
) -> None:
    """Print the table, and write JSON and the folder's page."""
    from benchmarks.measure import matmul_rate
    from benchmarks.report import print_table, report, save
    from ge3d_jax.runs.folder import prepare_folder

    folder = prepare_folder(OUT.value)
    content = report(
        benchmark,
        measurements,
        settings={"model_size": MODEL_SIZE.value, **settings, "repetitions": REPETITIONS.value},
        dtype=dtype,
        matmul_flop_per_second=matmul_rate(dtype),
    )
    print_table(content)
    print(f"  The numbers:  {save(content, folder)}")
