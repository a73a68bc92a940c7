r"""Make the paper's tables and figures, and the page that shows them.

    python experiments/figures/page.py --size=small
    python experiments/figures/page.py --size=full --times

The first gives a first look, in outputs/figures/small, in about 20 minutes on two CPU cores. The full size,
the default, is what docs/results.md shows; it takes about eight hours. --times only says how long each figure
will take. Finished figures are left as they are, and an interrupted one continues where it stopped. A figure
that fails does not stop the others; the exit status is then 1.

    python experiments/figures/page.py --only=edit_objects,exact_inversion
    python experiments/figures/page.py --pages_only

--pages_only writes just the page. Under each figure it has the discussion in OUT/readings/NAME.md, written by
hand, where there is one.
"""

from absl import flags

from ge3d_jax.cli import figure_flags, script

_ONLY = flags.DEFINE_list("only", None, "Names of the figures to make, separated by commas; else all.")
_TIMES = flags.DEFINE_bool("times", False, "Only say how long it will take.")
_AT_A_TIME = flags.DEFINE_integer(
    "at_a_time",
    None,
    "How many figures to make at a time, each on one CPU core; by default as many as there are cores, as far "
    "as memory goes, and one on a GPU.",
    lower_bound=1,
)
_PAGES_ONLY = flags.DEFINE_bool("pages_only", False, "Only write the page, from what there is.")


def main() -> int:
    """Say how long it takes, make what is missing, and write the page."""
    from functools import partial

    from ge3d_jax.core.errors import UserError
    from ge3d_jax.runs.figures import page
    from ge3d_jax.runs.figures.figures import FIGURES
    from ge3d_jax.runs.figures.making import command_of, make_figure
    from ge3d_jax.runs.folder import prepare_folder

    size, model, out = figure_flags.SIZE.value, figure_flags.MODEL.value, figure_flags.out()
    if _TIMES.value and _PAGES_ONLY.value:
        raise UserError("--times and --pages_only exclude each other; leave one of them out.")
    chosen = page.choose(FIGURES, _ONLY.value)
    missing = {
        name: figure
        for name, figure in chosen.items()
        if not page.is_made(name, command_of(name, size, model), out)
    }
    failed: list[str] = []
    if not _PAGES_ONLY.value:
        processes = page.at_a_time(_AT_A_TIME.value)
        for line in page.told_times(chosen, missing, size, processes):
            figure_flags.report(line)
        if _TIMES.value:
            return 0
        for folder in (out, figure_flags.work()):
            prepare_folder(folder)
        make = partial(make_figure, size=size, out=out, work=figure_flags.work(), model=model)
        failed = page.make_each(missing, make, report=figure_flags.report, processes=processes)
    written = page.write_page(FIGURES, size=size, model=model, out=out)
    return script.conclude([*failed, f"The page is {written}"], failed=bool(failed))


if __name__ == "__main__":
    figure_flags.run(main)
