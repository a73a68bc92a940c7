"""Flags of the live view, shared by the commands that make a single object."""

from typing import TYPE_CHECKING

from absl import flags

if TYPE_CHECKING:
    from ge3d_jax.runs.observers import Observer

_LIVE = flags.DEFINE_bool(
    "live",
    False,
    "Show the run in the browser while it is under way: orbit, pause, loss, edited views. Needs viser.",
)
_LIVE_PORT = flags.DEFINE_integer(
    "live_port",
    8080,
    "The port of the live view, or else the next free one; 0 for any.",
    lower_bound=0,
    upper_bound=65535,
)


def observers() -> "list[Observer]":
    """The live view, if the flags request it.

    Raises:
        UserError: viser is not installed.
    """
    if not _LIVE.value:
        return []
    from ge3d_jax.runs.live import LiveView

    return [LiveView(_LIVE_PORT.value)]
