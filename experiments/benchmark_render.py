"""Time the rasterizer, forward and with gradients, and compare it with a renderer in PyTorch.

    python experiments/benchmark_render.py --splats=10000 --sizes=256 --peer=torch

Prints a table (time per view, per splat, per pixel and per entry of the tiles' lists, memory, compile time,
PyTorch's time over ours), and writes it as JSON, with a page, to --out. The command above takes two minutes
on two CPU cores, nearly all of it for PyTorch. Without --splats and --sizes it runs 10 k, 100 k, and 1 M
splats at 128 to 1024 pixels, which takes a quarter of an hour. --peer=torch needs torch
(requirements-torch.txt), --plot needs matplotlib (requirements-dev.txt).
"""

import datetime
import itertools
import os

from absl import flags

from ge3d_jax.cli import script

_SPLATS = flags.DEFINE_list("splats", ["10000", "100000", "1000000"], "Numbers of splats.")
_SIZES = flags.DEFINE_list("sizes", ["128", "256", "512", "1024"], "Edges of the square images, pixels.")
_VIEWS = flags.DEFINE_list("views", ["1", "4"], "Numbers of views.")
_REPETITIONS = flags.DEFINE_integer(
    "repetitions", 3, "Number of runs; the median is reported.", lower_bound=1
)
_WARM_UP = flags.DEFINE_integer("warm_up", 1, "Number of runs before those, not counted.", lower_bound=0)
_PEER = flags.DEFINE_enum("peer", "none", ["none", "torch"], "Another renderer to time on the same scene.")
_PLOT = flags.DEFINE_bool("plot", False, "Also plot how the cost grows with splats and pixels.")
_OUT = flags.DEFINE_string("out", "outputs/benchmarks/render", "Folder for the JSON file and the page.")


def main() -> None:
    """Measure, print and write."""
    splats, sizes, views = (script.parse_counts(flag.name, flag.value) for flag in (_SPLATS, _SIZES, _VIEWS))
    # Otherwise JAX would reserve most of a GPU's memory and leave none for the peer.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    # Cached code from an earlier run would be loaded instead of compiled, whose time is measured.
    jax.config.update("jax_enable_compilation_cache", False)
    from benchmarks import render_report, rendering

    from ge3d_jax.core.extras import load_package
    from ge3d_jax.runs.folder import prepare_folder

    folder = prepare_folder(_OUT.value)
    peer = plot = None
    if _PEER.value == "torch":
        peer = load_package(
            "benchmarks.peer_rendering", wanted_by="--peer=torch", install="-r requirements-torch.txt"
        )
    if _PLOT.value:
        plot = load_package("benchmarks.render_plot", wanted_by="--plot", install="-r requirements-dev.txt")
    how = {"repetitions": _REPETITIONS.value, "warm_up": _WARM_UP.value}
    cases = [
        rendering.Case(*numbers) for numbers in itertools.product(splats, sizes, views, rendering.PASSES)
    ]
    measured = rendering.measure(cases, **how)
    content = render_report.report(
        cases,
        *measured,
        peer.measure(cases) if peer else None,
        repetitions=_REPETITIONS.value,
        date=datetime.date.today(),
    )
    render_report.print_table(content)
    if plot:
        plot.draw(content, render_report.plot_path(content, folder))
    print(f"  The numbers:  {render_report.save(content, folder)}")


if __name__ == "__main__":
    script.run(main)
