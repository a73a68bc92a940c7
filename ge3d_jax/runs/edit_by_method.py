"""Edits an image with one or more methods of `ge3d_jax.editing`, and writes a page to compare them."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.caching import keep_compiled_code
from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import setting_names, to_tree, with_overrides
from ge3d_jax.diffusion.denoiser import Denoiser
from ge3d_jax.diffusion.pipeline import StableDiffusion, compiled_decode, encode_images, encode_text, tokenize
from ge3d_jax.editing.base import Edited, EditTask, Method, edit_times
from ge3d_jax.editing.control import WordEdit, local_blend, no_blend, open_control, prompt_control
from ge3d_jax.editing.methods import METHODS
from ge3d_jax.editing.plain import read_blend, read_words
from ge3d_jax.editing.words import token_words
from ge3d_jax.formats.pictures import load_image
from ge3d_jax.runs.edit_folder import edit_folder
from ge3d_jax.runs.folder import prepare_folder, slug, versions, write_json
from ge3d_jax.runs.model_choice import FilePath, ModelChoice
from ge3d_jax.runs.request import check_negative_prompt, check_prompt, check_seed, picture_size
from ge3d_jax.splatting.cameras import orbit_camera
from ge3d_jax.toybox.world.captions import parse
from ge3d_jax.toybox.world.render import FIELD_OF_VIEW, RADIUS, render_sentence
from ge3d_jax.viewer.comparison import save_comparison
from ge3d_jax.viewer.sheet import SMALLEST_PICTURE, enlarge, image_grid, save_png, to_uint8

# Polar angle for rendering a source prompt: the middle of the range of the Toybox world's cameras.
SOURCE_POLAR_DEGREES = 70.0
# Number of states of each trajectory to show on the sheet.
_SHOWN_STATES = 6
_MOST_COLUMNS = 8
# Words that mark where an image may change, and where it must not.
Blend = tuple[Sequence[str], Sequence[str]]


def draw_source(sentence: str, azimuth_degrees: float, size: int) -> jax.Array:
    """Render a sentence of the Toybox world on white, (size, size, 3). Raises UserError for other text."""
    camera = orbit_camera(
        azimuth=jnp.deg2rad(azimuth_degrees),
        polar=jnp.deg2rad(SOURCE_POLAR_DEGREES),
        radius=RADIUS,
        fov=FIELD_OF_VIEW,
        size=size,
    )
    return render_sentence(parse(sentence), camera, background=jnp.ones(3))


def choose_methods(names: Sequence[str], overrides: Mapping[str, Any]) -> dict[str, Method]:
    """Look up methods by name and override their settings; each setting must belong to at least one method.

    Raises:
        UserError: a method or setting does not exist, or a value is invalid.
    """
    known = ", ".join(METHODS)
    if not names:
        raise UserError(f"There is no method; use one of {known}.")
    for name in names:
        if name == "ge3d":
            raise UserError(
                "The method ge3d has other settings and results than these: use it alone, by ge3d edit or "
                "edit_2d."
            )
        if name not in METHODS:
            raise UserError(f"There is no method {name!r}; use one of {known}.")
    chosen = {name: METHODS[name]() for name in names}
    settings = {setting for method in chosen.values() for setting in setting_names(method)}
    unknown = [setting for setting in overrides if setting not in settings]
    if unknown:
        # The first method's error suggests settings with similar names.
        with_overrides(next(iter(chosen.values())), {unknown[0]: overrides[unknown[0]]})
    return {
        name: with_overrides(
            method, {key: value for key, value in overrides.items() if key in setting_names(method)}
        )
        for name, method in chosen.items()
    }


def check_words(methods: Mapping[str, Method], edit: WordEdit, blend: Blend | None) -> None:
    """Check that no method would ignore the given words. Raises UserError."""
    for name, method in methods.items():
        if edit != WordEdit() and not method.controls_attention:
            raise UserError(
                f"The method {name} does not control attention; leave out words, form, cross, and "
                "self_attention for it."
            )
        if blend is not None and not method.blends:
            raise UserError(f"The method {name} does not blend; leave out blend for it.")


def make_task(
    model: StableDiffusion,
    images: jax.Array,
    prompts: Sequence[tuple[str, str]],
    *,
    steps: int,
    edits: Sequence[WordEdit] | None,
    blends: Sequence[Blend] | None,
    negative_prompt: str = "",
) -> EditTask:
    """Create the editing task for P images.

    Args:
        model: the model.
        images: (P, H, W, 3) in [0, 1].
        prompts: P pairs of source and target prompts.
        steps: the method's number of steps N.
        edits: how to edit attention, for each image; None leaves it unchanged.
        blends: what may change and what must not, for each image; None lets everything change.
        negative_prompt: replaces the empty prompt.

    Raises:
        UserError: the prompts cannot be aligned, or words do not occur in them.
    """
    pictures, length = len(prompts), tokenize(model, [""]).shape[1]
    texts = encode_text(model, [text for pair in prompts for text in pair] + [negative_prompt])
    control = open_control(pictures, length, steps, model.unet.config)
    blend = no_blend(pictures, length, steps)
    if edits is not None:
        control = prompt_control(
            edits,
            model.tokenizer,
            prompts,
            steps=steps,
            length=length,
            unet=model.unet.config,
        )
    if blends is not None:
        blend = local_blend(
            model.tokenizer,
            prompts,
            [may for may, _ in blends],
            kept=[kept for _, kept in blends],
            steps=steps,
            length=length,
        )
    return EditTask(
        encode_images(model, images, None), texts[:-1:2], texts[1:-1:2], texts[-1], control, blend
    )


def edit_by_method(
    prompt: str,
    *,
    methods: Sequence[str],
    image: FilePath | None = None,
    source_prompt: str | None = None,
    azimuth_degrees: float = 30.0,
    model: ModelChoice | FilePath | None = None,
    negative_prompt: str = "",
    words: str | None = None,
    blend: str | None = None,
    form: str = "refine",
    cross: float = 0.4,
    self_attention: float = 0.6,
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
    out: FilePath | None = None,
) -> Path:
    """Edit an image with one or more methods, and write the result of each.

    Args:
        prompt: what the edited image should show.
        methods: keys of `METHODS`.
        image: file of the image; None renders `source_prompt`, a sentence of the Toybox world.
        source_prompt: what the image shows.
        azimuth_degrees: azimuth of the camera for a rendered image, 0 = front.
        model: a `ModelChoice`, or the location of the model; None means the bundled model.
        negative_prompt: what the image should not show.
        words: how to treat individual words, see `editing.plain.read_words`.
        blend: where the image may change, see `editing.plain.read_blend`.
        form, cross, self_attention: see `WordEdit`.
        overrides: settings of the methods to change, by name.
        seed: random seed for methods that draw noise.
        out: output folder; None means outputs/edit-<prompt>.

    Returns:
        The folder, with source.png, compare.html, compare.png, and config.json, and a folder for each method
        with edited.png, inversion.png, trajectory.png, and words.png, where applicable.

    Raises:
        UserError: an input is invalid.
    """
    keep_compiled_code()
    if image is None and source_prompt is None:
        raise UserError(
            "Neither image nor source_prompt is given; give a picture to edit, or a sentence to draw."
        )
    chosen = choose_methods(methods, overrides or {})
    for name, method in chosen.items():
        if method.needs_source and source_prompt is None:
            raise UserError(
                f"The method {name} needs to know what the picture shows; give source_prompt, too."
            )
    edit = WordEdit(form=form, cross=cross, self_attention=self_attention)
    edit = edit if words is None else read_words(words, edit)
    blended = None if blend is None else read_blend(blend)
    check_words(chosen, edit, blended)
    check_seed(seed)
    choice = ModelChoice.of(model)
    place = choice.check()
    pair = (source_prompt or prompt, prompt)
    for text in pair:
        check_prompt(text, place)
    check_negative_prompt(negative_prompt, place)
    if image is None:
        parse(pair[0])
    folder = prepare_folder(out if out is not None else Path("outputs") / f"edit-{slug(prompt)}")
    diffusion = choice.load(place)
    size = picture_size(diffusion, None)
    for method in chosen.values():
        edit_times(diffusion.schedule.steps, method.steps, method.first_time)
    source = (
        draw_source(pair[0], azimuth_degrees, size)
        if image is None
        else jnp.asarray(load_image(image, size=size))
    )
    tasks = {
        name: make_task(
            diffusion,
            source[None],
            [pair],
            steps=method.steps,
            edits=[edit],
            blends=None if blended is None else [blended],
            negative_prompt=negative_prompt,
        )
        for name, method in chosen.items()
    }

    shown = enlarge(to_uint8(np.asarray(source)), minimum=SMALLEST_PICTURE)
    with edit_folder(folder):
        save_png(folder / "source.png", shown)
        seconds: dict[str, float] = {}
        edits = {"source": shown}
        denoiser = Denoiser(diffusion, diffusion.schedule, 1)
        for name, method in chosen.items():
            begun = time.monotonic()
            edited = jax.block_until_ready(method(tasks[name], denoiser, jax.random.key(seed)))
            seconds[name] = time.monotonic() - begun
            if not np.isfinite(np.asarray(edited.latents)).all():
                raise UserError(
                    f"The method {name} returned non-finite values; compute in float32, or lower its scale."
                )
            edits[name] = _write_method(folder / name, diffusion, edited, pair)
        save_png(
            folder / "compare.png",
            image_grid(list(edits.values()), list(edits), columns=min(_MOST_COLUMNS, len(edits))),
        )
        _write_page(folder, pair, edits, seconds)
        write_json(
            folder / "config.json",
            {
                "prompt": prompt,
                "image": str(image) if image is not None else None,
                "source_prompt": source_prompt,
                "azimuth_degrees": azimuth_degrees if image is None else None,
                **choice.describe(),
                "negative_prompt": negative_prompt,
                "words": words,
                "blend": blend,
                "form": form,
                "cross": cross,
                "self_attention": self_attention,
                "seed": seed,
                "methods": {name: to_tree(method) for name, method in chosen.items()},
                "seconds": seconds,
                "versions": versions(),
            },
        )
    return folder


def _write_page(
    folder: Path, prompts: tuple[str, str], edits: Mapping[str, np.ndarray], seconds: Mapping[str, float]
) -> None:
    files: dict[str, str | os.PathLike[str]] = {"source": folder / "source.png"}
    for name in edits:
        for label, file in (("edited", "edited.png"), ("inversion", "inversion.png")):
            path = folder / name / file
            if name != "source" and path.exists():
                files[f"{name}, {label}"] = path
    rows = [("from", prompts[0]), ("to", prompts[1])]
    rows += [(name, f"{value:.1f} s, with compiling") for name, value in seconds.items()]
    first = next(label for label in files if label != "source")
    save_comparison(
        folder / "compare.html",
        title=f"{prompts[0]} → {prompts[1]}",
        pictures=files,
        first_right=first,
        rows=rows,
    )


def _some(count: int) -> np.ndarray:
    """Indices of the states to show, including the first and the last."""
    return np.unique(np.round(np.linspace(0, count - 1, _SHOWN_STATES)).astype(int))


def _write_method(
    folder: Path, model: StableDiffusion, edited: Edited, prompts: tuple[str, str]
) -> np.ndarray:
    """Write the results of a method for one image, and return the edited image as written."""
    prepare_folder(folder)

    def pictures(latents: jax.Array) -> list[np.ndarray]:
        decoded = to_uint8(np.asarray(compiled_decode(model, latents)))
        return [enlarge(picture, minimum=SMALLEST_PICTURE) for picture in decoded]

    ways = {"up": edited.up, "source": edited.source, "down": edited.down}
    rows = {label: (states, _some(len(states))) for label, states in ways.items() if states is not None}
    columns = max(len(indices) for _, indices in rows.values())
    shown: list[np.ndarray] = []
    labels: list[str] = []
    for label, (states, indices) in rows.items():
        row = pictures(states[indices, 0])
        # Shorter rows end in blank pictures.
        blanks = columns - len(row)
        shown += row + [np.full_like(row[0], 255)] * blanks
        labels += [f"{label} {index}" for index in indices] + [""] * blanks
    save_png(folder / "trajectory.png", image_grid(shown, labels, columns=columns))
    (result,) = pictures(edited.latents)
    save_png(folder / "edited.png", result)
    if edited.source is not None:
        save_png(folder / "inversion.png", pictures(edited.source[-1])[0])
    if edited.maps is not None:
        save_png(folder / "words.png", _words_sheet(model, edited, prompts))
    return result


def _words_sheet(model: StableDiffusion, edited: Edited, prompts: tuple[str, str]) -> np.ndarray:
    """A sheet with the attention map of each word of both prompts, brightest where it is strongest."""
    assert edited.maps is not None
    shown: list[np.ndarray] = []
    labels: list[str] = []
    for prompt, maps in zip(prompts, np.asarray(edited.maps[:, 0], np.float32), strict=True):
        for word, positions in token_words(model.tokenizer, prompt, maps.shape[-1]):
            attention = maps[..., positions].sum(axis=-1)
            bright = attention / max(float(attention.max()), float(np.finfo(np.float32).tiny))
            gray = to_uint8(np.repeat(bright[..., None], 3, axis=-1))
            shown.append(enlarge(gray, minimum=SMALLEST_PICTURE))
            labels.append(word)
    return image_grid(shown, labels, columns=min(_MOST_COLUMNS, len(shown)))
