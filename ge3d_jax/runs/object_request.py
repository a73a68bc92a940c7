"""The request for an object: its checked inputs, their description, and the run that makes it."""

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
from ge3d_jax.runs.folder import named_folder, slug, versions
from ge3d_jax.runs.model_choice import FilePath
from ge3d_jax.runs.observers import Observer, Previews
from ge3d_jax.runs.reconstruct import reconstruct, remove_reconstruction
from ge3d_jax.runs.request import (
    check_edit,
    check_given,
    check_image_size,
    check_negative_prompt,
    check_picture_size,
    check_prompt,
    check_seed,
    check_times,
)
from ge3d_jax.runs.results import remove_object, write_object
from ge3d_jax.runs.resume import check_same_run, resume_run
from ge3d_jax.runs.run import Part, Run
from ge3d_jax.scenes.base import Scene
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.training.config import Config
from ge3d_jax.training.distillation import Distillation, Prompted, begin, prompt_embeddings
from ge3d_jax.training.iterations import HostNumbers, RunResult
from ge3d_jax.viewer.turntable import Viewpoint


def _viewpoint(config: Config) -> Viewpoint:
    """The viewpoint for results: the mean of the camera ranges at the end of the run."""
    cameras = config.cameras
    return Viewpoint(
        radius=float(np.mean(cameras.radius_end)),
        polar=float(np.deg2rad(np.mean(cameras.polar_degrees))),
        fov=float(np.mean(cameras.fov_radians_end)),
    )


def _with_room_for(config: Config, start: Gaussians) -> Config:
    """Enlarge the scene of the settings so that it holds the initial splats."""
    return dataclasses.replace(config, scene=config.scene.holding(start))


def _fingerprint(start: Gaussians) -> str:
    """A hash of splats: a resumed run must find the same source that it started with."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(start):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _remove_old(folder: Path) -> None:
    remove_object(folder)
    remove_reconstruction(folder)


@dataclasses.dataclass(frozen=True)
class ObjectRequest:
    """Everything that determines an object, checked as far as possible without the model.

    Attributes:
        prompt, seed: what to generate.
        settings: settings of the run.
        usual: settings of the preset, with the chosen loss and kinds of sections.
        started: the initial splats if they come from a file; None if the settings determine them.
        edit_from: a description of the initial object; None if not given.
        folder: output folder.
        description: contents of config.json.
    """

    prompt: str
    seed: int
    settings: Config
    usual: Config
    started: Gaussians | None
    edit_from: str | None
    folder: Path
    description: dict[str, Any]

    @classmethod
    def checked(
        cls,
        asked: Asked,
        place: Path,
        *,
        out: FilePath | None,
        starts: dict[Scene, Gaussians | None] | None = None,
    ) -> "ObjectRequest":
        """Check a request.

        Args:
            asked: the caller's inputs.
            place: location of the model.
            out: output folder; None means outputs/<prompt>-<seed>.
            starts: starts that were read from files for other requests, by scene; this one's is added.

        Raises:
            UserError: an input is invalid.
        """
        prompt, settings, usual = check_given(asked.prompt), asked.settings, asked.usual
        check_prompt(prompt, place)
        if settings.prompts.negative_prompt != usual.prompts.negative_prompt:
            check_negative_prompt(settings.prompts.negative_prompt, place)
        check_seed(asked.seed)
        check_image_size(settings, place)
        settings.scene.check_devices()
        settings.scene.check_start(prompt, check_prompt)
        starts = {} if starts is None else starts
        if settings.scene not in starts:
            starts[settings.scene] = settings.scene.from_file()
        started = starts[settings.scene]
        check_edit(settings, asked.edit_from, place, has_start=started is not None)
        if started is not None:
            settings, usual = _with_room_for(settings, started), _with_room_for(usual, started)
        folder = named_folder(out if out is not None else Path("outputs") / f"{slug(prompt)}-{asked.seed}")
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
        """Whether there is a state to resume from; see `check_same_run`."""
        return check_same_run(self.folder, self.description, {"settings": to_tree(self.usual)}, say=say)

    def check_model(self, diffusion: StableDiffusion) -> None:
        """Check that the settings are compatible with the model. Raises UserError."""
        check_picture_size(self.settings, diffusion)
        check_times(self.settings, diffusion.schedule.steps)

    def context(self, diffusion: StableDiffusion) -> Prompted:
        """The model and the prompt, shared by all runs with the same prompt and settings."""
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
        """The run that makes the object; its written result is the turntable, uint8 (T, H, W, 3).

        Args:
            context: from `context`.
            resume: whether to resume from the state in the folder.
            preview_every: iterations between the images in previews/; 0 for none.
            observers: additional observers.
            progress: whether the reconstruction stage shows a progress bar.
            mesh: whether to also write a mesh of the object.

        Raises:
            UserError: there is no state to resume from, or it has another shape.
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
            parts=self.settings.parts,
            history=history,
            is_new=not resume,
            stop_at=settings.distilled_iterations,
        )
        viewpoint = _viewpoint(settings)

        def then(result: RunResult, attempts: Attempts) -> RunResult:
            if settings.reconstruction.start is None:
                return result
            # The scene's buffers have grown during the run.
            grown = dataclasses.replace(task, config=dataclasses.replace(settings, scene=result.task.scene))
            return reconstruct(folder, grown, context, result, attempts, progress=progress)

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
