"""Many objects in one call: prompts × seeds, with the seeds of a prompt computed as one program."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from ge3d_jax.core.caching import keep_compiled_code
from ge3d_jax.core.devices import mesh_of_all_processes
from ge3d_jax.core.errors import UserError
from ge3d_jax.core.processes import Cluster, check_same, join, leave
from ge3d_jax.core.settings import to_tree
from ge3d_jax.runs.asked import Asked, asked_by_preset
from ge3d_jax.runs.folder import named_folder, prepare_folder, slug
from ge3d_jax.runs.object_request import ObjectRequest
from ge3d_jax.runs.observers import SAVE_SECONDS, Observer
from ge3d_jax.runs.resume import check_described
from ge3d_jax.runs.sweep_folder import SweepFolder, SweepOutcome
from ge3d_jax.runs.sweep_maker import Maker
from ge3d_jax.runs.sweep_plan import Line, SweepObject, check_distinct, read_lines, share_of
from ge3d_jax.scenes.base import Scene
from ge3d_jax.splatting.gaussians import Gaussians

# What can be divided among several processes.
SHARES = ("objects", "views")
_OF_LINE = ("guidance", "density")


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """The result of a sweep.

    Attributes:
        folder: where everything was written.
        outcomes: the outcome of each object, in order, including those made by other processes.
        interrupted: whether Ctrl-C ended the sweep.
        unwritten: sentences on what could not be written, e.g. because the disk was full; usually empty.
    """

    folder: Path
    outcomes: list[SweepOutcome]
    interrupted: bool
    unwritten: list[str]

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
    start_growth: str | None = None,
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
    observers: Callable[[], Sequence[Observer]] = tuple,
) -> SweepResult:
    """Generate an object for every combination of prompt and seed, and a page that shows them all.

    The seeds of a prompt are computed together, as many at a time as fit into memory, and divided among the
    devices. They share their diffusion times (the setting `shared_nodes`), so seed s gives the same object as
    `generate` with that setting, up to rounding; computed on its own, byte for byte.

    Args:
        prompts: what to generate; None uses those of `file`, or the preset's.
        seeds: seeds for each prompt, one object each.
        file: prompts, one per line, with settings after a tab; see `read_lines`.
        preset, guidance, density, model, start, start_growth, reconstruct_from, overrides, dtype, loras,
            textual_inversions: as for `generate`, for all objects.
        out: output folder; None means outputs/sweep-<first prompt, or the file's name>. It contains a folder
            for each object, like those of `generate`, and `outcomes/` with the outcome of each.
        at_a_time: maximum number of seeds to compute together; None for as many as fit into memory.
        preview_every, save_seconds: as for `generate`.
        resume: continue the sweep in the folder, if there is one. Finished objects are kept, and failed ones
            are tried again; prompts and seeds may have been added.
        progress: whether to show a progress bar.
        cluster: how to find the processes that share the work; None for a single process.
        share: what the processes divide, one of SHARES: "objects", or "views", i.e. the views of each
            iteration, with one object made at a time. With "views", process 0 writes all files, and if one
            process stops, all of them do.
        observers: called for each object; returns its observers. See `runs.observers`.

    Returns:
        The result. An object that fails does not stop the others; its outcome states the reason.

    Raises:
        UserError: an input is invalid; nothing has been computed yet.
    """
    keep_compiled_code()
    lines, seeds = _lines(prompts, file), list(seeds)
    if not seeds:
        raise UserError("There are no seeds; give some, e.g. 0 to 7.")
    if at_a_time is not None and at_a_time < 1:
        raise UserError(f"at_a_time is {at_a_time}; give at least 1.")
    if share not in SHARES:
        raise UserError(f"{share!r} cannot be shared; choose one of {', '.join(SHARES)}.")
    if share == "views" and (at_a_time or 1) > 1:
        raise UserError("Processes that share views make one object at a time; leave at_a_time out.")
    of_all = {"shared_nodes": True} | dict(overrides or {})
    if reconstruct_from is not None:
        of_all["reconstruction.start"] = reconstruct_from
    if cluster is not None:
        join(cluster)
    asked = [
        _asked(
            line,
            preset,
            {"guidance": guidance, "density": density, "start": start, "growth": start_growth},
            of_all,
        ).but(
            prompt=line.prompt,
            model=model,
            dtype=dtype,
            loras=loras,
            textual_inversions=textual_inversions,
        )
        for line in lines
    ]
    place = asked[0].model.check()
    path = named_folder(out if out is not None else Path("outputs") / _default_name(asked[0], file))
    starts: dict[Scene, Gaussians | None] = {}
    objects = [
        _object(index, line, one.but(seed=seed), place, path, starts)
        for index, (line, one) in enumerate(zip(lines, asked, strict=True))
        for seed in seeds
    ]
    check_distinct(objects, lines)
    process, processes = jax.process_index(), jax.process_count()
    shares_views = share == "views"
    if shares_views:
        if processes == 1:
            raise UserError(
                "There is only one process, so there is nobody to share views with; start several (see "
                "--distributed), or leave share out."
            )
        at_a_time = 1
        for one in objects:
            mesh_of_all_processes(one.request.settings.parts)
    own = objects if shares_views else share_of(objects, process, processes)
    folder = SweepFolder(prepare_folder(path), objects)
    folder.check_free(resume=resume)
    _check_same_objects(objects, resume=resume)
    # No process writes anything until all of them have reached this point.
    check_same(json.dumps([one.request.description for one in objects], default=str))
    with folder.locked(process):
        diffusion = asked[0].model.load(place)
        for one in {one.line: one for one in objects}.values():
            one.request.check_model(diffusion)
        if process == 0:
            folder.write_description()
        maker = Maker(folder, diffusion, at_a_time, preview_every, save_seconds, shares_views, observers)
        interrupted = maker.make(own, progress=progress and process == 0)
        if not interrupted:
            leave()
        if process == 0:
            with folder.attempts.at("sweep.csv and index.html"):
                folder.write_tables()
            with folder.attempts.at("contact_sheet.png"):
                folder.write_sheet()
    return SweepResult(folder.path, folder.outcomes(), interrupted, folder.attempts.failed)


def _lines(prompts: str | Sequence[str] | None, file: str | os.PathLike[str] | None) -> list[Line]:
    """The prompts of a sweep; if none are given, a line that stands for the preset's prompt."""
    if file is not None and prompts is not None:
        raise UserError("Both prompts and a prompt file are given; leave one of them out.")
    if file is not None:
        return read_lines(file)
    if prompts is None:
        return [Line(None)]
    return [Line(prompt) for prompt in ([prompts] if isinstance(prompts, str) else prompts)]


def _default_name(first: Asked, file: str | os.PathLike[str] | None) -> str:
    """Name of the folder if none is given."""
    return f"sweep-{slug(Path(file).stem if file is not None else first.prompt or '')}"


def _asked(line: Line, preset: str | None, chosen: Mapping[str, Any], overrides: Mapping[str, Any]) -> Asked:
    """The request of a line. Raises UserError, prefixed with the line's location."""
    changes = dict(line.changes)
    of_line = {name: changes.pop(name) for name in _OF_LINE if name in changes}
    kinds = {**chosen, **of_line}
    try:
        asked = asked_by_preset(preset, **kinds, overrides={**overrides, **changes})
        if not asked.settings.shared_nodes:
            raise UserError(
                "The setting shared_nodes is false, but the seeds of a sweep share their diffusion times; "
                "leave it out."
            )
        return asked
    except UserError as error:
        raise UserError(f"{line.place}{error}") from error


def _object(
    index: int, line: Line, asked: Asked, place: Path, path: Path, starts: dict[Scene, Gaussians | None]
) -> SweepObject:
    """The object of a line. Raises UserError, prefixed with the line's location."""
    try:
        request = ObjectRequest.checked(asked, place, out=path, starts=starts)
    except UserError as error:
        raise UserError(f"{line.place}{error}") from error
    name = line.folder_name(request.prompt, request.seed)
    return SweepObject(name, index, line.told_changes, dataclasses.replace(request, folder=path / name))


def _check_same_objects(objects: Sequence[SweepObject], *, resume: bool) -> None:
    """Check that no object was started outside this sweep or with other settings. Raises UserError."""
    for one in objects:
        if (one.request.folder / "config.json").is_file():
            if not resume:
                raise UserError(
                    f"The folder {one.request.folder} already holds a run; give another folder for the sweep."
                )
            check_described(
                one.request.folder, one.request.description, {"settings": to_tree(one.request.usual)}
            )
