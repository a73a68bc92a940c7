"""Training the bundled model from scratch, in stages that survive an interruption.

Each stage is stored in the run's folder: traced views (views.npz), autoencoder (vae/), latents and captions
(latents.npz), UNet and text encoder (diffusion/), the finished model (model/) and a sheet of samples.
Existing stages are not repeated. The two training stages resume from their last saved state with the same
numbers as an uninterrupted run, because batches and keys depend only on the step.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ge3d_jax.core.devices import batch_mesh, replicated, sharded
from ge3d_jax.core.files import atomic_path
from ge3d_jax.diffusion.networks.text_encoder import CLIPTextModel
from ge3d_jax.diffusion.networks.unet import UNet2DConditionModel
from ge3d_jax.diffusion.networks.vae import AutoencoderKL
from ge3d_jax.diffusion.pipeline import StableDiffusion, decode_latents, encode_text, make_model
from ge3d_jax.diffusion.sampling import sample
from ge3d_jax.diffusion.schedule import noise_schedule_from_config
from ge3d_jax.diffusion.tokenizer import build_tokenizer
from ge3d_jax.diffusion.weights.checkpoint import load_model, save_model
from ge3d_jax.toybox import model_folder
from ge3d_jax.toybox.model import training
from ge3d_jax.toybox.model.alignment import change_latents, fit_latents, with_vocabulary
from ge3d_jax.toybox.model.dataset import (
    Views,
    paint_bytes,
    paint_pictures,
    plan_pictures,
    trace_views,
    with_mirrored,
)
from ge3d_jax.toybox.model.training import TrainingState
from ge3d_jax.toybox.world.captions import VIEWS, VOCABULARY, Sentence, caption
from ge3d_jax.toybox.world.objects import COLORS, KINDS
from ge3d_jax.toybox.world.render import IMAGE_SIZE
from ge3d_jax.training.checkpoints import has_tree, restore_tree, save_tree
from ge3d_jax.viewer.sheet import enlarge, image_grid, save_png, to_uint8

_ENCODING_BATCH = 64
_SHOWN_SIZE = 128
SAMPLING_STEPS = 25
SAMPLING_GUIDANCE = 2.5
# Maximum number of steps per program; their mean loss is displayed.
_MOST_TOGETHER = 50
# Number of pictures used to fit the change of latents: a quarter of a million latents.
_ALIGNED_PICTURES = 1024
_VIEW_ARRAYS = ("layers", "kinds", "azimuths", "polars")


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a training run.

    Attributes:
        seed: random seed of cameras, pictures, initial parameters and batches.
        image_size: edge of the pictures, pixels; one of those in training.VAE_CHANNELS.
        views_per_kind: traced views of each kind.
        pictures: pictures encoded for the UNet.
        vae_steps: optimizer steps of the autoencoder.
        vae_batch: pictures per step of the autoencoder.
        vae_learning_rate: peak learning rate of the autoencoder.
        unet_steps: optimizer steps of the UNet and the text encoder.
        unet_batch: pictures per step of the UNet.
        unet_learning_rate: peak learning rate of the UNet and the text encoder.
        start_from: bundled model that initializes the UNet and text encoder, and whose latents the
            autoencoder's latents are aligned with; None starts from random parameters.
        save_every: number of steps between saved states.
    """

    seed: int = 0
    image_size: int = IMAGE_SIZE
    views_per_kind: int = 384
    pictures: int = 131072
    vae_steps: int = 6000
    vae_batch: int = 32
    vae_learning_rate: float = 5e-3
    unet_steps: int = 14000
    unet_batch: int = 128
    unet_learning_rate: float = 3e-3
    start_from: str | None = "toybox64"
    save_every: int = 1000


def progress_bar() -> Progress:
    """A progress bar that shows each stage's finished and total steps, remaining time, and loss."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[loss]}"))


def train(recipe: Recipe, out: Path, install: Path | None = None) -> Path:
    """Run all stages that `out` does not contain yet.

    Args:
        recipe: the hyperparameters. Stages already in `out` keep those they were made with.
        out: the run's folder.
        install: a second folder to write the finished model to.

    Returns:
        The model's folder.
    """
    with progress_bar() as bar:
        views = with_mirrored(_views(recipe, out / "views.npz", bar))
        vae_params = _align(recipe, views, _train_vae(recipe, out / "vae", views, bar))
        data = _latents(recipe, out, views, vae_params, bar)
        model = _train_diffusion(recipe, out, vae_params, data, bar)
    for folder in filter(None, (out / "model", install)):
        save_model(folder, model)
        # Marks the model's prompts as sentences of the Toybox world, and lists the views it was trained with.
        with atomic_path(folder / "toybox.json") as path:
            path.write_text(json.dumps({"language": "toybox", "views": VIEWS}) + "\n")
    save_samples(out / "samples.png", load_model(out / "model"), recipe.seed)
    return out / "model"


def _save_arrays(file: Path, **arrays: np.ndarray) -> None:
    with atomic_path(file) as path:
        np.savez(path, allow_pickle=False, **arrays)


def _views(recipe: Recipe, file: Path, bar: Progress) -> Views:
    if not file.exists():
        task = bar.add_task("views", total=len(KINDS), loss="")
        views = trace_views(
            jax.random.key(recipe.seed),
            recipe.views_per_kind,
            size=recipe.image_size,
            report=lambda _: bar.advance(task),
        )
        _save_arrays(file, **{name: getattr(views, name) for name in _VIEW_ARRAYS})
    with np.load(file) as stored:
        return Views(*(stored[name] for name in _VIEW_ARRAYS))


# (state, data, index of the step, rows of its batch) → (state, loss)
Step = Callable[[TrainingState, Any, jax.Array, jax.Array], tuple[TrainingState, jax.Array]]


def most_together() -> int:
    """Return the maximum number of steps per program.

    Many on a GPU, where passing a state of a thousand arrays takes as long as a step. One on a CPU, where
    XLA's convolutions take 17 times as long inside a loop.
    """
    return 1 if jax.default_backend() == "cpu" else _MOST_TOGETHER


def run_steps(
    name: str,
    folder: Path,
    state: TrainingState,
    steps: int,
    save_every: int,
    step: Step,
    data: Any,
    rows_of: Callable[[int], np.ndarray],
    bar: Progress,
    *,
    most: int,
) -> TrainingState:
    """Take steps from the last saved state (or `state`) up to `steps`, saving along the way.

    A program runs up to `most` steps, a number that divides both `save_every` and `steps`, so that states are
    saved between programs.
    """
    if has_tree(folder):
        state = restore_tree(folder, state)
    multiple = math.gcd(steps, save_every)
    together = max(count for count in range(1, most + 1) if multiple % count == 0)

    @partial(jax.jit, donate_argnums=0)
    def advance(
        state: TrainingState, indices: jax.Array, rows: jax.Array, data: Any
    ) -> tuple[TrainingState, jax.Array]:
        if together == 1:
            return step(state, data, indices[0], rows[0])
        return jax.lax.scan(lambda state, at: step(state, data, *at), state, (indices, rows))

    task = bar.add_task(name, total=steps, completed=int(state.step), loss="")
    with (folder.parent / f"{name}.loss.txt").open("a") as log:
        for first in range(int(state.step), steps, together):
            indices = np.arange(first, first + together)
            rows = np.stack([rows_of(int(index)) for index in indices])
            state, losses = advance(state, indices, rows, data)
            mean, done = float(np.mean(losses)), first + together
            bar.update(task, advance=together, loss=f"loss {mean:.4f}")
            print(done, f"{mean:.5f}", file=log, flush=True)
            if done % save_every == 0 or done == steps:
                save_tree(folder, state)
    return state


def _train_vae(recipe: Recipe, folder: Path, views: Views, bar: Progress) -> Any:
    vae = AutoencoderKL(training.vae_config(recipe.image_size))
    size = (1, recipe.image_size, recipe.image_size, 3)
    params = jax.jit(vae.init)(jax.random.key(recipe.seed + 1), jnp.zeros(size))["params"]
    optimizer = training.make_optimizer(recipe.vae_learning_rate, recipe.vae_steps)
    count, batch = recipe.vae_steps * recipe.vae_batch, recipe.vae_batch
    plan = plan_pictures(np.random.default_rng(recipe.seed), views, count)
    key = jax.random.key(recipe.seed + 2)
    mesh = batch_mesh(batch)

    def step(state: TrainingState, data: Any, index: jax.Array, rows: jax.Array) -> Any:
        layers, of_rows, *paints = data
        images = paint_bytes(layers[of_rows[rows]], *(paint[rows] for paint in paints))
        images = jax.lax.with_sharding_constraint(images, sharded(mesh))
        return training.vae_step(state, jax.random.fold_in(key, index), images, vae=vae, optimizer=optimizer)

    data = (views.layers, plan.views, plan.primary, plan.secondary, plan.background)
    state, data = jax.device_put((training.start_training(params, optimizer), data), replicated(mesh))
    state = run_steps(
        "vae",
        folder,
        state,
        recipe.vae_steps,
        recipe.save_every,
        step,
        data,
        lambda index: np.arange(index * batch, (index + 1) * batch),
        bar,
        most=most_together(),
    )
    return jax.device_get(state.average)


def _align(recipe: Recipe, views: Views, vae_params: Any) -> Any:
    """Align the autoencoder's latents with those of the initial model; see `alignment`."""
    if not recipe.start_from:
        return vae_params
    model = load_model(model_folder(recipe.start_from))
    vae, size = AutoencoderKL(training.vae_config(recipe.image_size)), model.vae.config.sample_size
    factor = recipe.image_size // size
    encode = jax.jit(partial(vae.apply, {"params": vae_params}, method="encode"))
    wanted = jax.jit(partial(model.vae.apply, {"params": model.vae_params}, method="encode"))
    plan = plan_pictures(np.random.default_rng(recipe.seed + 5), views, _ALIGNED_PICTURES)
    moments, targets = [], []
    for start in range(0, _ALIGNED_PICTURES, _ENCODING_BATCH):
        rows = np.arange(start, start + _ENCODING_BATCH)
        images = 2.0 * paint_pictures(views, plan, rows) - 1.0
        small = images.reshape(len(rows), size, factor, size, factor, 3).mean(axis=(2, 4))
        moments.append(jax.device_get(encode(images)))
        targets.append(jax.device_get(wanted(small)[0]))
    mean, log_variance = (np.concatenate(part) for part in zip(*moments, strict=True))
    matrix, offset = fit_latents(mean, np.concatenate(targets))
    return change_latents(vae_params, matrix, offset, log_variance.mean(axis=(0, 1, 2)))


@dataclass(frozen=True)
class _LatentData:
    """Training data of the UNet and the text encoder.

    Attributes:
        mean: float16 (N, h, w, C), mean of the latents' posterior, unscaled.
        log_variance: float16 (N, h, w, C), its log variance.
        ids: int32 (N, 3, L), tokens of the captions.
        shares: float32 (N, 3), see `PicturePlan`.
    """

    mean: np.ndarray
    log_variance: np.ndarray
    ids: np.ndarray
    shares: np.ndarray

    @property
    def scaling_factor(self) -> float:
        """One over the latents' standard deviation, so that scaled latents have unit variance."""
        variance = np.var(self.mean.astype(np.float32)) + np.mean(
            np.exp(self.log_variance.astype(np.float32))
        )
        return round(float(variance**-0.5), 5)


def _latents(recipe: Recipe, out: Path, views: Views, vae_params: Any, bar: Progress) -> _LatentData:
    file = out / "latents.npz"
    if not file.exists():
        vae = AutoencoderKL(training.vae_config(recipe.image_size))
        encode = jax.jit(
            lambda images: vae.apply({"params": vae_params}, 2.0 * images - 1.0, method="encode")
        )
        plan = plan_pictures(np.random.default_rng(recipe.seed + 3), views, recipe.pictures)
        mesh = batch_mesh(_ENCODING_BATCH)
        moments = []
        starts = range(0, recipe.pictures, _ENCODING_BATCH)
        for start in bar.track(starts, task_id=bar.add_task("latents", total=len(starts), loss="")):
            # The last batch wraps around so that all have the same shape; the surplus is cut off below.
            rows = np.arange(start, start + _ENCODING_BATCH) % recipe.pictures
            images = jax.device_put(paint_pictures(views, plan, rows), sharded(mesh))
            mean, log_variance = encode(images)
            moments.append((np.asarray(mean, np.float16), np.asarray(log_variance, np.float16)))
        tokenizer = build_tokenizer(VOCABULARY, out / "tokenizer", training.TEXT_LENGTH)
        sentences = [sentence for captions in plan.captions for sentence in captions]
        tokens = tokenizer(sentences, padding="max_length", max_length=training.TEXT_LENGTH)["input_ids"]
        ids = np.asarray(tokens, np.int32).reshape(*plan.shares.shape, -1)
        means, log_variances = (
            np.concatenate(part)[: recipe.pictures] for part in zip(*moments, strict=True)
        )
        _save_arrays(file, mean=means, log_variance=log_variances, ids=ids, shares=plan.shares)
    with np.load(file) as stored:
        return _LatentData(stored["mean"], stored["log_variance"], stored["ids"], stored["shares"])


def _train_diffusion(
    recipe: Recipe, out: Path, vae_params: Any, data: _LatentData, bar: Progress
) -> StableDiffusion:
    tokenizer = build_tokenizer(VOCABULARY, out / "tokenizer", training.TEXT_LENGTH)
    unet = UNet2DConditionModel(training.unet_config())
    text_encoder = CLIPTextModel(training.text_config(len(tokenizer)))
    unet_key, text_key, step_key = jax.random.split(jax.random.key(recipe.seed + 4), 3)
    if recipe.start_from:
        model = load_model(model_folder(recipe.start_from))
        params = {
            "unet": model.unet_params,
            "text_encoder": with_vocabulary(model.text_params, model.tokenizer, tokenizer),
        }
    else:
        size = training.LATENT_SIZE
        pixels, text = (
            jnp.zeros((1, size, size, 4)),
            jnp.zeros((1, training.TEXT_LENGTH, training.TEXT_WIDTH)),
        )
        ids = jnp.zeros((1, training.TEXT_LENGTH), jnp.int32)
        params = {
            "unet": jax.jit(unet.init)(unet_key, pixels, jnp.zeros(1, jnp.int32), text)["params"],
            "text_encoder": jax.jit(text_encoder.init)(text_key, ids)["params"],
        }
    optimizer = training.make_optimizer(recipe.unet_learning_rate, recipe.unet_steps)
    schedule = noise_schedule_from_config(training.SCHEDULER_CONFIG)
    factor = jnp.float32(data.scaling_factor)
    count = len(data.ids)
    mesh = batch_mesh(recipe.unet_batch)

    # A batch spans at most two passes over the pictures.
    @lru_cache(maxsize=2)
    def order(turn: int) -> np.ndarray:
        return np.random.default_rng((recipe.seed, turn)).permutation(count)

    def rows_of(index: int) -> np.ndarray:
        """Rows of a batch; each pass over the pictures has a different order."""
        places = range(index * recipe.unet_batch, (index + 1) * recipe.unet_batch)
        return np.asarray([order(place // count)[place % count] for place in places])

    def step(state: TrainingState, data: Any, index: jax.Array, rows: jax.Array) -> Any:
        batch = tuple(part[rows] for part in data)
        mean, log_variance, ids, shares = jax.lax.with_sharding_constraint(batch, sharded(mesh))
        return training.diffusion_step(
            state,
            jax.random.fold_in(step_key, index),
            (mean, log_variance),
            ids,
            shares,
            schedule,
            factor,
            unet=unet,
            text_encoder=text_encoder,
            optimizer=optimizer,
        )

    parts = (data.mean, data.log_variance, data.ids, data.shares)
    state, parts = jax.device_put((training.start_training(params, optimizer), parts), replicated(mesh))
    state = run_steps(
        "unet",
        out / "diffusion",
        state,
        recipe.unet_steps,
        recipe.save_every,
        step,
        parts,
        rows_of,
        bar,
        most=most_together(),
    )
    average = jax.device_get(state.average)
    return make_model(
        unet_params=average["unet"],
        vae_params=vae_params,
        text_params=average["text_encoder"],
        unet_config=training.unet_config(),
        vae_config=training.vae_config(recipe.image_size, data.scaling_factor),
        text_config=training.text_config(len(tokenizer)),
        tokenizer=tokenizer,
        scheduler_config=training.SCHEDULER_CONFIG,
    )


def sample_pictures(model: StableDiffusion, prompts: Sequence[str], key: jax.Array) -> np.ndarray:
    """Sample pictures (B, H, W, 3) of `prompts`, with the steps and guidance of the reported results."""
    latents = sample(
        model,
        key,
        encode_text(model, prompts),
        encode_text(model, [""]),
        steps=SAMPLING_STEPS,
        guidance_scale=SAMPLING_GUIDANCE,
    )
    return np.asarray(decode_latents(model, latents))


def save_samples(file: Path, model: StableDiffusion, seed: int) -> None:
    """Write a sheet with one sample of each kind, cycling through the colors."""
    colors = list(COLORS)
    prompts = [
        caption(Sentence(kind, colors[index % len(colors)], view="front")) for index, kind in enumerate(KINDS)
    ]
    pictures = sample_pictures(model, prompts, jax.random.key(seed))
    labels = [prompt.removeprefix("The front view of ") for prompt in prompts]
    shown = [enlarge(picture, minimum=_SHOWN_SIZE) for picture in to_uint8(pictures)]
    save_png(file, image_grid(shown, labels, columns=len(shown) // 2))
