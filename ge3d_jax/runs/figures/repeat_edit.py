"""Figure 2: one picture edited again and again, each time to where a loss wants it.

Symbols: z, latent of the picture; r(z), a loss's residual; n, how many residuals lead to what it wants, so
that an edit is z ← z − n·r(z). For SDS that is z ← x̂_0 of one noised state (w(t) = √((1−ᾱ_t)/ᾱ_t), n = 1),
for GE3D the mean over its nodes of what each wants. The run's length T is the number of edits.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.settings import to_tree
from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from ge3d_jax.diffusion.pipeline import StableDiffusion, decode_latents, encode_images, encode_text
from ge3d_jax.diffusion.sampling import sample
from ge3d_jax.guidance.base import DrawKeys, Loss, Progress, SeenViews
from ge3d_jax.guidance.ge3d import GE3D
from ge3d_jax.guidance.prompts import embed_prompt, view_texts
from ge3d_jax.guidance.sds import SDS
from ge3d_jax.guidance.trajectories import Nodes
from ge3d_jax.metrics.bootstrap import mean_and_error
from ge3d_jax.metrics.colors import contrast, saturation
from ge3d_jax.metrics.pictures import psnr
from ge3d_jax.metrics.recognition import Gallery, estimate_background, recognize
from ge3d_jax.runs.edit_by_method import SOURCE_POLAR_DEGREES, draw_source
from ge3d_jax.runs.evaluate import model_fingerprint
from ge3d_jax.runs.figures.base import Figure, Made, Record, Work, markdown_table, remember
from ge3d_jax.runs.judging import load_judges
from ge3d_jax.runs.model_choice import ModelChoice
from ge3d_jax.runs.request import check_prompt, knows_overhead, picture_size
from ge3d_jax.toybox import MODELS
from ge3d_jax.toybox.world.captions import parse
from ge3d_jax.toybox.world.objects import COLORS
from ge3d_jax.training.presets import preset
from ge3d_jax.viewer.plot import Line, Panel, check_plotting, draw_plot
from ge3d_jax.viewer.sheet import enlarge, image_grid, to_uint8
from ge3d_jax.viewer.turntable import Viewpoint, cameras_around

_SHOWN_EDGE = 128
_SAMPLING_STEPS = 50
_LOUDEST = 99.0  # decibels, of equal pictures in the files
# What is measured, and how a table names it; each is a mean over the pictures.
MEASURES: Mapping[str, str] = {
    "psnr": "PSNR to the truth, dB",
    "recognized": "recognized",
    "saturation": "saturation, of the truth's",
    "contrast": "contrast, of the truth's",
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What a picture shows, and what it is to show.

    Attributes:
        source, target: sentences.
        azimuth_degrees: of the camera; None where a model does not draw a world with cameras.
    """

    source: str
    target: str
    azimuth_degrees: float | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is edited, and how.

    Attributes:
        preset: whose model and negative prompt are used.
        tasks: the pictures; the first one is shown.
        seeds: of the noise and the times.
        edits: of each picture.
        shown: numbers of edits that are shown; the last one is in the table.
        sds_scales: guidance of SDS, as it counts it.
        node_counts: of GE3D, for each a way of its own.
        scale: guidance of GE3D.
        farthest: the farthest node at the first and at the last edit, whatever the number of nodes.
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


_TASKS = (
    Task("a red mushroom", "a blue mushroom", 30.0),
    Task("a yellow duck", "a green duck", 30.0),
    Task("a blue robot", "a blue house", 30.0),
    Task("a green house", "a red car", -30.0),
    Task("a pink pig", "a purple pig", -45.0),
    Task("a white cat", "an orange cat", 45.0),
    Task("a cyan rocket", "a cyan tree", 0.0),
    Task("a purple gift", "a yellow cupcake", 20.0),
)
SIZES: Mapping[str, Settings] = {
    "small": Settings(preset="toybox64", tasks=_TASKS[:4], seeds=(0,)),
    "full": Settings(preset="toybox", tasks=_TASKS, seeds=(0, 1, 2, 3), node_counts=(1, 3, 5, 10)),
    "paper": Settings(
        preset="paper",
        tasks=(
            Task("a photo of a wooden chair", "a photo of a golden chair"),
            Task("a photo of a cat", "a photo of a lion"),
            Task("a photo of a radio", "A vintage radio, wooden case, retro design, 8K, HDR"),
        ),
        seeds=(0, 1, 2, 3),
        node_counts=(1, 6),
        farthest=(480, 300),
    ),
}


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to edit.

    Attributes:
        name: for people.
        loss: says how the latent is to change.
        steps: n.
    """

    name: str
    loss: Loss
    steps: float


def ways(settings: Settings) -> list[Way]:
    """Those that the figure compares."""
    found = [
        Way(f"SDS, scale {scale:g}", SDS(scale=scale, weighting="ratio"), 1.0)
        for scale in settings.sds_scales
    ]
    begin, end = settings.farthest
    for count in settings.node_counts:
        # Jumps of three quarters to all of the way that there is for each.
        nodes = Nodes(
            count=count,
            jump_max=(begin // count + 1, end // count + 1),
            jump_min=(3 * begin // (4 * count), 3 * end // (4 * count)),
            max_step=(begin + 1, end + 1),
        )
        loss = GE3D(scale=settings.scale, nodes=nodes)
        assert loss.steps_to_target is not None
        found.append(Way(f"GE3D, {_plural(count, 'node')}", loss, loss.steps_to_target))
    return found


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What is edited, of P pictures.

    Attributes:
        sources: (P, H, W, 3) in [0, 1].
        truths: (P, H, W, 3), the true edits; None where nobody knows them.
        text: what they are to show.
    """

    sources: np.ndarray
    truths: np.ndarray | None
    text: ViewTexts


def target_texts(
    model: StableDiffusion, tasks: Sequence[Task], *, negative_prompt: str, use_overhead: bool
) -> ViewTexts:
    """The targets as each camera sees them, or as they stand where there is none."""

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
    """The sources: of the Toybox world with their true edits, or as the model draws them.

    Args:
        model: the model.
        settings: of the figure.
        use_overhead: whether the model was told how high the camera is.
        is_toybox: whether it is one of the Toybox world.
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
    return Pictures(np.asarray(_decode(model, latents)), None, text)


@jax.jit
def _encode(model: StableDiffusion, pictures: jax.Array) -> jax.Array:
    return encode_images(model, pictures, None)


_decode = jax.jit(decode_latents)


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
    # The losses that are compared do not go by cameras.
    cameras = cameras_around(jnp.zeros(latents.shape[0]), Viewpoint())

    pictures, height, width, channels = latents.shape
    shape = pictures, height, width, channels

    def one(z: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        times_key, noise_key = jax.random.split(jax.random.fold_in(key, k))
        progress = Progress(k, edits)
        drawn = loss.draw(DrawKeys(times=times_key, noise=noise_key, run=key), progress, shape)

        def ask(z: jax.Array) -> jax.Array:
            # A view of its own, each: SDS divides by their number.
            scalar, _ = loss((), SeenViews(z, cameras, 1), text, drawn, denoiser, progress)
            return scalar

        moved = z - steps * jax.grad(ask)(z)
        return moved, moved

    return jax.lax.scan(one, latents, jnp.arange(edits))[1]


def edited_latents(
    model: StableDiffusion, latents: jax.Array, text: ViewTexts, way: Way, *, seed: int, edits: int
) -> jax.Array:
    """Edit again and again.

    Args:
        model: the model.
        latents: (P, h, w, C).
        text: what each is to show.
        way: how.
        seed: of times and noise.
        edits: how often, T.

    Returns:
        (T, P, h, w, C), after each edit.
    """
    denoiser = Denoiser(model, model.schedule, latents.shape[0])
    key = jax.random.key(seed)
    return _edit(denoiser, latents, text, key, loss=way.loss, steps=way.steps, edits=edits)


def measure_pictures(
    pictures: np.ndarray, truths: np.ndarray, tasks: Sequence[Task], gallery: Gallery
) -> dict[str, list[float]]:
    """The numbers of each of P pictures, by the names in MEASURES.

    Args:
        pictures, truths: (P, H, W, 3) in [0, 1].
        tasks: what they are to show.
        gallery: of the recognizer.
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
        "psnr": [min(float(psnr(ours, truth)), _LOUDEST) for ours, truth in pairs],
        "recognized": [float(ours == truth) for ours, truth in zip(named, wanted, strict=True)],
        "saturation": [saturation(ours) / saturation(truth) for ours, truth in pairs],
        "contrast": [contrast(ours) / contrast(truth) for ours, truth in pairs],
    }


def measure_without_truth(pictures: np.ndarray, sources: np.ndarray) -> dict[str, list[float]]:
    """Saturation and contrast of P pictures, of those of the sources."""
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
    """One way with one seed.

    Args:
        model: the model.
        pictures: what is edited.
        way: how.
        settings: of the figure.
        seed: of times and noise.
        gallery: of the recognizer; None where no truth is known.

    Returns:
        Numbers: by measure, the P values of the sources, then after each edit. Arrays: `pictures`, uint8
        (shown, P, H, W, 3).
    """
    latents = _encode(model, jnp.asarray(pictures.sources))
    after = edited_latents(model, latents, pictures.text, way, seed=seed, edits=settings.edits)
    decoded = [pictures.sources, *(np.asarray(_decode(model, each)) for each in after)]
    rows = [
        measure_without_truth(each, pictures.sources)
        if pictures.truths is None or gallery is None
        else measure_pictures(each, pictures.truths, settings.tasks, gallery)
        for each in decoded
    ]
    numbers = {name: [row[name] for row in rows] for name in rows[0]}
    return Record(numbers, {"pictures": np.stack([to_uint8(decoded[count]) for count in settings.shown])})


def mean_rows(name: str, records: Sequence[Record], tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """A row for each number of edits: means over pictures and seeds, and standard errors over pictures."""
    measures = list(records[0].numbers)
    rows = []
    for edits in range(len(records[0].numbers[measures[0]])):
        row: dict[str, Any] = {"way": name, "edits": edits}
        for measure in measures:
            by_picture = {
                f"{task.source}, {task.target}": [record.numbers[measure][edits][index] for record in records]
                for index, task in enumerate(tasks)
            }
            mean, error = mean_and_error(by_picture)
            row |= {measure: _rounded(mean), f"{measure}_error": _rounded(error)}
        rows.append(row)
    return rows


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _cell(row: Mapping[str, Any], measure: str) -> str:
    mean, error = row[measure], row[f"{measure}_error"]
    digits = 1 if measure == "psnr" else 2
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def table(rows: Sequence[Mapping[str, Any]], shown: Sequence[int]) -> str:
    """The ways after the first and the last number of edits that are shown, Markdown."""
    measures = [measure for measure in MEASURES if measure in rows[0]]
    first, last = shown[0], shown[-1]
    sources = {"": "the picture as it was"} | {
        MEASURES[measure]: _cell(rows[0], measure) for measure in measures
    }
    lines = [sources]
    for edits in (first, last):
        for row in rows:
            if row["edits"] == edits:
                name = f"{row['way']}, after {_plural(edits, 'edit')}"
                lines.append({"": name} | {MEASURES[measure]: _cell(row, measure) for measure in measures})
    return markdown_table(lines)


def sheet(pictures: Pictures, records: Mapping[str, Record], settings: Settings) -> np.ndarray:
    """The first picture: a row for each way, a column for each number of edits that is shown."""
    source = to_uint8(pictures.sources[0])
    truth = None if pictures.truths is None else to_uint8(pictures.truths[0])
    shown, labels = [], []
    for name, record in records.items():
        shown += [source, *record.arrays["pictures"][:, 0]]
        labels.append(name)
        for edits in settings.shown:
            decibels = record.numbers["psnr"][edits][0] if "psnr" in record.numbers else None
            quality = "" if decibels is None else f", {decibels:.1f} dB"
            labels.append(_plural(edits, "edit") + quality)
        if truth is not None:
            shown.append(truth)
            labels.append("truth")
    columns = len(shown) // len(records)
    return image_grid([enlarge(one, minimum=_SHOWN_EDGE) for one in shown], labels, columns=columns)


def curves(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Every measure against the number of edits."""
    names = list(dict.fromkeys(row["way"] for row in rows))
    panels = []
    for measure, label in MEASURES.items():
        if measure not in rows[0]:
            continue
        lines = []
        for name in names:
            own = [row for row in rows if row["way"] == name]
            errors = [row[f"{measure}_error"] for row in own]
            lines.append(
                Line(
                    name,
                    [row["edits"] for row in own],
                    [row[measure] for row in own],
                    () if None in errors else errors,
                )
            )
        level = None if measure == "psnr" else 1.0
        panels.append(Panel(label, "edits", "", lines, level))
    return draw_plot(panels, columns=2)


def make(work: Work) -> Made:
    """Edit, measure and draw."""
    return make_of(SIZES[work.size], work, gallery=None)


def make_of(settings: Settings, work: Work, *, gallery: Gallery | None) -> Made:
    """The figure of any settings.

    Args:
        settings: what is edited, and how.
        work: with what; its size is not looked at.
        gallery: of the recognizer; None for the whole one.

    Raises:
        UserError: a prompt that the model does not know; see also `ModelChoice`.
    """
    check_plotting()
    default = settings.preset if settings.preset in MODELS else None
    choice = ModelChoice.of(work.model if work.model is not None else default)
    place = choice.check()
    for task in settings.tasks:
        check_prompt(task.source, place)
        check_prompt(task.target, place)
    is_toybox = settings.preset in MODELS
    model = choice.load(place)
    pictures = draw_pictures(model, settings, use_overhead=knows_overhead(place), is_toybox=is_toybox)
    if is_toybox and gallery is None:
        gallery = load_judges(work.report)
    fingerprint = model_fingerprint(place)
    records: dict[str, list[Record]] = {}
    for way in ways(settings):
        for seed in settings.seeds:
            asked = {
                "tasks": [dataclasses.asdict(task) for task in settings.tasks],
                "edits": settings.edits,
                "shown": settings.shown,
                "loss": to_tree(way.loss),
                "steps": way.steps,
                "seed": seed,
                "model": fingerprint,
            }
            work.report(f"{way.name}, seed {seed}: {_plural(settings.edits, 'edit')}")
            record = remember(
                work.folder / f"{way.name.replace(', ', '-').replace(' ', '-').lower()}-{seed}",
                asked,
                partial(edit_and_measure, model, pictures, way, settings, seed=seed, gallery=gallery),
            )
            records.setdefault(way.name, []).append(record)
    rows = [row for name, own in records.items() for row in mean_rows(name, own, settings.tasks)]
    return Made(
        rows=rows,
        text=table(rows, settings.shown),
        pictures={
            "": sheet(pictures, {name: own[0] for name, own in records.items()}, settings),
            "curves": curves(rows),
        },
    )


FIGURE = Figure(
    title="One picture edited again and again",
    source="Figure 2",
    expected="SDS drives the colors up, at its own scale at once and at 7.5 soon, and so does GE3D with a "
    "single node; with several nodes the picture stays near the true edit however often it is edited.",
    seconds={"small": 60, "full": 900},
    make=make,
)
