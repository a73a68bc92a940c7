"""Timed generation of objects, one after the other in this process, excluding compilation time.

Nothing is written. All objects with the same settings share one compiled program.
"""

import dataclasses
import time
from collections.abc import Collection
from dataclasses import dataclass

import jax
import numpy as np

from ge3d_jax.core.devices import batch_mesh, place
from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.pipeline import StableDiffusion
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.training.config import Config
from ge3d_jax.training.distillation import Distillation, Prompted, begin, prompt_embeddings
from ge3d_jax.training.iterations import HostNumbers, follow_schedule, iterate
from ge3d_jax.training.length import lasting
from ge3d_jax.training.state import TrainState
from ge3d_jax.training.step import Programs

# Iterations of the shortened run that measures a loss's speed. The first and last ones may differ in cost.
REHEARSED = 20


@dataclass(frozen=True)
class Moment:
    """An intermediate state of an object.

    Attributes:
        iteration: number of iterations done.
        seconds: time taken so far, excluding compilation.
        gaussians: the object, on the host.
    """

    iteration: int
    seconds: float
    gaussians: Gaussians


@dataclass(frozen=True)
class Timed:
    """The result of a run, with its duration.

    Attributes:
        gaussians: the object, on the host.
        iterations: number of iterations done.
        seconds: time taken, excluding compilation and the handling of `moments`.
        diverged: whether the run ended early because its gradients were not finite.
        moments: the object after each of the requested iterations.
    """

    gaussians: Gaussians
    iterations: int
    seconds: float
    diverged: bool
    moments: tuple[Moment, ...] = ()


@dataclass(frozen=True)
class Pace:
    """The speed of a loss.

    Attributes:
        seconds_per_iteration: mean over a complete shortened run, excluding compilation.
        iterations: number of iterations that fit the budget.
    """

    seconds_per_iteration: float
    iterations: int


class Studio:
    """Makes objects with one diffusion model, and caches the compiled programs for the current settings."""

    def __init__(self, diffusion: StableDiffusion) -> None:
        """Initialize with a model."""
        self._diffusion = diffusion
        self._settings: Config | None = None
        self._programs: Programs = {}

    def make(self, prompt: str, seed: int, settings: Config, *, moments: Collection[int] = ()) -> Timed:
        """Make an object.

        Args:
            prompt: what to generate.
            seed: random seed; gives the same object as `generate`.
            settings: settings of the run, without a reconstruction stage.
            moments: iterations after which to record the object.

        Raises:
            UserError: the settings include a reconstruction stage or do not fit the device.
            KeyboardInterrupt: the user stopped it.
        """
        if settings.reconstruction.start is not None:
            raise UserError(
                "The iterations of the reconstruction stage cannot be timed separately; leave "
                "reconstruction.start out."
            )
        task = Distillation(settings)
        context = Prompted(self._diffusion, prompt_embeddings(settings, self._diffusion, prompt))
        asked = dataclasses.replace(settings, scene=settings.scene.asked_for(prompt))
        state = begin(asked, self._diffusion, jax.random.key(seed), start=settings.scene.from_file())
        if self._settings != settings:
            # Keep only one, because compiled iterations take a lot of memory.
            self._programs, self._settings = {}, settings
            self._compile(state, context, task)
        known = set(self._programs)
        kept: list[Moment] = []
        aside, begun = 0.0, time.monotonic()

        def elapsed() -> float:
            compiling = sum(self._programs[key][1].seconds for key in self._programs if key not in known)
            return time.monotonic() - begun - compiling - aside

        def on_iteration(done: int, numbers: HostNumbers, state: TrainState) -> None:
            nonlocal aside
            if done in moments:
                seconds, left = elapsed(), time.monotonic()
                kept.append(Moment(done, seconds, _on_host(task.scene.shown(state.scene, done))))
                aside += time.monotonic() - left

        result = iterate(
            state, context, task, parts=settings.parts, on_iteration=on_iteration, programs=self._programs
        )
        jax.block_until_ready(result.state.scene)
        seconds = elapsed()
        if result.interrupted:
            raise KeyboardInterrupt
        return Timed(_on_host(result.object), result.iterations, seconds, result.diverged, tuple(kept))

    def _compile(self, state: TrainState, context: Prompted, task: Distillation) -> None:
        """Compile an iteration and the scene's scheduled operations."""
        iterate(state, context, task, parts=task.config.parts, stop_at=1, programs=self._programs)
        # Place arrays as in the run, to avoid compiling everything again.
        mesh = batch_mesh(task.config.parts, copied=context)
        state = place(jax.tree.map(lambda leaf: leaf.copy(), state), mesh)
        for done in range(1, task.iterations + 1):
            state, _ = follow_schedule(state, done, task)
        jax.block_until_ready(state.scene)

    def pace(self, prompt: str, settings: Config, budget: float) -> Pace:
        """Measure how many iterations fit a time budget, with a shortened run that completes all schedules.

        Args:
            prompt: what to generate in the meantime.
            settings: settings of the run.
            budget: time budget, seconds.

        Raises:
            UserError: not even one iteration fits; see `make` for other reasons.
        """
        timed = self.make(prompt, 0, lasting(settings, REHEARSED))
        each = timed.seconds / timed.iterations
        if each > budget:
            raise UserError(
                f"A budget of {budget:g} seconds is too short: one iteration takes {each:.2g} here; give at "
                "least as much."
            )
        return Pace(each, int(budget / each))


def _on_host(gaussians: Gaussians) -> Gaussians:
    """Copy to the host, because the next iteration reuses the memory of the arrays."""
    return jax.tree.map(np.array, gaussians)
