"""The flags shared by the scripts in experiments/figures, and the body of such a script."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from ge3d_jax.cli import script

if TYPE_CHECKING:
    from ge3d_jax.runs.figures.making import Changed

_SIZES = ("small", "full", "paper")
# Results at full size are committed; those of other sizes, models, or settings must not overwrite them.
_COMMITTED, _OTHERS = Path("docs/results"), Path("outputs/figures")

SIZE = flags.DEFINE_enum(
    "size",
    "full",
    _SIZES,
    "A first look on two CPU cores, eight hours on them for all figures, or the paper's scale.",
)
_OUT = flags.DEFINE_string(
    "out",
    None,
    f"Folder of tables and pictures; by default {_COMMITTED}, or {_OTHERS}/SIZE if anything is not as there.",
)
_WORK = flags.DEFINE_string(
    "work", str(_OTHERS), "Folder of objects and records; whatever is there is not made again."
)
MODEL = flags.DEFINE_string("model", None, "A model to use instead of the size's own.")


def out(*, is_changed: bool = False) -> Path:
    """The folder for tables and images.

    Args:
        is_changed: whether the script's own flags change what is made.

    Raises:
        UserError: the given name is empty.
    """
    from ge3d_jax.runs.folder import named_folder

    if _OUT.value is None:
        is_committed = SIZE.value == "full" and MODEL.value is None and not is_changed
        return _COMMITTED if is_committed else _OTHERS / SIZE.value
    return named_folder(_OUT.value)


def work() -> Path:
    """The folder for objects and records. Raises UserError if its name is empty."""
    from ge3d_jax.runs.folder import named_folder

    return named_folder(_WORK.value, "work folder")


def report(line: str) -> None:
    """Print a line and flush it, so that it also appears immediately in a file."""
    print(line, flush=True)


def run(main: Callable[[], int | None]) -> None:
    """Run the calling script with these flags in addition to its own, and its docstring in --help."""
    for flag in flags.FLAGS.get_key_flags_for_module(__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    script.run(main)


def run_figure(name: str, changed: Callable[[str], "Changed | None"] | None = None) -> None:
    """Run the script of one figure, experiments/figures/NAME.py.

    Args:
        name: name of the figure, a key of FIGURES.
        changed: maps the size to the changes made by the script's own flags; None if there are no changes.
    """

    def main() -> None:
        from ge3d_jax.runs.figures.making import make_figure

        changes = None if changed is None else changed(SIZE.value)
        make_figure(
            name,
            size=SIZE.value,
            out=out(is_changed=changes is not None),
            work=work(),
            model=MODEL.value,
            report=report,
            changed=changes,
        )

    run(main)
