"""Is a model loaded correctly? Tests that pass with correctly loaded weights and fail otherwise.

With a misplaced tensor or a wrong scaling factor, prediction type, or tokenizer, a model usually still runs
but produces noise. These tests need no reference. With a few drawn images z and their captions, they check
that the model can do what it was trained for: reconstruct images, and separate noise from image in
x_t = √ᾱ_t·z + √(1−ᾱ_t)·ε, better with the right caption and the right time than with wrong ones.

The error of a noise prediction is ‖ε̂ − ε‖²/‖ε‖². A guess that knows only the variance s² of the images has
the error ᾱ_t·s²/(ᾱ_t·s² + 1 − ᾱ_t); correctly loaded weights must do better.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from ge3d_jax.diffusion.pipeline import (
    StableDiffusion,
    decode_latents,
    encode_images,
    encode_text,
    unet_output,
)
from ge3d_jax.diffusion.schedule import add_noise, epsilon_from_output
from ge3d_jax.runs.request import picture_size
from ge3d_jax.toybox.world.captions import Sentence, caption
from ge3d_jax.toybox.world.render import render_sentence, toybox_camera

# Larger images would add nothing and take minutes on a CPU.
_LARGEST_SIZE = 256
# Low, medium, and high noise levels: ᾱ is 0.75, 0.42 and 0.16 in Stable Diffusion's schedule.
_TIMES = (200, 400, 600)
# The caption matters most when noise hides most of the image, but not all of it.
_CAPTION_TIME = 800
# Given to the network instead of the last of _TIMES, to see whether it uses the time.
_WRONG_TIME = 200

# Bounds. A good autoencoder reconstructs drawn images at 25 dB or more; a gray image has about 10 dB.
_LEAST_PSNR = 20.0
# Scaled latents have a root mean square of about 1; without the factor it would be 1/0.18 or 0.18.
_LATENT_RANGE = (0.4, 2.5)
# Largest error of a correctly loaded network, as a fraction of the blind guess's.
_LARGEST_SHARE = 0.5
# Factor by which the error must increase if the network is given a wrong time.
_LEAST_TIME_FACTOR = 1.1
# Smallest difference between two prompts' embeddings, relative to their size.
_LEAST_TEXT_DIFFERENCE = 0.05


@dataclasses.dataclass(frozen=True)
class Probe:
    """Images to test a model with.

    Attributes:
        pictures: (B, H, W, 3) in [0, 1].
        captions: B descriptions.
    """

    pictures: np.ndarray
    captions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One question and its answer.

    Attributes:
        question: what was tested.
        measured: the result, in words.
        wanted: the expected result for a correctly loaded model, in words.
        otherwise: the result for a random or incorrectly loaded model, and where to look.
        passed: the verdict.
    """

    question: str
    measured: str
    wanted: str
    otherwise: str
    passed: bool


@dataclasses.dataclass(frozen=True)
class Part:
    """One network of a model.

    Attributes:
        name: e.g. "UNet".
        kind: class name.
        parameters: number of parameters.
        dtypes: names of their dtypes, separated by commas.
        bytes: size in memory.
    """

    name: str
    kind: str
    parameters: int
    dtypes: str
    bytes: int


def parts(model: StableDiffusion) -> list[Part]:
    """The three networks of a model."""
    found = []
    for name, module, parameters in (
        ("text encoder", model.text_encoder, model.text_params),
        ("UNet", model.unet, model.unet_params),
        ("VAE", model.vae, model.vae_params),
    ):
        leaves = jax.tree.leaves(parameters)
        dtypes = sorted({leaf.dtype.name for leaf in leaves})
        count, size = sum(leaf.size for leaf in leaves), sum(leaf.nbytes for leaf in leaves)
        found.append(Part(name, type(module).__name__, count, ", ".join(dtypes), size))
    return found


def toybox_probe(size: int) -> Probe:
    """Images of the Toybox world, from the front, `size` pixels wide."""
    sentences = [
        Sentence("mushroom", "red", view="front"),
        Sentence("robot", "blue", view="front"),
        Sentence("duck", "yellow", view="front"),
        Sentence("tree", "green", view="front"),
    ]
    camera = toybox_camera(0.0, jnp.deg2rad(70.0), size=size)
    pictures = [render_sentence(sentence, camera, background=jnp.full(3, 0.9)) for sentence in sentences]
    return Probe(np.stack(pictures), tuple(caption(sentence) for sentence in sentences))


def drawn_probe(size: int) -> Probe:
    """Three simple drawings, `size` pixels wide, with captions in plain English."""
    large = 4 * size  # drawn large and downscaled, for smooth edges

    def canvas(color: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        image = Image.new("RGB", (large, large), color)
        return image, ImageDraw.Draw(image)

    def box(left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
        return tuple(large * edge for edge in (left, top, right, bottom))

    circle, draw = canvas("white")
    draw.ellipse(box(0.2, 0.2, 0.8, 0.8), fill="red")
    meadow, draw = canvas("deepskyblue")
    draw.rectangle(box(0, 0.55, 1, 1), fill="forestgreen")
    board, draw = canvas("white")
    for row in range(4):
        for column in range(4):
            if (row + column) % 2:
                draw.rectangle(box(column / 4, row / 4, (column + 1) / 4, (row + 1) / 4), fill="black")
    small = [
        np.asarray(image.resize((size, size), Image.Resampling.LANCZOS), np.float32) / 255.0
        for image in (circle, meadow, board)
    ]
    captions = (
        "a red circle on a white background",
        "a green meadow under a blue sky",
        "a black and white checkerboard",
    )
    return Probe(np.stack(small), captions)


def probe_size(model: StableDiffusion) -> int:
    """Edge length of the images to test a model with: the model's own size, but at most 256 pixels."""
    return min(_LARGEST_SIZE, picture_size(model, None))


@jax.jit
def _there_and_back(model: StableDiffusion, pictures: jax.Array) -> tuple[jax.Array, jax.Array]:
    latents = encode_images(model, pictures, None)
    return latents, decode_latents(model, latents)


_run_unet = jax.jit(unet_output)


def _finite(model: StableDiffusion) -> Finding:
    bad = []
    for name, parameters in (
        ("text encoder", model.text_params),
        ("UNet", model.unet_params),
        ("VAE", model.vae_params),
    ):
        for path, leaf in jax.tree_util.tree_leaves_with_path(parameters):
            if not bool(jnp.isfinite(leaf).all()):
                bad.append(name + jax.tree_util.keystr(path))
    return Finding(
        "Are all weights finite numbers?",
        f"{len(bad)} tensors are not" + (f", e.g. {bad[0]}" if bad else ""),
        "none",
        "a damaged file, or weights beyond the range of their type",
        not bad,
    )


def _text(embeddings: jax.Array) -> Finding:
    size = jnp.sqrt(jnp.mean(embeddings**2))
    differences = [
        float(jnp.sqrt(jnp.mean((embeddings[i] - embeddings[j]) ** 2)) / size)
        for i in range(len(embeddings))
        for j in range(i)
    ]
    least = min(differences)
    return Finding(
        "Do different prompts have different embeddings?",
        f"they differ by at least {least:.0%} of their size",
        f"at least {_LEAST_TEXT_DIFFERENCE:.0%}",
        "0% or nan: the words do not reach the text encoder, or it is broken",
        least >= _LEAST_TEXT_DIFFERENCE,
    )


def _autoencoder(latents: jax.Array, pictures: np.ndarray, decoded: jax.Array) -> list[Finding]:
    error = float(jnp.mean((decoded - pictures) ** 2))
    psnr = -10.0 * float(np.log10(error)) if error > 0 else np.inf
    spread = float(jnp.sqrt(jnp.mean(latents**2)))
    return [
        Finding(
            "Does the autoencoder reconstruct pictures?",
            f"PSNR {psnr:.1f} dB",
            f"at least {_LEAST_PSNR:.0f} dB",
            "about 10 dB or less, a flat picture: VAE weights are missing or misplaced",
            psnr >= _LEAST_PSNR,
        ),
        Finding(
            "Do latents have the size that the noise schedule expects?",
            f"root mean square {spread:.2f}",
            f"between {_LATENT_RANGE[0]} and {_LATENT_RANGE[1]}, about 1",
            "five times larger or smaller: scaling_factor in vae/config.json is wrong or missing",
            _LATENT_RANGE[0] <= spread <= _LATENT_RANGE[1],
        ),
    ]


def _other_type(prediction_type: str) -> str:
    return "epsilon" if prediction_type == "v_prediction" else "v_prediction"


def _noise(model: StableDiffusion, latents: jax.Array, text: jax.Array) -> list[Finding]:
    """The questions about the UNet; `text` (B, L, D) embeds the images' captions, in order."""
    schedule, count = model.schedule, latents.shape[0]
    noise = jax.random.normal(jax.random.key(0), latents.shape)
    variance = float(jnp.mean(latents**2))
    other = dataclasses.replace(schedule, prediction_type=_other_type(schedule.prediction_type))

    def output(time: int, given: int, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = add_noise(schedule, latents, noise, time)
        return x, _run_unet(model, x, jnp.full(count, given), text)

    def error(epsilon: jax.Array) -> float:
        return float(jnp.mean((epsilon - noise) ** 2) / jnp.mean(noise**2))

    right, shares, swapped_shares = {}, [], []
    for time in _TIMES:
        x, raw = output(time, time, text)
        alpha = float(schedule.alphas_cumprod[time])
        blind = alpha * variance / (alpha * variance + 1.0 - alpha)
        right[time] = error(epsilon_from_output(schedule, raw, x, time))
        shares.append(right[time] / blind)
        swapped_shares.append(error(epsilon_from_output(other, raw, x, time)) / blind)
    hint = "100% or more: UNet weights are missing or misplaced, or prediction_type is wrong"
    if max(shares) >= _LARGEST_SHARE > max(swapped_shares):
        hint = f"these weights fit prediction_type {other.prediction_type}: correct scheduler_config.json"

    # Every image with every caption, starting with its own.
    by_caption = []
    for shift in range(count):
        x, raw = output(_CAPTION_TIME, _CAPTION_TIME, jnp.roll(text, shift, axis=0))
        epsilon = epsilon_from_output(schedule, raw, x, _CAPTION_TIME)
        by_caption.append(np.asarray(jnp.mean((epsilon - noise) ** 2, axis=(1, 2, 3))))
    best = int(np.sum(by_caption[0] < np.min(by_caption[1:], axis=0)))
    last = _TIMES[-1]
    x, raw = output(last, _WRONG_TIME, text)
    # Evaluated at the true time, so that only the time given to the network differs.
    at_wrong_time = error(epsilon_from_output(schedule, raw, x, last))
    return [
        Finding(
            "Does the UNet separate noise from picture?",
            "error at t = "
            + ", ".join(f"{time}: {share:.0%}" for time, share in zip(_TIMES, shares, strict=True))
            + " of a blind guess's error",
            f"at most {_LARGEST_SHARE:.0%}",
            hint,
            max(shares) <= _LARGEST_SHARE,
        ),
        Finding(
            "Does the UNet use the time?",
            f"given t = {_WRONG_TIME} instead of {last}, its error is {at_wrong_time / right[last]:.2f} "
            "times as large",
            f"at least {_LEAST_TIME_FACTOR} times",
            "about 1 or less: the time embedding's weights or settings are wrong",
            at_wrong_time >= _LEAST_TIME_FACTOR * right[last],
        ),
        Finding(
            "Does the right caption help the UNet?",
            f"at t = {_CAPTION_TIME} the right caption is best for {best} of {count} pictures",
            f"{count} of {count}",
            f"about one of {count}: text encoder, tokenizer or cross-attention are wrong",
            best == count,
        ),
    ]


def check(model: StableDiffusion, probe: Probe) -> list[Finding]:
    """Answer all questions about a model; it is loaded correctly if every finding has passed.

    Args:
        model: the model.
        probe: images of size `probe_size(model)` of things that the model knows, with captions.

    Returns:
        One finding per question.
    """
    text = encode_text(model, [*probe.captions, ""])
    latents, decoded = _there_and_back(model, jnp.asarray(probe.pictures))
    return [
        _finite(model),
        _text(text),
        *_autoencoder(latents, probe.pictures, decoded),
        *_noise(model, latents, text[:-1]),
    ]
