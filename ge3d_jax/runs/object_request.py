"""An object that is asked for: its inputs checked and described, and the run that makes it."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ge3d_jax.core.settings import kind_of, to_tree
from ge3d_jax.diffusion.pipeline import StableDiffusion
from ge3d_jax.runs.asked import Asked
from ge3d_jax.runs.attempts import Attempts
from ge3d_jax.runs.folder import slug, versions
from ge3d_jax.runs.model_choice import FilePath
from ge3d_jax.runs.observers import Observer, Previews
from ge3d_jax.runs.reconstruct import reconstruct, remove_reconstruction
from ge3d_jax.runs.request import (
    check_edit,
    check_given,
    check_image_size,
    check_picture_size,
    check_prompt,
    check_seed,
    check_times,
)
from ge3d_jax.runs.results import remove_object, write_object
from ge3d_jax.runs.resume import check_same_run, resume_run
from ge3d_jax.runs.run import Part, Run
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.training.config import Config
from ge3d_jax.training.distillation import Distillation, Prompted, begin, prompt_embeddings
from ge3d_jax.training.iterations import HostNumbers, RunResult
from ge3d_jax.viewer.turntable import Viewpoint


def _viewpoint(config: Config) -> Viewpoint:
    """Where to look from: the middle of the cameras that the run ends with."""
    cameras = config.cameras
    return Viewpoint(
        radius=float(np.mean(cameras.radius_end)),
        polar=float(np.deg2rad(np.mean(cameras.polar_degrees))),
        fov=float(np.mean(cameras.fov_radians_end)),
    )


def _with_room_for(config: Config, start: Gaussians) -> Config:
    """The settings with a scene that holds what it begins with."""
    return dataclasses.replace(config, scene=config.scene.holding(start))


def _fingerprint(start: Gaussians) -> str:
    """What tells splats from others: a run that goes on must find the source that it began with."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(start):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _remove_old(folder: Path) -> None:
    remove_object(folder)
    remove_reconstruction(folder)


@dataclasses.dataclass(frozen=True)
class ObjectRequest:
    """All that decides an object, as far as it can be checked without the model.

    Attributes:
        prompt, seed: what to make.
        settings: of the run.
        usual: those of the preset, with the loss and the kinds of sections that were chosen.
        started: what the run begins with where that is a file, None for what the settings say.
        edit_from: what it begins with shows; None where that is not told.
        folder: where it is written.
        description: what config.json says of it.
    """

    prompt: str
    seed: int
    settings: Config
    usual: Config
    started: Gaussians | None
    edit_from: str | None
    folder: Path
    description: dict[str, Any]

    @property
    def parts(self) -> int:
        """Into how many parts the views can be divided that go through the networks at a time."""
        return self.settings.views_per_pass // self.settings.guidance.views_together

    @classmethod
    def checked(cls, asked: Asked, place: Path, *, out: FilePath | None) -> "ObjectRequest":
        """What was asked for, if it can be made.

        Args:
            asked: by the caller.
            place: where the model is.
            out: folder to write to; None is outputs/<prompt>-<seed>.

        Raises:
            UserError: an input that cannot be used.
        """
        prompt, settings, usual = check_given(asked.prompt), asked.settings, asked.usual
        check_prompt(prompt, place)
        check_seed(asked.seed)
        check_image_size(settings, place)
        settings.scene.check_devices()
        settings.scene.check_start(prompt, check_prompt)
        started = settings.scene.from_file()
        check_edit(settings, asked.edit_from, place, has_start=started is not None)
        if started is not None:
            settings, usual = _with_room_for(settings, started), _with_room_for(usual, started)
        folder = Path(out if out is not None else Path("outputs") / f"{slug(prompt)}-{asked.seed}")
        description = {
            "prompt": prompt,
            "seed": asked.seed,
            "preset": asked.preset,
            "start": str(asked.start) if asked.start is not None else None,
            **({} if asked.edit_from is None else {"edit_from": asked.edit_from}),
            **(
                {"start_sha256": _fingerprint(started)}
                if started is not None and settings.guidance.needs_source_views
                else {}
            ),
            **asked.model.describe(),
            "settings": to_tree(settings),
            "versions": versions(),
        }
        return cls(prompt, asked.seed, settings, usual, started, asked.edit_from, folder, description)

    def check_resumable(self, *, say: Callable[[str], None]) -> bool:
        """Whether there is a state to go on from; see `check_same_run`."""
        return check_same_run(self.folder, self.description, {"settings": to_tree(self.usual)}, say=say)

    def check_model(self, diffusion: StableDiffusion) -> None:
        """Refuse settings that do not go with the model. Raises UserError."""
        check_picture_size(self.settings, diffusion)
        check_times(self.settings, diffusion.schedule.steps)

    def context(self, diffusion: StableDiffusion) -> Prompted:
        """The model and the prompt, for the run and others of the same prompt and settings."""
        embeddings = prompt_embeddings(self.settings, diffusion, self.prompt, self.edit_from)
        source = None
        if self.settings.guidance.needs_source_views:
            source = self.settings.scene.begin(jax.random.key(0), self.started)
        return Prompted(diffusion, embeddings, source)

    def part(
        self,
        context: Prompted,
        *,
        resume: bool,
        preview_every: int,
        observers: Sequence[Observer] = (),
        progress: bool = False,
        mesh: bool = False,
    ) -> Part[np.ndarray]:
        """The run that makes the object; it writes the turntable's frames, uint8 (T, H, W, 3).

        Args:
            context: as `context` gives it.
            resume: whether it goes on with the state in the folder.
            preview_every: iterations between pictures in previews/; 0 for none.
            observers: more to tell of each iteration.
            progress: whether the reconstructive stage shows a bar.
            mesh: whether to write a mesh of the object, too.

        Raises:
            UserError: no state there, or one of another shape.
        """
        settings, folder = self.settings, self.folder
        task = Distillation(settings)
        asked = dataclasses.replace(settings, scene=settings.scene.asked_for(self.prompt))
        state = begin(asked, context.model, jax.random.key(self.seed), start=self.started)
        history: list[HostNumbers] = []
        if resume:
            state, history = resume_run(folder, state, settings.scene, last=settings.distilled_iterations)
        run = Run(
            folder=folder,
            description=self.description,
            task=task,
            context=context,
            parts=self.parts,
            history=history,
            is_new=not resume,
            stop_at=settings.distilled_iterations,
        )
        viewpoint = _viewpoint(settings)

        def then(result: RunResult) -> RunResult:
            if settings.reconstruction.start is None:
                return result
            # The scene's buffers have grown with the run.
            grown = dataclasses.replace(task, config=dataclasses.replace(settings, scene=result.task.scene))
            return reconstruct(folder, grown, context, result, progress=progress)

        def write(result: RunResult, attempts: Attempts) -> np.ndarray:
            numbers: dict[str, str | int | float] = {
                "seed": self.seed,
                "iterations": result.iterations,
                "loss": kind_of(settings, "guidance"),
            }
            return write_object(
                folder,
                result.object,
                title=self.prompt,
                viewpoint=viewpoint,
                attempts=attempts,
                numbers=numbers,
                mesh=mesh,
            )

        attempts = Attempts()
        previews = Previews(folder, settings.scene, viewpoint, every=preview_every, attempts=attempts)
        return Part(run, state, [previews, *observers], _remove_old, write, then, attempts)
