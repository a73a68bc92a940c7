"""The flags of every script in experiments/figures, and what such a script does."""

from pathlib import Path

from absl import flags

from ge3d_jax.cli import script

_SIZES = ("small", "full", "paper")

SIZE = flags.DEFINE_enum(
    "size", "full", _SIZES, "A first look on two CPU cores, an evening on them, or the paper's scale."
)
OUT = flags.DEFINE_string("out", "docs/results", "Folder of tables and pictures.")
WORK = flags.DEFINE_string(
    "work", "outputs/figures", "Folder of objects and records; what is there is not made again."
)
MODEL = flags.DEFINE_string("model", None, "Another model than the size's own.")


def run_figure(name: str) -> None:
    """Be the script of one figure: experiments/figures/NAME.py.

    Args:
        name: of the figure, in FIGURES.
    """

    def main() -> None:
        from ge3d_jax.runs.figures.making import make_figure

        make_figure(
            name,
            size=SIZE.value,
            out=Path(OUT.value),
            work=Path(WORK.value),
            model=MODEL.value,
            report=lambda line: print(line, flush=True),
        )

    script.run(main)
