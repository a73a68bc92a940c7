"""Results of the authors' programs on the bundled model (golden/editing/README.md), and that model.

The network is compiled once for all tests and called step by step within `jax.disable_jit`, because compiling
a whole method would take longer than all its steps.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.diffusion.denoiser import Denoiser
from ge3d_jax.diffusion.pipeline import StableDiffusion, predict_controlled, predict_epsilon
from ge3d_jax.diffusion.weights.checkpoint import load_model
from ge3d_jax.editing.base import EditTask
from ge3d_jax.editing.control import WordEdit, no_blend, prompt_control
from ge3d_jax.editing.descent import Plan, descend
from ge3d_jax.toybox import model_folder

FOLDER = Path(__file__).parent.parent / "golden" / "editing"
# The model whose edits were stored; with different weights, only the arrays of two files remain valid.
MODEL = model_folder("toybox64")
_WEIGHTS = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")
# Rows of the compiled network: a picture's two prompts, conditional and unconditional.
_ROWS = 4
TOKENS = 24
FORMS = {"color": "replace", "kind": "replace", "refine": "refine"}


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """Load all arrays of a file."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def latents(array: np.ndarray) -> np.ndarray:
    """Convert to channels-last."""
    return np.moveaxis(array, -3, -1)


@functools.cache
def model() -> StableDiffusion:
    """The bundled model with the authors' table of ᾱ_t; skips the test if the model differs."""
    stored = arrays("sources")
    found = [hashlib.sha256((MODEL / f"{name}.safetensors").read_bytes()).hexdigest() for name in _WEIGHTS]
    if sorted(found) != sorted(stored["weights_sha256"].tolist()):
        pytest.skip("The golden edits were made with other weights than the bundled model's.")
    loaded = load_model(MODEL)
    table = jnp.asarray(stored["alphas_cumprod"])
    return dataclasses.replace(loaded, schedule=dataclasses.replace(loaded.schedule, alphas_cumprod=table))


@functools.cache
def double_model() -> StableDiffusion:
    """The bundled model with its UNet in float64; use it only within `jax.enable_x64`.

    The schedule is unchanged: in the authors' float64 runs, its values and their roots are float32, too.
    """
    single = model()

    def exact(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), tree)

    return dataclasses.replace(
        single,
        unet=single.unet.clone(dtype=jnp.float64),
        unet_params=exact(single.unet_params),
        vae_params={},
        text_params={},
    )


_ask = jax.jit(predict_epsilon)
_ask_controlled = jax.jit(predict_controlled)


def _predict(model: Any, x: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
    def padded(array: jax.Array) -> jax.Array:
        return jnp.pad(array, ((0, _ROWS - len(array)), *((0, 0),) * (array.ndim - 1)))

    with jax.disable_jit(False):
        return _ask(model, padded(x), jnp.asarray(t, jnp.int32), padded(text))[: len(x)]


def _predict_controlled(*asked: Any) -> tuple[jax.Array, jax.Array]:
    with jax.disable_jit(False):
        return _ask_controlled(*asked)


def denoiser() -> Denoiser:
    """The bundled network for one picture; use it only within `jax.disable_jit`."""
    return Denoiser(model(), model().schedule, 1, _predict, _predict_controlled)


def prompts(edit: str) -> tuple[str, str]:
    """The source and target prompts."""
    source, target = arrays("sources")[f"{edit}.prompts"].tolist()
    return source, target


def task(edit: str, *, steps: int = 50, **words: Any) -> EditTask:
    """One of the stored edits, with the settings used in most files; see `WordEdit` for `words`."""
    stored = arrays("sources")
    how = WordEdit(**{"form": FORMS[edit], "cross": 0.4, "self_attention": 0.6, **words})
    empty, source, target = jnp.asarray(stored[f"{edit}.text_embeddings"])
    control = prompt_control(
        [how], model().tokenizer, [prompts(edit)], steps=steps, length=TOKENS, unet=model().unet.config
    )
    picture = jnp.asarray(latents(stored[f"{edit}.latent"]))
    return EditTask(picture, source[None], target[None], empty, control, no_blend(1, TOKENS, steps))


def in_double(tree: Any) -> Any:
    """A tree with its floating-point arrays in float64."""
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )


def uncontrolled(task: EditTask) -> EditTask:
    """The same task without attention control."""
    return dataclasses.replace(task, control=task.control.closed)


def walk(task: EditTask, plan: Plan, steps: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source and target states (K + 1, h, w, C) and masks (K, h, w) of one picture's first steps."""
    way, control = plan.way, task.control
    if steps is not None:
        first = {
            name: getattr(way, name)[:steps] for name in ("conditional", "unconditional", "path", "noise")
        }
        way = dataclasses.replace(way, times=way.times[: steps + 1], **first)
        control = control.first(steps)
    with jax.disable_jit():
        states, _, masks = descend(denoiser(), way, control, task.blend)
    return np.asarray(states[:, 0, 0]), np.asarray(states[:, 1, 0]), np.asarray(masks[:, 0])


def assert_close(found: Any, stored: np.ndarray, tolerance: float) -> None:
    """Assert equality within an absolute tolerance of the README."""
    np.testing.assert_allclose(np.asarray(found), stored, rtol=0, atol=tolerance)
