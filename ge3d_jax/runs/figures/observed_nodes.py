"""Runs whose time nodes are looked at on the way, for the figures of GE3D's trajectories.

Symbols: n, nodes; B, views; x_{t_i}, x̂_{t_i}, states of the noising and of the denoising trajectory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import Draws
from ge3d_jax.core.settings import to_tree
from ge3d_jax.diffusion.pipeline import with_attention_chunk
from ge3d_jax.guidance.base import Progress
from ge3d_jax.guidance.ge3d import GE3D
from ge3d_jax.runs.evaluate import model_fingerprint
from ge3d_jax.runs.figures.base import Record, remember
from ge3d_jax.runs.generate import generate
from ge3d_jax.runs.model_choice import ModelChoice
from ge3d_jax.runs.observers import Observer, Watched
from ge3d_jax.runs.request import check_prompt
from ge3d_jax.toybox import MODELS
from ge3d_jax.training.config import Config
from ge3d_jax.training.distillation import Distillation, Prompted
from ge3d_jax.training.iterations import HostNumbers
from ge3d_jax.training.presets import configured
from ge3d_jax.training.state import TrainState

# (task, state, context, what chance decides in the iteration that the state stands before) → what to keep
Look = Callable[[Distillation, TrainState, Prompted, Draws], Record]


@dataclass(frozen=True)
class Trajectories:
    """Both trajectories of an iteration.

    Attributes:
        images: (B, H, W, 3), what they begin with.
        latents: (B, h, w, C), z, which is the noising side of node 0.
        noised, denoised: (n + 1, B, h, w, C), x_{t_i} and x̂_{t_i}; beyond the active nodes the top repeats.
        times: (n + 1,), t_i.
        active: how many jumps were made.
        weights: (n,), ω_i.
    """

    images: np.ndarray
    latents: np.ndarray
    noised: np.ndarray
    denoised: np.ndarray
    times: np.ndarray
    active: int
    weights: np.ndarray

    @property
    def differences(self) -> np.ndarray:
        """x_{t_i} − x̂_{t_i} (n, B, h, w, C), 0 from the top node on."""
        return np.concatenate([self.latents[None], self.noised[1:-1]]) - self.denoised[:-1]


def loss_of(config: Config) -> GE3D:
    """The loss of a run with nodes. Raises UserError where it has none."""
    if not isinstance(config.guidance, GE3D):
        raise UserError("Only runs with the loss ge3d have nodes to look at; leave the setting guidance out.")
    return config.guidance


@partial(jax.jit, static_argnames="task")
def _trajectories(
    scene: Any, iteration: jax.Array, context: Prompted, drawn: Draws, *, task: Distillation
) -> tuple[jax.Array, ...]:
    views = drawn.per_view["azimuth"].shape[0]
    model = with_attention_chunk(context.model, task.config.attention_chunk)
    progress = Progress(iteration, task.iterations)
    seen = task.see(scene, task.scene.perturbations(scene, views), context, drawn, progress)
    drawn_by_loss = Draws(drawn.shared["loss"], drawn.per_view["loss"])
    noised, denoised = loss_of(task.config).trajectories(
        seen.latents, seen.text, drawn_by_loss, task.denoiser(model, views)
    )
    needed, overflow = jnp.max(seen.renders.needed), jnp.max(seen.renders.overflow)
    return seen.images, seen.latents, noised, denoised, needed, overflow


def find_trajectories(task: Distillation, state: TrainState, context: Prompted, drawn: Draws) -> Trajectories:
    """The trajectories of the iteration that a state stands before.

    Args:
        task: of the run.
        state: of the run; it stays as it is.
        context: the model and the prompt.
        drawn: as `task.draw` gives it, or with other cameras.
    """
    loss, active = loss_of(task.config), drawn.shared["loss"]["active"]
    while True:
        *found, needed, overflow = _trajectories(state.scene, state.iteration, context, drawn, task=task)
        if int(overflow) == 0:
            break
        task = task.grown(int(needed))
    images, latents, noised, denoised = map(np.asarray, found)
    weights = loss.weights(Progress(state.iteration, task.iterations), active)
    return Trajectories(
        images=images,
        latents=latents,
        noised=noised,
        denoised=denoised,
        times=np.asarray(drawn.shared["loss"]["node_times"]),
        active=int(active),
        weights=np.asarray(weights),
    )


class NodeObserver(Observer):
    """Looks at some iterations of a run, and keeps what is found in a record each."""

    def __init__(
        self,
        paths: Mapping[int, Path],
        asked: Mapping[str, Any],
        look: Look,
        report: Callable[[str], None],
    ) -> None:
        """Look after so many iterations.

        Args:
            paths: where the records are kept, by the number of iterations done.
            asked: all that the run depends on.
            look: what to keep.
            report: told of each.
        """
        self._paths, self._asked, self._look, self._report = paths, asked, look, report

    def on_run(self, watched: Watched) -> None:
        """Remember the task and the model."""
        self._task: Distillation = watched.run.task  # type: ignore[assignment]
        self._context: Prompted = watched.run.context

    def on_iteration(self, done: int, numbers: HostNumbers, state: TrainState) -> bool:
        """Look, if it is time; what an earlier run kept is the same."""
        if done in self._paths:
            drawn = self._task.draw(state, self._context)
            look = partial(self._look, self._task, state, self._context, drawn)
            remember(self._paths[done], self._asked, look)
            self._report(f"iteration {done} of {self._task.iterations}")
        return False


@dataclass(frozen=True)
class ObservedRun:
    """A run that is looked at.

    Attributes:
        prompt, seed, preset, overrides: what is run; see `generate`.
        every: iterations from one look to the next; the first is at the first iteration.
    """

    prompt: str
    seed: int
    preset: str
    overrides: Mapping[str, Any]
    every: int

    @property
    def config(self) -> Config:
        """Its settings. Raises UserError."""
        return configured(self.preset, overrides=self.overrides)

    @property
    def iterations(self) -> list[int]:
        """After how many iterations it is looked at."""
        total = self.config.iterations
        return sorted({1, *range(self.every, total, self.every), total})

    def check(self, model: str | None) -> None:
        """Refuse what cannot be run. Raises UserError."""
        loss_of(self.config)
        check_prompt(self.prompt, self._choice(model).check())

    def _choice(self, model: str | None) -> ModelChoice:
        return ModelChoice.of(model or (self.preset if self.preset in MODELS else None))

    def observe(
        self, folder: Path, look: Look, *, model: str | None, report: Callable[[str], None]
    ) -> dict[int, Record]:
        """Run, and look.

        Args:
            folder: of the run and its records.
            look: what to keep.
            model: another one than the preset's.
            report: told of the progress.

        Returns:
            The records by the number of iterations done.

        Raises:
            UserError: what `generate` refuses, or a run that diverged.
            KeyboardInterrupt: the user stopped it.
        """
        asked = {
            "prompt": self.prompt,
            "seed": self.seed,
            "settings": to_tree(self.config),
            "model": model_fingerprint(self._choice(model).check()),
        }
        paths = {done: folder / f"iteration-{done:05d}" for done in self.iterations}
        # A run that is through is not gone on with: where a record is missing all the same it begins anew.
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
                observers=[NodeObserver(paths, asked, look, report)],
            )
            if result.interrupted:
                raise KeyboardInterrupt
            if result.diverged:
                raise UserError(f'No object for "{self.prompt}": {result.advice[0]}')

        def missing() -> Record:
            raise RuntimeError(f"The run in {folder} was not looked at as expected.")

        return {done: remember(path, asked, missing) for done, path in paths.items()}
