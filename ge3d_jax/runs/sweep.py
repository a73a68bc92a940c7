"""Many objects in one call: prompts × seeds, the seeds of a prompt as one program."""

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from ge3d_jax.core.caching import keep_compiled_code
from ge3d_jax.core.devices import mesh_of_all_processes
from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import clear_leftovers
from ge3d_jax.core.processes import Cluster, abandon, anywhere, check_same, join, leave
from ge3d_jax.core.settings import to_tree
from ge3d_jax.diffusion.pipeline import StableDiffusion
from ge3d_jax.formats.splats import load_splats
from ge3d_jax.runs.asked import Asked, asked_by_preset
from ge3d_jax.runs.folder import prepare_folder, slug
from ge3d_jax.runs.object_request import ObjectRequest
from ge3d_jax.runs.observers import SAVE_SECONDS
from ge3d_jax.runs.resume import check_described, has_state
from ge3d_jax.runs.run import Outcome, Part, perform_together
from ge3d_jax.runs.sweep_bar import SweepBar
from ge3d_jax.runs.sweep_folder import SweepFolder, SweepOutcome
from ge3d_jax.runs.sweep_plan import Line, SweepObject, check_distinct, read_lines, share_of
from ge3d_jax.runs.sweep_portions import make_in_portions
from ge3d_jax.training.compilation import DoesNotFit
from ge3d_jax.training.distillation import Prompted
from ge3d_jax.training.iterations import iterate
from ge3d_jax.training.step import Programs

# What several processes divide among them.
SHARES = ("objects", "views")
_OF_LINE = ("guidance", "density")


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """What came of a sweep.

    Attributes:
        folder: where everything was written.
        outcomes: what came of each object, in their order, also of those that other processes made.
        interrupted: whether Ctrl-C ended it.
    """

    folder: Path
    outcomes: list[SweepOutcome]
    interrupted: bool

    @property
    def is_complete(self) -> bool:
        """Whether every object is finished."""
        return all(outcome.status == "finished" for outcome in self.outcomes)


def sweep(
    prompts: str | Sequence[str] | None = None,
    *,
    seeds: Iterable[int] = (0,),
    file: str | os.PathLike[str] | None = None,
    preset: str | None = None,
    guidance: str | None = None,
    density: str | None = None,
    model: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    start: str | os.PathLike[str] | None = None,
    reconstruct_from: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    at_a_time: int | None = None,
    preview_every: int = 25,
    save_seconds: float | None = SAVE_SECONDS,
    resume: bool = False,
    progress: bool = True,
    dtype: str | None = None,
    loras: Sequence[tuple[str | os.PathLike[str], float]] | None = None,
    textual_inversions: Sequence[str | os.PathLike[str]] | None = None,
    cluster: Cluster | None = None,
    share: str = "objects",
) -> SweepResult:
    """Make an object of every prompt with every seed, and a page that shows them all.

    The seeds of a prompt are computed together, as many at a time as fit the memory, and divided among the
    devices. They look at the same times (the setting `shared_nodes`), so that seed s gives what `generate`
    gives for it with that setting, but for rounding; where one is computed by itself, byte by byte.

    Args:
        prompts: what to make; None for those of `file`, or for the preset's.
        seeds: one object of each prompt for each.
        file: prompts one a line, with settings after a tab; see `read_lines`.
        preset, guidance, density, model, start, reconstruct_from, overrides, dtype, loras,
            textual_inversions: as for `generate`, of all objects.
        out: folder; None is outputs/sweep-<first prompt, or the file's name>. Each object has a folder in
            it, as `generate` writes it; `outcomes/` has what came of each.
        at_a_time: bounds how many seeds are computed together; None for what fits the memory.
        preview_every, save_seconds: as for `generate`.
        resume: go on with the sweep in the folder where there is one. Finished objects stay as they are;
            those that failed are tried again; there may be more prompts and seeds than before.
        progress: whether to show a bar.
        cluster: how to find the processes that share the work; None for this one alone.
        share: what they divide, one of SHARES: "objects", or "views", the views of each iteration of one
            object after the other. Process 0 writes all of these; what stops one process stops the others.

    Returns:
        SweepResult. An object that fails does not stop the others; its outcome has the reason.

    Raises:
        UserError: an input that cannot be used; nothing has run then.
    """
    keep_compiled_code()
    lines, seeds = _lines(prompts, file), list(seeds)
    if not seeds:
        raise UserError("There are no seeds; give some, as 0 to 7.")
    if at_a_time is not None and at_a_time < 1:
        raise UserError(f"at_a_time is {at_a_time}; give at least 1.")
    if share not in SHARES:
        raise UserError(f"{share!r} cannot be shared; choose one of {', '.join(SHARES)}.")
    if share == "views" and (at_a_time or 1) > 1:
        raise UserError("Where views are shared one object is made after the other; leave at_a_time out.")
    of_all = {"shared_nodes": True} | dict(overrides or {})
    if reconstruct_from is not None:
        of_all["reconstruction.start"] = reconstruct_from
    if cluster is not None:
        join(cluster)
    asked = [
        _asked(line, preset, guidance, density, of_all).but(
            prompt=line.prompt,
            model=model,
            start=start,
            dtype=dtype,
            loras=loras,
            textual_inversions=textual_inversions,
        )
        for line in lines
    ]
    place = asked[0].model.check()
    path = Path(out) if out is not None else Path("outputs") / _default_name(asked[0], file)
    started = load_splats(start) if start is not None else None
    objects = [
        _object(index, line, one.but(seed=seed), place, path, started)
        for index, (line, one) in enumerate(zip(lines, asked, strict=True))
        for seed in seeds
    ]
    check_distinct(objects, lines)
    process, processes = jax.process_index(), jax.process_count()
    shares_views = share == "views" and processes > 1
    if share == "views":
        at_a_time = 1
        for one in objects:
            mesh_of_all_processes(one.request.parts)
    own = objects if share == "views" else share_of(objects, process, processes)
    folder = SweepFolder(prepare_folder(path), objects)
    folder.check_free(resume=resume)
    _check_same_objects(objects)
    # No process writes anything before all have come so far.
    check_same(json.dumps([one.request.description for one in objects], default=str))
    with folder.locked(process):
        diffusion = asked[0].model.load(place)
        for one in {one.line: one for one in objects}.values():
            one.request.check_model(diffusion)
        if process == 0:
            folder.write_description()
        maker = _Maker(folder, diffusion, at_a_time, preview_every, save_seconds, shares_views)
        interrupted = maker.make(own, progress=progress and process == 0)
        if not interrupted:
            leave()
        if process == 0:
            folder.write_tables()
            folder.write_sheet()
    return SweepResult(folder.path, folder.outcomes(), interrupted)


def _lines(prompts: str | Sequence[str] | None, file: str | os.PathLike[str] | None) -> list[Line]:
    """The prompts of a sweep; without any, that of the preset."""
    if file is not None and prompts is not None:
        raise UserError("Both prompts and a file of prompts are given; leave one of them out.")
    if file is not None:
        return read_lines(file)
    if prompts is None:
        return [Line(None)]
    return [Line(prompt) for prompt in ([prompts] if isinstance(prompts, str) else prompts)]


def _default_name(first: Asked, file: str | os.PathLike[str] | None) -> str:
    """Name of the folder where none is given."""
    return f"sweep-{slug(Path(file).stem if file is not None else first.prompt or '')}"


def _asked(
    line: Line, preset: str | None, guidance: str | None, density: str | None, overrides: Mapping[str, Any]
) -> Asked:
    """What a line asks for. Raises UserError with the line's place before it."""
    changes = dict(line.changes)
    of_line = {name: changes.pop(name) for name in _OF_LINE if name in changes}
    kinds = {"guidance": guidance, "density": density} | of_line
    try:
        asked = asked_by_preset(preset, **kinds, overrides={**overrides, **changes})
        if not asked.settings.shared_nodes:
            raise UserError(
                "The setting shared_nodes is false, but the seeds of a sweep look at the same times; leave "
                "it out."
            )
        return asked
    except UserError as error:
        raise UserError(f"{line.place}{error}") from error


def _object(index: int, line: Line, asked: Asked, place: Path, path: Path, started: Any) -> SweepObject:
    """An object of a line. Raises UserError with the line's place before it."""
    try:
        request = ObjectRequest.checked(asked, place, out=path, started=started)
    except UserError as error:
        raise UserError(f"{line.place}{error}") from error
    name = line.folder_name(request.prompt, request.seed)
    return SweepObject(name, index, line.told_changes, dataclasses.replace(request, folder=path / name))


def _check_same_objects(objects: Sequence[SweepObject]) -> None:
    """Refuse to go on with objects that were begun with other settings. Raises UserError."""
    for one in objects:
        if (one.request.folder / "config.json").is_file():
            check_described(
                one.request.folder, one.request.description, {"settings": to_tree(one.request.usual)}
            )


def _status(outcome: Outcome[Any]) -> str:
    """Of an object; what could not be written whole is tried again."""
    if outcome.result.diverged:
        return "diverged"
    return "failed" if outcome.unwritten else "finished"


class _Maker:
    """Makes objects, portion by portion, and records what comes of each."""

    def __init__(
        self,
        folder: SweepFolder,
        diffusion: StableDiffusion,
        at_a_time: int | None,
        preview_every: int,
        save_seconds: float | None,
        shares_views: bool,
    ) -> None:
        self._shares_views = shares_views
        self._is_writer = not shares_views or jax.process_index() == 0
        self._folder = folder
        self._diffusion = diffusion
        self._at_a_time = at_a_time
        self._preview_every = preview_every
        self._save_seconds = save_seconds
        self._programs: Programs = {}

    def make(self, objects: Sequence[SweepObject], *, progress: bool) -> bool:
        """Make those that are not finished.

        Args:
            objects: in the order of their lines.
            progress: whether to show a bar.

        Returns:
            whether Ctrl-C ended it.
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
        """Make the objects of one line; False where the person stopped it."""
        context = objects[0].request.context(self._diffusion)
        portions = make_in_portions(
            objects,
            self._at_a_time or len(objects),
            lambda portion: self._make_portion(portion, context, bar),
            held=sum(leaf.nbytes for leaf in jax.tree.leaves(context)),
            say=bar.say,
        )
        for portion, failure in portions:
            if failure is not None:
                self._record_failure(portion, failure, bar)
                if self._shares_views and not isinstance(failure, DoesNotFit):
                    # The others are in the middle of an iteration, and wait there for this one.
                    abandon(f"The views of {portion[0].request.prompt!r} are shared no more: {failure}")
            bar.finish()
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
                    context, resume=has_state(one.request.folder), preview_every=self._preview_every
                )
            except Exception as error:
                failure = error
                self._record_failure([one], error, bar)
            # One process alone has nobody to share the views with.
            is_lost = anywhere(failure is not None) if self._shares_views else failure is not None
            if part is not None and not is_lost:
                bar.skip(int(part.state.iteration))
                parts.append((one, part))
        # A kill may have come between the states of those that went in step.
        parts.sort(key=lambda pair: int(pair[1].state.iteration))
        for _, in_step in groupby(parts, key=lambda pair: int(pair[1].state.iteration)):
            self._make_in_step(list(in_step), bar)
            if bar.is_stopping:
                return

    def _make_in_step(self, parts: Sequence[tuple[SweepObject, Part[Any]]], bar: SweepBar) -> None:
        """Iterate runs that have come equally far, and write what they made."""
        bar.begin(len(parts))
        mesh = mesh_of_all_processes(parts[0][1].run.parts) if self._shares_views else None
        if not self._is_writer:
            self._take_part(parts[0][1], bar, mesh)
            return
        all_ended = perform_together(
            [part for _, part in parts],
            save_seconds=self._save_seconds,
            of_all=[bar],
            say=bar.say,
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
            last = ended.history[-1]
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
        """Iterate a run that process 0 writes."""
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
        """Keep why objects failed, and say it."""
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        reason = what.strip().splitlines()[0]
        for one in objects:
            bar.say(f"{one.request.prompt}, seed {one.request.seed}: {reason}")
            pending = SweepFolder.pending(one)
            self._folder.record(dataclasses.replace(pending, status="failed", reason=reason))
