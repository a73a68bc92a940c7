"""The same run over another number of iterations: all that is tied to an iteration moves with the end."""

from typing import Any

from ge3d_jax.core.settings import setting_names, with_overrides
from ge3d_jax.training.config import Config

# The last parts of names of settings that count iterations, by the section they stand in.
_COUNTS = {
    "guidance": ("anneal_iterations", "warm_up_iterations", "late_from"),
    "cameras": ("widen_from", "widen_every"),
    "scene": ("first", "last", "every", "reset_every", "sh_every"),
}


def lasting(config: Config, iterations: int) -> Config:
    """The settings of a run of so many iterations, whose schedules come as far as those of `config`.

    What goes by the share of the run that is done does so by itself. Settings that count iterations keep
    their share of the run, rounded; but what happens at all goes on happening, at most once an iteration.
    The time in which opacities come back from a reset is the optimizer's, and stays.

    Args:
        config: of a run.
        iterations: of the other one.
    """
    factor = iterations / config.iterations
    changes: dict[str, Any] = {"iterations": iterations}
    for name in setting_names(config):
        section, leaf = name.partition(".")[0], name.rpartition(".")[2]
        if leaf in _COUNTS.get(section, ()):
            value = _value(config, name)
            if value:
                changes[name] = max(1, round(factor * value))
    return with_overrides(config, changes)


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config
