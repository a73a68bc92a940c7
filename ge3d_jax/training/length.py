"""Rescale a run to another number of iterations: all settings tied to an iteration move along."""

from typing import Any

from ge3d_jax.core.settings import setting_names, with_overrides
from ge3d_jax.training.config import Config

# Settings that count iterations: the last part of their names, by section.
_COUNTS = {
    "guidance": ("anneal_iterations", "warm_up_iterations", "late_from"),
    "cameras": ("widen_from", "widen_every"),
    "scene": ("first", "last", "every", "reset_every", "sh_every"),
}


def lasting(config: Config, iterations: int) -> Config:
    """Return the settings of a run with `iterations` iterations whose schedules go as far as `config`'s.

    Schedules defined relative to the length of the run need no change. Settings that count iterations are
    scaled proportionally and rounded, but never to 0 if they were above it: recurring operations keep
    happening, at most once per iteration. The time that opacities take to recover from a reset depends on
    the optimizer and stays the same.

    Args:
        config: settings of a run.
        iterations: number of iterations of the new run.
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
