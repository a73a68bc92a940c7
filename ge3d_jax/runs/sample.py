"""Text-to-image sampling, one image at a time, to see whether a model works."""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ge3d_jax.core.caching import keep_compiled_code
from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.pipeline import StableDiffusion, compiled_decode, encode_text, predict_epsilon
from ge3d_jax.diffusion.sampling import sampling_times
from ge3d_jax.diffusion.schedule import ddim_step
from ge3d_jax.runs.folder import prepare_folder, slug, versions, write_json
from ge3d_jax.runs.model_choice import FilePath, ModelChoice
from ge3d_jax.runs.request import check_finite, check_negative_prompt, check_prompt, check_seed, picture_size
from ge3d_jax.viewer.sheet import SMALLEST_PICTURE, enlarge, image_grid, save_png, to_uint8

_LARGEST_COLUMNS = 4
# Labels on the sheet are truncated to this many characters.
_LONGEST_LABEL = 28


@partial(jax.jit, donate_argnames="x")
def _guided_step(
    model: StableDiffusion,
    x: jax.Array,
    texts: jax.Array,
    guidance: jax.Array,
    now: jax.Array,
    then: jax.Array,
) -> jax.Array:
    """One DDIM step of one image; `texts` (2, L, D) embeds the negative prompt and the prompt."""
    empty, wanted = jnp.split(predict_epsilon(model, jnp.concatenate([x, x]), now, texts), 2)
    return ddim_step(model.schedule, x, empty + guidance * (wanted - empty), now, then)


def sample_picture(
    model: StableDiffusion,
    key: jax.Array,
    text: jax.Array,
    negative_text: jax.Array,
    *,
    steps: int,
    guidance_scale: float,
    size: int,
    on_step: Callable[[], None] | None = None,
) -> np.ndarray:
    """Sample one image by DDIM with classifier-free guidance.

    The result is the same as that of `diffusion.sampling.sample`, but each step is a separate compiled call,
    so that progress can be shown.

    Args:
        model: the model.
        key: PRNG key for the initial noise.
        text: (L, D) embedding of the prompt.
        negative_text: (L, D) embedding of the negative prompt.
        steps: number of UNet evaluations.
        guidance_scale: s in ε_∅ + s·(ε_y − ε_∅).
        size: edge length in pixels, from `picture_size`.
        on_step: called after each step.

    Returns:
        The image, (size, size, 3) in [0, 1].
    """
    edge = size // model.vae.config.downscale
    x = jax.random.normal(key, (1, edge, edge, model.unet.config.in_channels))
    texts, guidance = jnp.stack([negative_text, text]), jnp.float32(guidance_scale)
    times = sampling_times(model.schedule.steps, steps, model.schedule.timestep_spacing)
    for now, then in zip(times[:-1], times[1:], strict=True):
        x = _guided_step(model, x, texts, guidance, now, then)
        if on_step is not None:
            x.block_until_ready()
            on_step()
    return np.asarray(compiled_decode(model, x))[0]


def _shown(prompt: str) -> str:
    return prompt if len(prompt) <= _LONGEST_LABEL else prompt[: _LONGEST_LABEL - 1] + "…"


def sample_to_folder(
    prompts: Sequence[str],
    *,
    model: ModelChoice | FilePath | None = None,
    negative_prompt: str = "",
    steps: int = 25,
    guidance_scale: float = 7.5,
    seed: int = 0,
    count: int = 1,
    size: int | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Path:
    """Sample images of each prompt and write them, along with a sheet of all images.

    Args:
        prompts: what to show.
        model: a `ModelChoice`, or the location of the model; None means the bundled model.
        negative_prompt: what not to show.
        steps: see `sample_picture`.
        guidance_scale: see `sample_picture`.
        seed: seed of the first image of each prompt; the others have consecutive seeds.
        count: number of images per prompt.
        size: edge length in pixels; None means the size that the model was trained on.
        out: output folder; None means outputs/sample-<first prompt>.
        progress: whether to report progress on standard error.

    Returns:
        The folder, with <number>-<prompt>-<seed>.png, sheet.png, and config.json.

    Raises:
        UserError: an input is invalid.
    """
    keep_compiled_code()
    if not prompts:
        raise UserError('There is no prompt; say what to show, e.g. "a red mushroom".')
    if count < 1:
        raise UserError(f"The number of pictures is {count}; give at least 1.")
    check_seed(seed)
    check_seed(seed + count - 1)
    choice = ModelChoice.of(model)
    place = choice.check()
    for prompt in prompts:
        check_prompt(prompt, place)
    check_negative_prompt(negative_prompt, place)
    folder = prepare_folder(out if out is not None else Path("outputs") / f"sample-{slug(prompts[0])}")
    diffusion = choice.load(place)
    size = picture_size(diffusion, size)
    sampling_times(diffusion.schedule.steps, steps, diffusion.schedule.timestep_spacing)
    embeddings = encode_text(diffusion, [*prompts, negative_prompt])
    seeds = range(seed, seed + count)

    console = Console(stderr=True, quiet=not progress)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn())
    pictures, labels, files = [], [], []
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("compiling", total=len(prompts) * count * steps)
        for number, (prompt, text) in enumerate(zip(prompts, embeddings[:-1], strict=True)):
            for one in seeds:
                begun = time.monotonic()
                picture = sample_picture(
                    diffusion,
                    jax.random.key(one),
                    text,
                    embeddings[-1],
                    steps=steps,
                    guidance_scale=guidance_scale,
                    size=size,
                    on_step=lambda: bar.update(task, advance=1, description="sampling"),
                )
                check_finite(picture, place)
                pictures.append(enlarge(to_uint8(picture), minimum=SMALLEST_PICTURE))
                labels.append(f"{_shown(prompt)}, seed {one}")
                files.append(f"{number:02d}-{slug(prompt)}-{one}.png")
                save_png(folder / files[-1], pictures[-1])
                seconds = time.monotonic() - begun
                console.print(f"{files[-1]}: {seconds:.1f} s", highlight=False, markup=False)
    save_png(folder / "sheet.png", image_grid(pictures, labels, columns=min(_LARGEST_COLUMNS, len(pictures))))
    write_json(
        folder / "config.json",
        {
            "prompts": list(prompts),
            "files": files,
            "negative_prompt": negative_prompt,
            "steps": steps,
            "guidance_scale": guidance_scale,
            "seed": seed,
            "count": count,
            "size": size,
            **choice.describe(),
            "versions": versions(),
        },
    )
    return folder
