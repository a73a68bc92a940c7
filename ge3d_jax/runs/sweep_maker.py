"""Makes one process's objects of a sweep, batch by batch."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import jax
from jax.sharding import Mesh

from ge3d_jax.core.devices import mesh_of_all_processes
from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import clear_leftovers
from ge3d_jax.core.processes import abandon, anywhere
from ge3d_jax.diffusion.pipeline import StableDiffusion
from ge3d_jax.runs.folder import prepare_folder
from ge3d_jax.runs.observers import Observer
from ge3d_jax.runs.resume import has_state
from ge3d_jax.runs.run import Outcome, Part, perform_together
from ge3d_jax.runs.sweep_bar import SweepBar
from ge3d_jax.runs.sweep_folder import SweepFolder
from ge3d_jax.runs.sweep_plan import SweepObject
from ge3d_jax.runs.sweep_portions import make_in_portions
from ge3d_jax.training.compilation import DoesNotFit
from ge3d_jax.training.distillation import Prompted
from ge3d_jax.training.iterations import iterate
from ge3d_jax.training.step import Programs


def _status(outcome: Outcome[Any]) -> str:
    """The status of an object; one that was not written completely counts as failed and is tried again."""
    if outcome.result.diverged:
        return "diverged"
    return "failed" if outcome.unwritten else "finished"


class Maker:
    """Makes objects, batch by batch, and records the outcome of each."""

    def __init__(
        self,
        folder: SweepFolder,
        diffusion: StableDiffusion,
        at_a_time: int | None,
        preview_every: int,
        save_seconds: float | None,
        shares_views: bool,
        observers: Callable[[], Sequence[Observer]] = tuple,
    ) -> None:
        """Prepare to make objects with `make`.

        Args:
            folder: folder of the sweep.
            diffusion: the model.
            at_a_time: maximum number of seeds to compute in lockstep; None for as many as fit into memory.
            preview_every: iterations between previews; 0 for none.
            save_seconds: see `Checkpoints`.
            shares_views: whether all processes make each object together; process 0 then writes all files,
                but a process that fails records this itself.
            observers: returns the observers for an object.
        """
        self._shares_views = shares_views
        self._is_writer = not shares_views or jax.process_index() == 0
        self._folder = folder
        self._diffusion = diffusion
        self._at_a_time = at_a_time
        self._preview_every = preview_every
        self._save_seconds = save_seconds
        self._observers = observers
        self._programs: Programs = {}

    def make(self, objects: Sequence[SweepObject], *, progress: bool) -> bool:
        """Make the objects that are not finished.

        Args:
            objects: the objects, in the order of their lines.
            progress: whether to show a progress bar.

        Returns:
            Whether Ctrl-C ended it.
        """
        left = [one for one in objects if self._folder.outcome(one).status != "finished"]
        iterations = sum(one.request.settings.distilled_iterations for one in objects)
        left_iterations = sum(one.request.settings.distilled_iterations for one in left)
        with SweepBar(iterations, self._folder, enabled=progress) as bar:
            bar.skip(iterations - left_iterations)
            bar.finish()
            for _, of_line in groupby(left, key=lambda one: one.line):
                if not self._make_line(list(of_line), bar):
                    return True
        return False

    def _make_line(self, objects: list[SweepObject], bar: SweepBar) -> bool:
        """Make the objects of one line; returns False if the user stopped it."""
        context = objects[0].request.context(self._diffusion)
        portions = make_in_portions(
            objects,
            self._at_a_time or len(objects),
            lambda portion: self._make_portion(portion, context, bar),
            held=sum(leaf.nbytes for leaf in jax.tree.leaves(context)),
            say=bar.warn,
        )
        for portion, failure in portions:
            if failure is not None:
                self._record_failure(portion, failure, bar)
                if self._shares_views and not isinstance(failure, DoesNotFit):
                    # The other processes are in the middle of an iteration, waiting for this one.
                    abandon(f"The views of {portion[0].request.prompt!r} are no longer shared: {failure}")
            bar.finish()
            # If there is no room now, there may be some at the end.
            if self._is_writer:
                with contextlib.suppress(OSError):
                    self._folder.write_tables()
            if bar.is_stopping:
                return False
        return True

    def _make_portion(self, portion: Sequence[SweepObject], context: Prompted, bar: SweepBar) -> None:
        """Make some objects of one line together."""
        parts = []
        for one in portion:
            part, failure = None, None
            try:
                prepare_folder(one.request.folder)
                if self._is_writer:
                    clear_leftovers(one.request.folder)
                part = one.request.part(
                    context,
                    resume=has_state(one.request.folder),
                    preview_every=self._preview_every,
                    observers=self._observers(),
                )
            except Exception as error:
                failure = error
                self._record_failure([one], error, bar)
            # All processes must agree on whether the object can be made.
            is_lost = anywhere(failure is not None) if self._shares_views else failure is not None
            if part is not None and not is_lost:
                bar.skip(int(part.state.iteration))
                parts.append((one, part))
        # A kill may have come between the checkpoints of runs that were in lockstep.
        parts.sort(key=lambda pair: int(pair[1].state.iteration))
        for _, in_step in groupby(parts, key=lambda pair: int(pair[1].state.iteration)):
            self._make_in_step(list(in_step), bar)
            if self._shares_views:
                # Process 0 alone makes the stage after the iterations, in which it may have been stopped.
                bar.is_stopping = anywhere(bar.is_stopping)
            if bar.is_stopping:
                return

    def _make_in_step(self, parts: Sequence[tuple[SweepObject, Part[Any]]], bar: SweepBar) -> None:
        """Iterate runs that have done the same number of iterations, and write their results."""
        bar.begin(len(parts))
        mesh = mesh_of_all_processes(parts[0][1].run.parts) if self._shares_views else None
        if not self._is_writer:
            self._take_part(parts[0][1], bar, mesh)
            return
        all_ended = perform_together(
            [part for _, part in parts],
            save_seconds=self._save_seconds,
            of_all=[bar],
            say=bar.warn,
            is_stopping=lambda: bar.is_stopping,
            programs=self._programs,
            mesh=mesh,
        )
        for ended in all_ended:
            ended.save()
        for (one, _), ended in zip(parts, all_ended, strict=True):
            if ended.result.interrupted:
                bar.is_stopping = True
                continue
            begun = time.monotonic()
            try:
                outcome = ended.conclude()
            except Exception as error:
                self._record_failure([one], error, bar)
                continue
            if outcome.result.interrupted:
                # In the stage after the iterations, which begins anew from the state saved before it.
                bar.is_stopping = True
                break
            # Empty if a complete run was resumed whose metrics are lost.
            last = ended.history[-1] if ended.history else {"seconds": 0.0}
            self._folder.record(
                dataclasses.replace(
                    SweepFolder.pending(one),
                    status=_status(outcome),
                    reason=" ".join([*outcome.advice, *outcome.unwritten]),
                    iterations=outcome.result.iterations,
                    splats=int(outcome.result.object.mask.sum()),
                    loss=last.get("loss"),
                    seconds=round(last["seconds"] / len(parts) + time.monotonic() - begun, 1),
                )
            )
            bar.finish()

    def _take_part(self, part: Part[Any], bar: SweepBar, mesh: Mesh | None) -> None:
        """Participate in a run whose results process 0 writes."""
        run = part.run
        result = iterate(
            part.state,
            run.context,
            run.task,
            parts=run.parts,
            stop_at=run.stop_at,
            on_iteration=bar.on_iteration,
            programs=self._programs,
            mesh=mesh,
        )
        bar.is_stopping = result.interrupted

    def _record_failure(self, objects: Sequence[SweepObject], error: Exception, bar: SweepBar) -> None:
        """Record and print why objects failed."""
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        reason = what.strip().splitlines()[0]
        for one in objects:
            bar.warn(f"{one.request.prompt}, seed {one.request.seed}: {reason}")
            pending = SweepFolder.pending(one)
            self._folder.record(dataclasses.replace(pending, status="failed", reason=reason))
