"""Training the bundled model from scratch, in stages that survive an interruption.

Stages, each stored in the run's folder: traced views (views.npz), autoencoder (vae/), latents and captions
(latents.npz), UNet and text encoder (diffusion/), the finished model (model/) and a sheet of samples. A stage
that exists is not repeated; the two training stages continue from their last saved state with the same
numbers as an uninterrupted run, because batches and keys depend only on the step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from ge3d_jax.toybox.model import training
from ge3d_jax.toybox.model.dataset import Views, paint_pictures, plan_pictures, trace_views
from ge3d_jax.toybox.model.training import TrainingState
from ge3d_jax.toybox.world.captions import VOCABULARY, Sentence, caption
from ge3d_jax.toybox.world.objects import COLORS, KINDS
from ge3d_jax.training.checkpoints import has_tree, restore_tree, save_tree
from ge3d_jax.viewer.sheet import enlarge, image_grid, save_png, to_uint8

_ENCODING_BATCH = 32
_SHOWN_SIZE = 128
_SAMPLING_STEPS = 25
_SAMPLING_GUIDANCE = 5.0
_LOSS_WINDOW = 100  # number of steps over which the displayed loss is averaged


@dataclass(frozen=True)
class Recipe:
    """Every number of a training run.

    Attributes:
        seed: of cameras, pictures, initial parameters and batches.
        views_per_kind: traced views of each kind.
        pictures: pictures encoded for the UNet.
        vae_steps: optimizer steps of the autoencoder.
        vae_batch: pictures per step of the autoencoder.
        vae_learning_rate: peak learning rate of the autoencoder.
        unet_steps: optimizer steps of the UNet and the text encoder.
        unet_batch: pictures per step of the UNet.
        unet_learning_rate: peak learning rate of the UNet and the text encoder.
        save_every: number of steps between saved states.
    """

    seed: int = 0
    views_per_kind: int = 256
    pictures: int = 32768
    vae_steps: int = 600
    vae_batch: int = 16
    vae_learning_rate: float = 5e-3
    unet_steps: int = 5200
    unet_batch: int = 48
    unet_learning_rate: float = 3e-3
    save_every: int = 250


def train(recipe: Recipe, out: Path, install: Path | None = None) -> Path:
    """Run all stages that `out` does not hold yet.

    Args:
        recipe: the numbers. Stages that `out` already holds keep the numbers they were made with.
        out: the run's folder.
        install: a second folder to write the finished model to.

    Returns:
        The model's folder.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[loss]}")) as bar:
        views = _views(recipe, out / "views.npz", bar)
        vae_params = _train_vae(recipe, out / "vae", views, bar)
        data = _latents(recipe, out, views, vae_params, bar)
        model = _train_diffusion(recipe, out, vae_params, data, bar)
    for folder in filter(None, (out / "model", install)):
        save_model(folder, model)
        # Tells the package that prompts are sentences of the Toybox world.
        with atomic_path(folder / "toybox.json") as path:
            path.write_text('{"language": "toybox"}\n')
    save_samples(out / "samples.png", load_model(out / "model"), recipe.seed)
    return out / "model"


def _save_arrays(file: Path, **arrays: np.ndarray) -> None:
    with atomic_path(file) as path:
        np.savez(path, allow_pickle=False, **arrays)


def _views(recipe: Recipe, file: Path, bar: Progress) -> Views:
    if not file.exists():
        task = bar.add_task("views", total=len(KINDS), loss="")
        views = trace_views(jax.random.key(recipe.seed), recipe.views_per_kind, lambda _: bar.advance(task))
        _save_arrays(file, layers=views.layers, kinds=views.kinds, azimuths=views.azimuths)
    with np.load(file) as stored:
        return Views(stored["layers"], stored["kinds"], stored["azimuths"])


def run_steps(
    name: str,
    folder: Path,
    state: TrainingState,
    steps: int,
    save_every: int,
    step: Callable[[TrainingState, int], tuple[TrainingState, jax.Array]],
    bar: Progress,
) -> TrainingState:
    """Take steps from the last saved state (or `state`) up to `steps`, saving along the way."""
    if has_tree(folder):
        state = restore_tree(folder, state)
    task = bar.add_task(name, total=steps, completed=int(state.step), loss="")
    losses: list[jax.Array] = []
    with (folder.parent / f"{name}.loss.txt").open("a") as log:
        for index in range(int(state.step), steps):
            state, loss = step(state, index)
            losses.append(loss)
            if len(losses) == _LOSS_WINDOW:
                mean = float(np.mean(jax.device_get(losses)))
                losses.clear()
                bar.update(task, loss=f"loss {mean:.4f}")
                print(index + 1, f"{mean:.5f}", file=log, flush=True)
            bar.advance(task)
            if (index + 1) % save_every == 0 or index + 1 == steps:
                save_tree(folder, state)
    return state


def _train_vae(recipe: Recipe, folder: Path, views: Views, bar: Progress) -> Any:
    vae = AutoencoderKL(training.vae_config())
    size = (1, training.IMAGE_SIZE, training.IMAGE_SIZE, 3)
    params = vae.init(jax.random.key(recipe.seed + 1), jnp.zeros(size))["params"]
    optimizer = training.make_optimizer(recipe.vae_learning_rate, recipe.vae_steps)
    count, batch = recipe.vae_steps * recipe.vae_batch, recipe.vae_batch
    plan = plan_pictures(np.random.default_rng(recipe.seed), views, count)
    key = jax.random.key(recipe.seed + 2)

    mesh = batch_mesh(batch)

    def step(state: TrainingState, index: int) -> tuple[TrainingState, jax.Array]:
        images = paint_pictures(views, plan, np.arange(index * batch, (index + 1) * batch))
        return training.vae_step(
            state,
            jax.random.fold_in(key, index),
            jax.device_put(images, sharded(mesh)),
            vae=vae,
            optimizer=optimizer,
        )

    state = jax.device_put(training.start_training(params, optimizer), replicated(mesh))
    state = run_steps("vae", folder, state, recipe.vae_steps, recipe.save_every, step, bar)
    return jax.device_get(state.average)


@dataclass(frozen=True)
class _LatentData:
    """Training data of the UNet and the text encoder.

    Attributes:
        mean: float16 (N, h, w, C), mean of the latents' posterior, unscaled.
        log_variance: float16 (N, h, w, C), its log variance.
        ids: int32 (N, 2, L), tokens of the captions.
        shares: float32 (N,), see `PicturePlan`.
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
        vae = AutoencoderKL(training.vae_config())
        encode = jax.jit(
            lambda images: vae.apply({"params": vae_params}, 2.0 * images - 1.0, method="encode")
        )
        plan = plan_pictures(np.random.default_rng(recipe.seed + 3), views, recipe.pictures)
        mesh = batch_mesh(_ENCODING_BATCH)
        moments = []
        starts = range(0, recipe.pictures, _ENCODING_BATCH)
        for start in bar.track(starts, task_id=bar.add_task("latents", total=len(starts), loss="")):
            # The last batch wraps around so that all have one shape; the surplus is cut off below.
            rows = np.arange(start, start + _ENCODING_BATCH) % recipe.pictures
            images = jax.device_put(paint_pictures(views, plan, rows), sharded(mesh))
            mean, log_variance = encode(images)
            moments.append((np.asarray(mean, np.float16), np.asarray(log_variance, np.float16)))
        tokenizer = build_tokenizer(VOCABULARY, out / "tokenizer", training.TEXT_LENGTH)
        sentences = [sentence for pair in plan.captions for sentence in pair]
        tokens = tokenizer(sentences, padding="max_length", max_length=training.TEXT_LENGTH)["input_ids"]
        ids = np.asarray(tokens, np.int32).reshape(len(plan.captions), 2, -1)
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
    size = training.LATENT_SIZE
    text = jnp.zeros((1, training.TEXT_LENGTH, training.TEXT_WIDTH))
    params = {
        "unet": unet.init(unet_key, jnp.zeros((1, size, size, 4)), jnp.zeros(1, jnp.int32), text)["params"],
        "text_encoder": text_encoder.init(text_key, jnp.zeros((1, training.TEXT_LENGTH), jnp.int32))[
            "params"
        ],
    }
    optimizer = training.make_optimizer(recipe.unet_learning_rate, recipe.unet_steps)
    schedule = noise_schedule_from_config(training.SCHEDULER_CONFIG)
    factor = jnp.float32(data.scaling_factor)
    count = len(data.ids)
    mesh = batch_mesh(recipe.unet_batch)

    def rows_of(index: int) -> np.ndarray:
        """Rows of the batch; each pass over the pictures has a different order."""
        places = np.arange(index * recipe.unet_batch, (index + 1) * recipe.unet_batch)
        orders = {
            turn: np.random.default_rng((recipe.seed, int(turn))).permutation(count)
            for turn in set(places // count)
        }
        return np.asarray([orders[position // count][position % count] for position in places])

    def step(state: TrainingState, index: int) -> tuple[TrainingState, jax.Array]:
        rows = rows_of(index)
        batch = (data.mean[rows], data.log_variance[rows], data.ids[rows], data.shares[rows])
        mean, log_variance, ids, shares = jax.device_put(batch, sharded(mesh))
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

    state = jax.device_put(training.start_training(params, optimizer), replicated(mesh))
    state = run_steps("unet", out / "diffusion", state, recipe.unet_steps, recipe.save_every, step, bar)
    average = jax.device_get(state.average)
    return make_model(
        unet_params=average["unet"],
        vae_params=vae_params,
        text_params=average["text_encoder"],
        unet_config=training.unet_config(),
        vae_config=training.vae_config(data.scaling_factor),
        text_config=training.text_config(len(tokenizer)),
        tokenizer=tokenizer,
        scheduler_config=training.SCHEDULER_CONFIG,
    )


def sample_pictures(model: StableDiffusion, prompts: Sequence[str], key: jax.Array) -> np.ndarray:
    """Pictures (B, H, W, 3) of `prompts`, with the steps and guidance used for the reported numbers."""
    latents = sample(
        model,
        key,
        encode_text(model, prompts),
        encode_text(model, [""]),
        steps=_SAMPLING_STEPS,
        guidance_scale=_SAMPLING_GUIDANCE,
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
