"""Time one iteration of a run, and the same iteration assembled from PyTorch's diffusers.

    python experiments/benchmark_step.py --model_size=sd21 --peer=torch

The settings are those of the preset of that size (toybox or paper), but without what PyTorch's iteration does
not have: the loss of pictures and the correction of the inversion. --set=name=value changes them, --splats
sets the initial number of splats. Prints a table (median, TFLOP/s of the networks, fraction of the device's
own matmul rate, memory, compile time, ours over theirs) and writes it as JSON to --out. Weights are random,
since times do not depend on them. The bundled size takes two minutes on two CPU cores; Stable Diffusion's is
meant for a GPU. --peer=torch needs torch and diffusers (requirements-torch.txt), and gsplat for rendering:
without it the peer's row excludes rendering and says so.
"""

from absl import flags
from benchmarks import options

from ge3d_jax.cli import script

flags.adopt_module_key_flags(options)
_SPLATS = flags.DEFINE_integer("splats", None, "Initial number of splats.", lower_bound=1)
_SET = flags.DEFINE_multi_string("set", [], "name=value changes a setting; may be repeated.")


def main() -> None:
    """Measure, print and write."""
    dtype = options.begin()
    overrides = script.parse_settings(_SET.value)
    peer = options.load_peer("benchmarks.peer_iteration")

    from benchmarks.iteration import WITHOUT, measure_iteration, splats_of, with_count
    from benchmarks.models import SIZES

    from ge3d_jax.training.presets import configured

    size = SIZES[options.MODEL_SIZE.value]
    # Point-E's weights are not needed to time an iteration.
    timed = configured(size.preset, start="ball", overrides={**WITHOUT, **overrides})
    config = with_count(timed, _SPLATS.value)
    how = {"repetitions": options.REPETITIONS.value, "warm_up": options.WARM_UP.value}
    rows = [measure_iteration(size, config, dtype, **how)]
    if peer is not None:
        rows += peer.measure_iteration(size, config, dtype, compiles=options.COMPILE_PEER.value, **how)
    splats = splats_of(config).start.count
    settings = {"preset": size.preset, **overrides, "views": config.views, "splats": splats}
    options.finish("step", rows, dtype, **settings)


if __name__ == "__main__":
    script.run(main)
