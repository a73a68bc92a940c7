"""Training the small Point-E from scratch, in stages that survive an interruption.

Each stage is stored in the run's folder: surface points of all objects (surfaces.npz), the base network
(base/), the upsampler (upsampler/), the finished model (model/), and a sheet of clouds with their recognized
kinds. Batches depend only on the step, so that an interrupted stage resumes with identical numbers.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.progress import Progress
from scipy.spatial import cKDTree

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.files import atomic_path
from ge3d_jax.diffusion.weights.clip import TextTower, load_text_tower
from ge3d_jax.formats.point_clouds import PointCloud
from ge3d_jax.metrics.likeness import chamfer as mean_chamfer
from ge3d_jax.scenes.start.clouds import AsItIs, CloudStart
from ge3d_jax.scenes.start.point_e.files import open_point_e, save_point_e
from ge3d_jax.scenes.start.point_e.model import PointE, sample_clouds
from ge3d_jax.scenes.start.point_e.networks import (
    BaseConfig,
    TransformerConfig,
    UpsamplerConfig,
    example_inputs,
    network,
)
from ge3d_jax.scenes.start.point_e.start import BUNDLED_SIZE, in_world_axes
from ge3d_jax.toybox import model_folder
from ge3d_jax.toybox.model import point_e
from ge3d_jax.toybox.model.recipe import most_together, progress_bar, run_steps
from ge3d_jax.toybox.model.training import make_optimizer, start_training
from ge3d_jax.toybox.world.captions import Sentence, caption
from ge3d_jax.toybox.world.objects import COLORS, KINDS
from ge3d_jax.toybox.world.surfaces import Surface, paint_surface, palette
from ge3d_jax.viewer.sheet import image_grid, save_png
from ge3d_jax.viewer.turntable import Viewpoint, render_around

SHOWN_COLORS = ("red", "green", "blue", "yellow")
_TOYBOX_FILE = {"toybox.json": '{"language": "toybox"}\n'}
_SHOWN_FROM = 0.6  # radians from the front
# From farther away than the world's own pictures, since points may stray.
_SHOWN_FROM_AFAR = Viewpoint(radius=4.2, size=96)
_SHOWN_SCALE, _SHOWN_OPACITY = 0.024, 0.95
# Number of points of the ground-truth clouds used for comparison.
_COMPARED_POINTS = 1024


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a training run.

    Attributes:
        seed: random seed of points, initial parameters and batches.
        points: number of surface points of each kind, from which clouds are drawn.
        base_steps, upsampler_steps: optimizer steps.
        base_clouds, upsampler_clouds: clouds per step.
        base_points, upsampler_points: points to denoise per cloud; see `point_e.cloud_loss`.
        learning_rate: peak learning rate of both networks.
        save_every: number of steps between saved states.
        base, upsampler: sizes of the networks.
    """

    seed: int = 0
    points: int = 16384
    base_steps: int = 7000
    base_clouds: int = 32
    base_points: int = 128
    upsampler_steps: int = 2000
    upsampler_clouds: int = 8
    upsampler_points: int = 192
    learning_rate: float = 3e-3
    save_every: int = 250
    base: BaseConfig = point_e.BASE
    upsampler: UpsamplerConfig = point_e.UPSAMPLER


def train(recipe: Recipe, out: Path, install: Path | None = None, bar: Progress | None = None) -> Path:
    """Run all stages that `out` does not contain yet.

    Args:
        recipe: the hyperparameters. Stages already in `out` keep those they were made with.
        out: the run's folder.
        install: a second folder to write the finished model to.
        bar: progress bar to update; None shows one on the terminal.

    Returns:
        The model's folder.

    Raises:
        UserError: the folder holds states of networks of a different size.
    """
    with bar or progress_bar() as bar:
        surfaces = _surfaces(recipe, out / "surfaces.npz")
        tower = load_text_tower(model_folder())
        data = jax.device_put(point_e.make_data(surfaces, tower))
        trained = {
            name: _train_network(name, config, recipe, steps, clouds, points, out, tower, data, bar)
            for name, config, steps, clouds, points in (
                ("base", recipe.base, recipe.base_steps, recipe.base_clouds, recipe.base_points),
                (
                    "upsampler",
                    recipe.upsampler,
                    recipe.upsampler_steps,
                    recipe.upsampler_clouds,
                    recipe.upsampler_points,
                ),
            )
        }
    model = PointE(
        base=trained["base"]["network"],
        upsampler=trained["upsampler"]["network"],
        base_config=recipe.base,
        upsampler_config=recipe.upsampler,
        base_stage=point_e.BASE_STAGE,
        upsampler_stage=point_e.UPSAMPLER_STAGE,
    )
    for folder in filter(None, (out / "model", install)):
        # Half precision is enough, and halves the file size.
        save_point_e(
            folder,
            model,
            model_folder(),
            _TOYBOX_FILE,
            text_parameters=trained["base"]["text"],
            dtype=np.float16,
        )
    return out / "model"


def _surfaces(recipe: Recipe, file: Path) -> Surface:
    if not file.exists():
        made = point_e.make_surfaces(jax.random.key(recipe.seed), recipe.points)
        with atomic_path(file) as path:
            arrays: dict[str, Any] = {
                name: np.asarray(getattr(made, name)) for name in made.__dataclass_fields__
            }
            np.savez(path, allow_pickle=False, **arrays)
    with np.load(file) as stored:
        return Surface(**{name: stored[name] for name in stored.files})


def _train_network(
    name: str,
    config: TransformerConfig,
    recipe: Recipe,
    steps: int,
    clouds: int,
    points: int,
    out: Path,
    tower: TextTower,
    data: point_e.CloudData,
    bar: Progress,
) -> Any:
    key = jax.random.fold_in(jax.random.key(recipe.seed + 1), len(name))
    parameters = {"network": network(config).init(key, *example_inputs(config))["params"]}
    if isinstance(config, BaseConfig):
        parameters["text"] = tower.parameters
    optimizer = make_optimizer(recipe.learning_rate, steps)
    state = start_training(parameters, optimizer)

    def step(state: Any, data: point_e.CloudData, index: jax.Array, rows: jax.Array) -> tuple[Any, jax.Array]:
        own = jax.random.fold_in(key, index)
        return point_e.cloud_step(
            state,
            own,
            data,
            config=config,
            text=tower.module,
            clouds=clouds,
            points=points,
            optimizer=optimizer,
        )

    def rows_of(index: int) -> np.ndarray:
        return np.zeros(0, np.int32)  # the step draws its own clouds

    try:
        state = run_steps(
            name,
            out / name,
            state,
            steps,
            recipe.save_every,
            step,
            data,
            rows_of,
            bar,
            most=most_together(),
        )
    except ValueError as error:
        raise UserError(
            f"{out / name} holds a network of a different size; remove it, or choose another --out."
        ) from error
    return jax.device_get(state.average)


def true_cloud(surfaces: Surface, kind: int, count: int = _COMPARED_POINTS) -> np.ndarray:
    """The ground-truth points (count, 3) of a kind given by index, in Point-E's axes and size."""
    return np.asarray(surfaces.positions)[kind, :count]


def chamfer(first: np.ndarray, second: np.ndarray) -> float:
    """Chamfer distance of clouds (N, 3), (M, 3): the sum of both directions' mean nearest-point distances."""
    return 2.0 * mean_chamfer(first, second)


def recognized_kind(cloud: PointCloud, surfaces: Surface) -> str:
    """The kind whose ground-truth cloud is nearest to a cloud in Point-E's axes and size."""
    distances = [chamfer(cloud.positions, true_cloud(surfaces, kind)) for kind in range(len(KINDS))]
    return list(KINDS)[int(np.argmin(distances))]


def recognized_color(cloud: PointCloud, surfaces: Surface, kind: str) -> str:
    """Return the color of the true cloud of a kind whose colors are closest to those of `cloud`.

    Colors are compared between each point and the true point closest to it. Only the object's own color
    varies; its second color is the one it has where the sentence names none.

    Args:
        cloud: in Point-E's axes and size, with colors.
        surfaces: the true points.
        kind: the kind to compare with.
    """
    assert cloud.colors is not None
    names, index = list(COLORS), list(KINDS).index(kind)
    true: Surface = jax.tree.map(lambda leaf: np.asarray(leaf)[index, :_COMPARED_POINTS], surfaces)
    _, nearest = cKDTree(true.positions).query(cloud.positions)
    second = palette()[names.index(KINDS[kind].part_color)]
    errors = [
        np.linalg.norm(cloud.colors - np.asarray(paint_surface(true, color, second))[nearest], axis=-1).mean()
        for color in palette()
    ]
    return names[int(np.argmin(errors))]


def evaluate(model: Path, out: Path, *, kinds: Sequence[str] = tuple(KINDS), seed: int = 0) -> dict[str, Any]:
    """Evaluate a model on clouds in four colors: measure how many are recognized, and write a sheet of them.

    Args:
        model: the model's folder.
        out: the run's folder, with surfaces.npz; clouds.png and clouds.json are written to it.
        kinds: kinds to sample.
        seed: random seed of the clouds.

    Returns:
        The content of clouds.json: the shares of clouds with the right kind and the right color, the mean
        Chamfer distance to the true clouds, and what each cloud was recognized as.
    """
    surfaces = _surfaces(Recipe(), out / "surfaces.npz")
    opened, encode = open_point_e(model, "")
    sentences = [Sentence(kind, color) for kind in kinds for color in SHOWN_COLORS]
    pictures, labels, told = [], [], []
    for index, first in enumerate(range(0, len(sentences), len(SHOWN_COLORS))):
        group = sentences[first : first + len(SHOWN_COLORS)]
        features = encode([caption(sentence) for sentence in group])
        clouds = sample_clouds(opened, features, jax.random.fold_in(jax.random.key(seed), index))
        for sentence, cloud in zip(group, clouds, strict=True):
            kind = recognized_kind(cloud, surfaces)
            color = recognized_color(cloud, surfaces, kind)
            distance = chamfer(cloud.positions, true_cloud(surfaces, list(KINDS).index(sentence.kind)))
            told.append(
                {"prompt": caption(sentence), "kind": kind, "color": color, "chamfer": round(distance, 4)}
            )
            pictures.append(_picture(cloud))
            labels.append(f"{sentence.color} {sentence.kind}")
    pairs = list(zip(told, sentences, strict=True))
    result = {
        "kind": float(np.mean([one["kind"] == sentence.kind for one, sentence in pairs])),
        "color": float(np.mean([one["color"] == sentence.color for one, sentence in pairs])),
        # A distance of both ways, where an object is about 1 large.
        "chamfer": float(np.mean([one["chamfer"] for one in told])),
        "clouds": told,
    }
    save_png(out / "clouds.png", image_grid(pictures, labels, columns=2 * len(SHOWN_COLORS)))
    with atomic_path(out / "clouds.json") as path:
        path.write_text(json.dumps(result, indent=2) + "\n")
    return result


def _picture(cloud: PointCloud) -> np.ndarray:
    """Render a cloud in Point-E's axes and size, seen slightly from the left of its front."""
    world = in_world_axes(cloud, mirrored=False, lift=0.0, size=BUNDLED_SIZE)
    look = CloudStart(growth=AsItIs(), colored=True, scale=_SHOWN_SCALE, opacity=_SHOWN_OPACITY)
    splats = look.splats(world, "a cloud", np.random.default_rng(0))
    return render_around(splats, [_SHOWN_FROM], viewpoint=_SHOWN_FROM_AFAR)[0]
