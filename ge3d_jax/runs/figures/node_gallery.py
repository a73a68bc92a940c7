"""Figure 15: the decoded nodes of both trajectories over the iterations of a run.

The states themselves are noisy; the figure shows the network's clean predictions for them. All looks share
one camera, so that a row shows how a node evolves.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.random import Draws
from ge3d_jax.core.tables import markdown_table, number_cell
from ge3d_jax.diffusion.pipeline import compiled_decode
from ge3d_jax.metrics.pictures import finite_psnr
from ge3d_jax.runs.asked import bundled_model
from ge3d_jax.runs.figures.base import FIRST_LOOK, Figure, Made, Record, Work
from ge3d_jax.runs.figures.node_trajectories import clean_predictions, find_trajectories, loss_of
from ge3d_jax.runs.figures.observed_runs import ObservedRun
from ge3d_jax.toybox.world.captions import parse
from ge3d_jax.toybox.world.render import render_sentence
from ge3d_jax.training.config import Config
from ge3d_jax.training.distillation import Distillation, Prompted
from ge3d_jax.training.presets import PUBLISHED
from ge3d_jax.training.state import TrainState
from ge3d_jax.viewer.sheet import enlarge, image_grid, to_uint8
from ge3d_jax.viewer.turntable import Viewpoint, cameras_around

_SHOWN_EDGE = 96


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the figure.

    Attributes:
        preset: the preset that the settings are based on.
        prompt, seed: prompt and seed of the run.
        looks: number of columns of the gallery.
        azimuth_degrees: azimuth of the camera.
        overrides: settings to change.
    """

    preset: str
    prompt: str
    seed: int = 0
    looks: int = 6
    azimuth_degrees: float = 30.0
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def run(self) -> ObservedRun:
        """The run."""
        return ObservedRun(self.prompt, self.seed, self.preset, self.overrides, self.looks)


SIZES: Mapping[str, Settings] = {
    "small": Settings("toybox64", "a red mushroom", looks=5, overrides=FIRST_LOOK),
    "full": Settings("toybox_ball", "a yellow duck"),
    "paper": Settings("paper/radio", PUBLISHED["paper/radio"][0]),
}


def camera_of(config: Config, azimuth_degrees: float) -> Any:
    """A batch of one camera, at the mean of the camera ranges at the end of a run."""
    viewpoint = Viewpoint(
        radius=float(np.mean(config.cameras.radius_end)),
        polar=float(np.deg2rad(np.mean(config.cameras.polar_degrees))),
        fov=float(np.mean(config.cameras.fov_radians_end)),
        size=config.image_size,
    )
    return cameras_around(jnp.deg2rad(jnp.asarray([azimuth_degrees])), viewpoint)


def from_one_side(drawn: Draws, config: Config, azimuth_degrees: float) -> Draws:
    """Restrict random draws to one view, from a fixed camera, not mirrored, on the plain background."""
    first = jax.tree.map(lambda leaf: leaf[:1], drawn.per_view)
    fixed = {
        "cameras": camera_of(config, azimuth_degrees),
        "azimuth": jnp.deg2rad(jnp.asarray([azimuth_degrees], jnp.float32)),
        "backgrounds": jnp.asarray([config.background.color], jnp.float32),
    }
    return Draws(shared={**drawn.shared, "flip": jnp.asarray(False)}, per_view={**first, **fixed})


def look(
    azimuth_degrees: float, task: Distillation, state: TrainState, context: Prompted, drawn: Draws
) -> Record:
    """Record an iteration.

    Args:
        azimuth_degrees: azimuth of the camera.
        task, state, context, drawn: see `observed_runs.Look`.

    Returns:
        A record. Numbers: `active`, a, and the `times` of the active nodes and the top, a + 1. Arrays, uint8:
        `render` (H, W, 3); `noising` (a, H, W, 3), the network's clean predictions at x_{t_0} … x_{t_{a−1}};
        `denoising` (a + 1, H, W, 3), the image x̂_{t_0}, then the clean predictions at x̂_{t_1} … x̂_{t_a}.
    """
    fixed = from_one_side(drawn, task.config, azimuth_degrees)
    found = find_trajectories(task, state, context, fixed)
    kept = slice(found.active + 1)
    times, schedule = found.times[kept], context.model.schedule
    noising = clean_predictions(schedule, found.noised[kept, 0], times)
    denoising = clean_predictions(schedule, found.denoised[kept, 0], times)
    denoising = np.concatenate([found.denoised[:1, 0], denoising])
    # Decode a fixed number of images, regardless of the number of active nodes, to compile only once.
    count = len(found.times)
    latents = np.zeros((2 * count, *noising.shape[1:]), np.float32)
    latents[: len(noising)], latents[count : count + len(denoising)] = noising, denoising
    pictures = to_uint8(np.asarray(compiled_decode(context.model, jnp.asarray(latents))))
    return Record(
        {"active": found.active, "times": times.tolist()},
        {
            "render": to_uint8(found.images[0]),
            "noising": pictures[: len(noising)],
            "denoising": pictures[count : count + len(denoising)],
        },
    )


def true_view(settings: Settings) -> np.ndarray | None:
    """The view of a perfect object, uint8 (H, W, 3); None if unknown."""
    if bundled_model(settings.preset) is None:
        return None
    camera = jax.tree.map(lambda leaf: leaf[0], camera_of(settings.run.config, settings.azimuth_degrees))
    return to_uint8(np.asarray(render_sentence(parse(settings.prompt), camera, background=jnp.ones(3))))


def _decibels(picture: np.ndarray, truth: np.ndarray | None) -> float | None:
    if truth is None:
        return None
    return round(finite_psnr(picture / 255.0, truth / 255.0), 2)


def rows_of(records: Mapping[int, Record], truth: np.ndarray | None) -> list[dict[str, Any]]:
    """A row for each look and node, and one without a node for the render, with the PSNR of each image."""
    rows = []
    for done, record in records.items():
        arrays = record.arrays
        rows.append(
            {
                "iteration": done,
                "node": None,
                "time": None,
                "render_psnr": _decibels(arrays["render"], truth),
                "noising_psnr": None,
                "denoising_psnr": None,
            }
        )
        for node, time in enumerate(record.numbers["times"]):
            is_top = node == record.numbers["active"]
            rows.append(
                {
                    "iteration": done,
                    "node": node,
                    "time": time,
                    "render_psnr": None,
                    "noising_psnr": None if is_top else _decibels(arrays["noising"][node], truth),
                    "denoising_psnr": _decibels(arrays["denoising"][node], truth),
                }
            )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with a row for each look: PSNR of the render and of the end of each trajectory."""

    def cell(value: float | None) -> str:
        return number_cell(value, 1) + ("" if value is None else " dB")

    lines = []
    for render in (row for row in rows if row["node"] is None):
        own = [row for row in rows if row["iteration"] == render["iteration"] and row["node"] is not None]
        lines.append(
            {
                "iteration": str(render["iteration"]),
                "farthest time": str(own[-1]["time"]),
                "render": cell(render["render_psnr"]),
                "taken for, at the top": cell(own[-1]["denoising_psnr"]),
                "edited": cell(own[0]["denoising_psnr"]),
            }
        )
    return markdown_table(lines)


def picture(records: Mapping[int, Record], truth: np.ndarray | None) -> np.ndarray:
    """Draw a column for each look, with rows for the render, the noising nodes, and the denoising nodes."""
    nodes = max(record.numbers["active"] for record in records.values())
    blank = np.full_like(next(iter(records.values())).arrays["render"], 255)
    shown = [record.arrays["render"] for record in records.values()]
    labels = [f"iteration {done}" for done in records]

    def row(name: str, node: int, word: str) -> None:
        for record in records.values():
            own = record.arrays[name]
            shown.append(own[node] if node < len(own) else blank)
            labels.append(f"{word}, t = {record.numbers['times'][node]}" if node < len(own) else "–")

    for node in range(nodes):
        row("noising", node, "up")
    for node in reversed(range(nodes + 1)):
        row("denoising", node, "down")
    columns = len(records)
    if truth is not None:
        for index in reversed(range(len(shown) // columns)):
            shown.insert((index + 1) * columns, blank if index else truth)
            labels.insert((index + 1) * columns, "" if index else "truth")
        columns += 1
    return image_grid([enlarge(one, minimum=_SHOWN_EDGE) for one in shown], labels, columns=columns)


def make(work: Work) -> Made:
    """Make the figure."""
    return make_of(SIZES[work.size], work)


def make_of(settings: Settings, work: Work) -> Made:
    """Make the figure with any settings. Raises UserError as `generate` does."""
    run = settings.run
    loss_of(run.config)
    run.check(work.model)
    records = run.observe(
        work.folder,
        partial(look, settings.azimuth_degrees),
        about={"azimuth_degrees": settings.azimuth_degrees},
        model=work.model,
        report=work.report,
    )
    truth = true_view(settings)
    rows = rows_of(records, truth)
    text = f'"{settings.prompt}"' + (", PSNR to the true view" if truth is not None else "")
    return Made(rows, f"{text}:\n\n{table(rows)}", {"": picture(records, truth)})


FIGURE = Figure(
    title="What the model makes of each node, over a run",
    source="Figure 15",
    expected="At every node, the way up (noising) preserves what the render shows. The way down (denoising) "
    "draws the object that the text asks for, in coarse and wrong colors at the top and in the right ones "
    "lower down. Its end changes little over the run, and the renders approach it.",
    seconds={"small": 75, "full": 150},
    make=make,
)
