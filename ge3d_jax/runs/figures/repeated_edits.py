"""Images edited repeatedly, each time all the way to a loss's target.

Symbols: z, latent of the image; r(z), residual of a loss; n, number of residuals that lead to the target, so
that an edit is z ← z − n·r(z). For SDS that is z ← x̂_0 of one noised state (w(t) = √((1−ᾱ_t)/ᾱ_t), n = 1),
for GE3D the mean of the targets of its nodes. The length T of the run is the number of edits.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.tables import counted
from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from ge3d_jax.diffusion.pipeline import StableDiffusion, compiled_decode, encode_images, encode_text
from ge3d_jax.diffusion.sampling import sample
from ge3d_jax.guidance.base import DrawKeys, Loss, Progress, SeenViews
from ge3d_jax.guidance.ge3d import GE3D
from ge3d_jax.guidance.prompts import embed_prompt, view_texts
from ge3d_jax.guidance.sds import SDS
from ge3d_jax.guidance.trajectories import Nodes
from ge3d_jax.metrics.colors import contrast, saturation
from ge3d_jax.metrics.pictures import finite_psnr
from ge3d_jax.metrics.recognition import Gallery, estimate_background, recognize
from ge3d_jax.runs.edit_by_method import SOURCE_POLAR_DEGREES, draw_source
from ge3d_jax.runs.figures.base import Record
from ge3d_jax.runs.request import picture_size
from ge3d_jax.toybox.world.captions import parse
from ge3d_jax.toybox.world.objects import COLORS
from ge3d_jax.training.presets import preset
from ge3d_jax.viewer.sheet import to_uint8
from ge3d_jax.viewer.turntable import Viewpoint, cameras_around

_SAMPLING_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Task:
    """What an image shows, and what it should show.

    Attributes:
        source, target: prompts.
        azimuth_degrees: azimuth of the camera; None if the model's world has no cameras.
    """

    source: str
    target: str
    azimuth_degrees: float | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the figure.

    Attributes:
        preset: the preset that provides the model and the negative prompt.
        tasks: the images; the first one is shown.
        seeds: random seeds of the noise and the times.
        edits: number of edits of each image.
        shown: numbers of edits after which to show the image; the last one is in the table.
        sds_scales: guidance scales of SDS, in its own convention.
        node_counts: numbers of nodes of GE3D, each a separate way.
        scale: guidance scale of GE3D.
        farthest: the farthest node at the first and at the last edit, regardless of the number of nodes.
    """

    preset: str
    tasks: tuple[Task, ...]
    seeds: tuple[int, ...]
    edits: int = 20
    shown: tuple[int, ...] = (1, 2, 5, 10, 20)
    sds_scales: tuple[float, ...] = (100.0, 7.5)
    node_counts: tuple[int, ...] = (1, 5)
    scale: float = 7.5
    farthest: tuple[int, int] = (600, 300)


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to edit.

    Attributes:
        name: display name.
        loss: the loss whose residual edits the latent.
        steps: n.
    """

    name: str
    loss: Loss
    steps: float


def ways(settings: Settings) -> list[Way]:
    """The ways that the figure compares."""
    found = [
        Way(f"SDS, scale {scale:g}", SDS(scale=scale, weighting="ratio"), 1.0)
        for scale in settings.sds_scales
    ]
    begin, end = settings.farthest
    for count in settings.node_counts:
        # Each jump covers between three quarters and all of its share of the way.
        nodes = Nodes(
            count=count,
            jump_max=(begin // count + 1, end // count + 1),
            jump_min=(3 * begin // (4 * count), 3 * end // (4 * count)),
            max_step=(begin + 1, end + 1),
        )
        loss = GE3D(scale=settings.scale, nodes=nodes)
        assert loss.steps_to_target is not None
        found.append(Way(f"GE3D, {counted(count, 'node')}", loss, loss.steps_to_target))
    return found


@dataclasses.dataclass(frozen=True)
class Pictures:
    """P images to edit.

    Attributes:
        sources: (P, H, W, 3) in [0, 1].
        truths: (P, H, W, 3), the true edits; None if unknown.
        text: embeddings of the target prompts.
    """

    sources: np.ndarray
    truths: np.ndarray | None
    text: ViewTexts


def target_texts(
    model: StableDiffusion, tasks: Sequence[Task], *, negative_prompt: str, use_overhead: bool
) -> ViewTexts:
    """Embed the target prompts for each camera's view, or as they are if there is no camera."""

    def one(task: Task) -> ViewTexts:
        embeddings = embed_prompt(
            partial(encode_text, model),
            task.target,
            negative_prompt=negative_prompt,
            use_overhead=use_overhead,
        )
        azimuth, polar = jnp.deg2rad(jnp.array([[task.azimuth_degrees or 0.0], [SOURCE_POLAR_DEGREES]]))
        text = view_texts(embeddings, azimuth, use_perp_neg=False, polar=polar)
        if task.azimuth_degrees is None:
            return dataclasses.replace(text, positive=embeddings.plain[None])
        return text

    each = [one(task) for task in tasks]

    def joined(name: str) -> jax.Array:
        return jnp.concatenate([getattr(text, name) for text in each])

    return dataclasses.replace(
        each[0], positive=joined("positive"), avoided=joined("avoided"), weights=joined("weights")
    )


def draw_pictures(
    model: StableDiffusion, settings: Settings, *, use_overhead: bool, is_toybox: bool
) -> Pictures:
    """Make the source images: from the Toybox world with their true edits, or sampled from the model.

    Args:
        model: the model.
        settings: settings of the figure.
        use_overhead: whether the model's training captions include the camera's height.
        is_toybox: whether it is a model of the Toybox world.
    """
    tasks, negative_prompt = settings.tasks, preset(settings.preset).prompts.negative_prompt
    text = target_texts(model, tasks, negative_prompt=negative_prompt, use_overhead=use_overhead)
    size = picture_size(model, None)
    if is_toybox:
        sources, truths = (
            np.stack([np.asarray(draw_source(sentence, azimuth or 0.0, size)) for sentence, azimuth in drawn])
            for drawn in (
                [(task.source, task.azimuth_degrees) for task in tasks],
                [(task.target, task.azimuth_degrees) for task in tasks],
            )
        )
        return Pictures(sources, truths, text)
    prompts = [task.source for task in tasks]
    latents = sample(
        model,
        jax.random.key(0),
        encode_text(model, prompts),
        text.negative[None],
        steps=_SAMPLING_STEPS,
        guidance_scale=settings.scale,
    )
    return Pictures(np.asarray(compiled_decode(model, latents)), None, text)


@jax.jit
def _encode(model: StableDiffusion, pictures: jax.Array) -> jax.Array:
    return encode_images(model, pictures, None)


@partial(jax.jit, static_argnames=("loss", "steps", "edits"))
def _edit(
    denoiser: Denoiser,
    latents: jax.Array,
    text: ViewTexts,
    key: jax.Array,
    *,
    loss: Loss,
    steps: float,
    edits: int,
) -> jax.Array:
    pictures, height, width, channels = latents.shape
    shape = (pictures, height, width, channels)
    # The compared losses do not use the cameras.
    cameras = cameras_around(jnp.zeros(pictures), Viewpoint())

    def one(z: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        times_key, noise_key = jax.random.split(jax.random.fold_in(key, k))
        progress = Progress(k, edits)
        drawn = loss.draw(DrawKeys(times=times_key, noise=noise_key, run=key), progress, shape)

        def ask(z: jax.Array) -> jax.Array:
            # Each image counts as a single view, because SDS divides by the number of views.
            scalar, _ = loss((), SeenViews(z, cameras, 1), text, drawn, denoiser, progress)
            return scalar

        moved = z - steps * jax.grad(ask)(z)
        return moved, moved

    return jax.lax.scan(one, latents, jnp.arange(edits))[1]


def edited_latents(
    model: StableDiffusion, latents: jax.Array, text: ViewTexts, way: Way, *, seed: int, edits: int
) -> jax.Array:
    """Edit repeatedly.

    Args:
        model: the model.
        latents: (P, h, w, C), latents of the images.
        text: embeddings of the target prompts.
        way: the way to edit.
        seed: random seed of times and noise.
        edits: number of edits, T.

    Returns:
        The latents after each edit, (T, P, h, w, C).
    """
    denoiser = Denoiser(model, model.schedule, latents.shape[0])
    key = jax.random.key(seed)
    return _edit(denoiser, latents, text, key, loss=way.loss, steps=way.steps, edits=edits)


def measure_pictures(
    pictures: np.ndarray, truths: np.ndarray, tasks: Sequence[Task], gallery: Gallery
) -> dict[str, list[float]]:
    """Measure each of P images; the results are named as in MEASURES.

    Args:
        pictures, truths: (P, H, W, 3) in [0, 1].
        tasks: the tasks, with the target of each image.
        gallery: the recognizer's gallery.
    """
    found = recognize(gallery, pictures, estimate_background(pictures))
    named = [
        (gallery.kinds[kind], list(COLORS)[color])
        for kind, color in zip(found.kinds, found.colors, strict=True)
    ]
    wanted = [(sentence.kind, sentence.color) for sentence in (parse(task.target) for task in tasks)]
    pairs = [
        (ours.reshape(-1, 3), truth.reshape(-1, 3)) for ours, truth in zip(pictures, truths, strict=True)
    ]
    return {
        "psnr": [finite_psnr(ours, truth) for ours, truth in pairs],
        "recognized": [float(ours == truth) for ours, truth in zip(named, wanted, strict=True)],
        "saturation": [saturation(ours) / saturation(truth) for ours, truth in pairs],
        "contrast": [contrast(ours) / contrast(truth) for ours, truth in pairs],
    }


def measure_without_truth(pictures: np.ndarray, sources: np.ndarray) -> dict[str, list[float]]:
    """Saturation and contrast of P images, relative to their sources."""
    pairs = [
        (ours.reshape(-1, 3), source.reshape(-1, 3)) for ours, source in zip(pictures, sources, strict=True)
    ]
    return {
        "saturation": [saturation(ours) / saturation(source) for ours, source in pairs],
        "contrast": [contrast(ours) / contrast(source) for ours, source in pairs],
    }


def edit_and_measure(
    model: StableDiffusion,
    pictures: Pictures,
    way: Way,
    settings: Settings,
    *,
    seed: int,
    gallery: Gallery | None,
) -> Record:
    """Edit in one way with one seed, and measure.

    Args:
        model: the model.
        pictures: the images to edit.
        way: the way to edit.
        settings: settings of the figure.
        seed: random seed of times and noise.
        gallery: the recognizer's gallery; None if no truth is known.

    Returns:
        A record. Numbers, by measure: the P values of the sources, then those after each edit. Arrays:
        `pictures`, uint8 (shown, P, H, W, 3).
    """
    latents = _encode(model, jnp.asarray(pictures.sources))
    after = edited_latents(model, latents, pictures.text, way, seed=seed, edits=settings.edits)
    decoded = [pictures.sources, *(np.asarray(compiled_decode(model, each)) for each in after)]
    rows = [
        measure_without_truth(each, pictures.sources)
        if pictures.truths is None or gallery is None
        else measure_pictures(each, pictures.truths, settings.tasks, gallery)
        for each in decoded
    ]
    numbers = {name: [row[name] for row in rows] for name in rows[0]}
    return Record(numbers, {"pictures": np.stack([to_uint8(decoded[count]) for count in settings.shown])})
