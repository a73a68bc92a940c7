"""Time the VAE (encoding, encoding with the gradient, decoding), and compare it with PyTorch's.

    python experiments/benchmark_vae.py --model_size=sd21 --batches=4 --peer=torch

Prints a table (median, TFLOP/s, fraction of the device's own matmul rate, peak memory, compile time, ours
over theirs) and writes it as JSON to --out. Weights are random, since times do not depend on them. The
bundled size takes a minute on two CPU cores. Stable Diffusion's is meant for a GPU; on a CPU give --batches=1
and few --repetitions. --peer=torch needs torch and diffusers (requirements-torch.txt).
"""

from absl import flags
from benchmarks import options

from ge3d_jax.cli import script

flags.adopt_module_key_flags(options)
_BATCHES = flags.DEFINE_list("batches", ["1", "4"], "Numbers of images per pass.")


def main() -> None:
    """Measure, print and write."""
    dtype = options.begin()
    batches = script.parse_counts("batches", _BATCHES.value)
    peer = options.load_peer("benchmarks.peer")

    from benchmarks.models import SIZES
    from benchmarks.networks import VAE_WORKS, measure_networks

    size = SIZES[options.MODEL_SIZE.value]
    how = {"repetitions": options.REPETITIONS.value, "warm_up": options.WARM_UP.value}
    rows = measure_networks(VAE_WORKS, size, dtype, batches, **how)
    if peer is not None:
        compiles = options.COMPILE_PEER.value
        rows += peer.measure_networks(VAE_WORKS, size, dtype, batches, compiles=compiles, **how)
    options.finish("vae", rows, dtype)


if __name__ == "__main__":
    script.run(main)
