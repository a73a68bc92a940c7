"""Flags for a run's observers and output, shared by all commands that start a run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from ge3d_jax.cli import script

if TYPE_CHECKING:
    from ge3d_jax.runs.observers import Observer

_QUIET = flags.DEFINE_bool("quiet", False, "Print only what goes wrong: no bar, and nothing at the end.")
_TENSORBOARD = flags.DEFINE_bool(
    "tensorboard", False, "Also write the numbers of every iteration for TensorBoard. Needs tensorboardX."
)


def quiet() -> bool:
    """Whether to print only problems."""
    return _QUIET.value


def say(*sentences: str) -> None:
    """Print lines unless --quiet was given."""
    if not quiet():
        print(*sentences, sep="\n")


def conclude(advice: Sequence[str], *, failed: bool, unwritten: Sequence[str] = ()) -> int:
    """Call `script.conclude`, without advice if --quiet was given and nothing went wrong."""
    is_silent = quiet() and not failed and not unwritten
    return script.conclude([] if is_silent else advice, failed=failed, unwritten=unwritten)


def observers() -> "list[Observer]":
    """The observers of one run that the flags request.

    Raises:
        UserError: a package that one of them needs is not installed.
    """
    from ge3d_jax.runs.tensorboard import TensorBoard

    return [TensorBoard()] if _TENSORBOARD.value else []
