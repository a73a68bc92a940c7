"""Runs that are inspected along the way, with a record of each look, for figures on the course of a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import Draws
from ge3d_jax.core.settings import to_tree
from ge3d_jax.runs.asked import model_by_preset
from ge3d_jax.runs.figures.base import Record, remember
from ge3d_jax.runs.generate import generate
from ge3d_jax.runs.made_objects import model_fingerprint
from ge3d_jax.runs.model_choice import ModelChoice
from ge3d_jax.runs.observers import Observer, Watched
from ge3d_jax.runs.request import check_prompt
from ge3d_jax.training.config import Config
from ge3d_jax.training.distillation import Distillation, Prompted
from ge3d_jax.training.iterations import HostNumbers
from ge3d_jax.training.presets import configured
from ge3d_jax.training.state import TrainState

# (task, state, context, random draws of the iteration that follows the state) → record to keep
Look = Callable[[Distillation, TrainState, Prompted, Draws], Record]


class _Looking(Observer):
    """An observer that inspects some iterations of a run and keeps a record of each."""

    def __init__(
        self,
        paths: Mapping[int, Path],
        asked: Mapping[str, Any],
        look: Look,
        report: Callable[[str], None],
    ) -> None:
        """Initialize the observer.

        Args:
            paths: number of iterations done → path of the record.
            asked: everything that the run depends on.
            look: computes the record to keep.
            report: called with a message for each look.
        """
        self._paths, self._asked, self._look, self._report = paths, asked, look, report

    def on_run(self, watched: Watched) -> None:
        """Remember the task and the model."""
        self._task: Distillation = watched.run.task  # type: ignore[assignment]
        self._context: Prompted = watched.run.context

    def on_iteration(self, done: int, numbers: HostNumbers, state: TrainState) -> bool:
        """Inspect the state if a look is due; a record from an earlier run is the same and is reused."""
        if done in self._paths:
            drawn = self._task.draw(state, self._context)
            look = partial(self._look, self._task, state, self._context, drawn)
            remember(self._paths[done], self._asked, look)
            self._report(f"iteration {done} of {self._task.iterations}")
        return False


@dataclass(frozen=True)
class ObservedRun:
    """A run that is inspected along the way.

    Attributes:
        prompt, seed, preset, overrides: the run; see `generate`.
        looks: number of looks, evenly spaced from the first iteration to the last.
    """

    prompt: str
    seed: int
    preset: str
    overrides: Mapping[str, Any]
    looks: int

    @property
    def config(self) -> Config:
        """The run's settings. Raises UserError if they are invalid."""
        return configured(self.preset, overrides=self.overrides)

    @property
    def iterations(self) -> list[int]:
        """The iterations after which the run is inspected."""
        return np.unique(np.linspace(1, self.config.iterations, self.looks).round().astype(int)).tolist()

    def check(self, model: str | None) -> None:
        """Check that the run is possible. Raises UserError."""
        check_prompt(self.prompt, self._choice(model).check())

    def _choice(self, model: str | None) -> ModelChoice:
        return model_by_preset(self.preset, model)

    def observe(
        self,
        folder: Path,
        look: Look,
        *,
        about: Mapping[str, Any],
        model: str | None,
        report: Callable[[str], None],
    ) -> dict[int, Record]:
        """Perform the run and its looks.

        Args:
            folder: folder of the run and its records.
            look: computes the record to keep.
            about: what the record depends on apart from the run, as JSON-compatible values.
            model: a model to use instead of the preset's.
            report: called with progress messages.

        Returns:
            Number of iterations done → record.

        Raises:
            UserError: `generate` rejects an input, or the run diverged.
            KeyboardInterrupt: the user stopped it.
        """
        asked = {
            "prompt": self.prompt,
            "seed": self.seed,
            "settings": to_tree(self.config),
            "model": model_fingerprint(self._choice(model).check()),
            "about": dict(about),
        }
        paths = {done: folder / f"iteration-{done:05d}" for done in self.iterations}
        # A finished run cannot be resumed, so if a record is still missing, the run starts over.
        for goes_on in (True, False):
            if all(path.with_name(f"{path.name}.json").is_file() for path in paths.values()):
                break
            result = generate(
                self.prompt,
                preset=self.preset,
                seed=self.seed,
                model=model,
                out=folder / "run",
                overrides=self.overrides,
                preview_every=0,
                resume=goes_on,
                progress=False,
                observers=[_Looking(paths, asked, look, report)],
            )
            if result.interrupted:
                raise KeyboardInterrupt
            if result.diverged:
                raise UserError(f'No object for "{self.prompt}": {result.advice[0]}')

        def missing() -> Record:
            raise RuntimeError(f"The run in {folder} was not inspected as expected.")

        return {done: remember(path, asked, missing) for done, path in paths.items()}


@dataclass(frozen=True)
class ObservedRuns:
    """Runs of several prompts that are inspected in the same way.

    Attributes:
        preset: the preset that the settings are based on.
        prompts: prompts, one run each.
        seed: random seed of all runs.
        looks: number of looks at each run.
        overrides: settings to change.
    """

    preset: str
    prompts: tuple[str, ...]
    seed: int = 0
    looks: int = 5
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def run(self, prompt: str) -> ObservedRun:
        """The run of a prompt."""
        return ObservedRun(prompt, self.seed, self.preset, self.overrides, self.looks)
