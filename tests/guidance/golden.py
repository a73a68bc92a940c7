"""Reference data of the losses: cases with their draws, and denoisers that reproduce the authors' runs.

A case is one iteration of a method's public code (tests/golden/losses/README.md). Its denoiser uses either
the bundled network or the predictions stored in the case; the latter need no network and run in float64.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.core.random import Draws
from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from ge3d_jax.diffusion.pipeline import StableDiffusion
from ge3d_jax.diffusion.schedule import NoiseSchedule
from ge3d_jax.diffusion.weights.checkpoint import load_model
from ge3d_jax.guidance.base import DrawKeys, Loss, Progress, SeenViews
from ge3d_jax.guidance.prompts import view_mixture
from ge3d_jax.splatting.cameras import Camera
from ge3d_jax.toybox import model_folder

FOLDER = Path(__file__).parent.parent / "golden" / "losses"
NEGATIVE = "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, low-resolution."
# Wording of a view: before the prompt (GE3D, ISM) or after it (threestudio's family).
HEAD, TAIL = "The {view} view of {prompt}", "{prompt}, {view} view"
# Tolerance for matching stored states: the rounding of the float32 runs.
_SAME_STATE = 1e-3


@functools.cache
def _arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def embedding(text: str) -> np.ndarray:
    """(L, D), the embedding of one of the stored texts."""
    inputs = _arrays("inputs")
    (index,) = np.flatnonzero(inputs["text/prompts"] == text)
    return inputs["text/embeddings"][index]


@dataclasses.dataclass(frozen=True)
class Case:
    """One iteration of a method's public code.

    Attributes:
        arrays: arrays by name; see the README.
        settings: scalars and short lists.
    """

    arrays: dict[str, np.ndarray]
    settings: dict[str, Any]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    @property
    def latents(self) -> np.ndarray:
        """z, (B, h, w, C)."""
        return _arrays("inputs")["latents/source"][self.settings["source"]]

    @property
    def noise(self) -> np.ndarray:
        """(B, h, w, C) noise, broadcast over views that share it."""
        return np.broadcast_to(self["noise"], self.latents.shape)

    @property
    def times(self) -> np.ndarray:
        """(B,) int32, `t`, broadcast over views that share it."""
        return np.broadcast_to(np.asarray(self.settings["t"], np.int32), len(self.latents))

    def texts(self, form: str = TAIL, *, negative: str = NEGATIVE) -> ViewTexts:
        """The text embeddings: with Perp-Neg if the case has weights, else one view's wording per camera."""
        azimuths = np.atleast_1d(self.settings["azimuth_degrees"])
        prompt = self.settings["prompt"]
        views = {view: embedding(form.format(view=view, prompt=prompt)) for view in ("front", "side", "back")}
        avoided = np.zeros((len(azimuths), 0, *views["front"].shape), np.float32)
        weights = np.zeros((len(azimuths), 0), np.float32)
        if "weights" in self.settings:
            in_front, share = (np.asarray(each) for each in view_mixture(jnp.deg2rad(azimuths)))
            pairs = [("front", "side") if front else ("side", "back") for front in in_front]
            positive = np.stack(
                [r * views[near] + (1 - r) * views[far] for r, (near, far) in zip(share, pairs, strict=True)]
            )
            avoiding = [("front", "side") if front else ("side", "front") for front in in_front]
            avoided = np.stack([np.stack([views[view] for view in pair]) for pair in avoiding])
            weights = np.asarray(self.settings["weights"], np.float32)
        else:
            positive = np.stack([views[facing_view(azimuth)] for azimuth in azimuths])
        arrays = (positive, avoided, weights, embedding(negative), embedding(""), embedding(prompt))
        return ViewTexts(*(jnp.asarray(array) for array in arrays))


def facing_view(azimuth: float, half_width: float = 45.0) -> str:
    """The view named by threestudio without Perp-Neg: front and back within ± `half_width` degrees."""
    distance = abs((azimuth + 180.0) % 360.0 - 180.0)
    return "front" if distance < half_width else "back" if distance > 180.0 - half_width else "side"


def load_case(name: str, case: str) -> Case:
    """Load a case from tests/golden/losses/{name}.npz."""
    found = {
        key.removeprefix(f"{case}/"): value
        for key, value in _arrays(name).items()
        if key.startswith(f"{case}/")
    }
    return Case(found, json.loads(str(found.pop("settings"))))


def load_tables(name: str) -> dict[str, np.ndarray]:
    """Load all arrays of a file that is not a case."""
    return _arrays(name)


def schedule() -> NoiseSchedule:
    """The authors' float32 table of ᾱ_t, converted to float64 if enabled."""
    table = _arrays("inputs")["schedule/alphas_cumprod"]
    return NoiseSchedule(jnp.asarray(table, jnp.result_type(float)))


@functools.cache
def bundled_model() -> StableDiffusion:
    """The bundled model, with ε computed from the authors' table of ᾱ_t."""
    file = model_folder("toybox64") / "unet" / "diffusion_pytorch_model.safetensors"
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    expected = str(_arrays("inputs")["model/sha256_unet"])
    assert found == expected, (
        f"The bundled UNet ({found[:16]}) is not the one the golden data of the losses were made with "
        f"({expected[:16]}): what passes through the network has to be made again; stored predictions hold."
    )
    model = load_model(model_folder("toybox64"))
    table = schedule().alphas_cumprod
    return dataclasses.replace(model, schedule=dataclasses.replace(model.schedule, alphas_cumprod=table))


@dataclasses.dataclass(frozen=True)
class Answer:
    """A stored prediction.

    Attributes:
        epsilon: (B, h, w, C).
        time: () or (B,).
        text: (L, D) or (B, L, D).
        state: (B, h, w, C), the x it belongs to; None if it is not stored.
    """

    epsilon: np.ndarray
    time: Any
    text: Any
    state: np.ndarray | None = None


def _answer(model: dict[str, jax.Array], x: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
    views = model["epsilon"].shape[1]
    # The denoiser repeats all views for each text in turn.
    view = jnp.arange(x.shape[0]) % views
    t = jnp.broadcast_to(t, view.shape)

    def off(stored: jax.Array, asked: jax.Array) -> jax.Array:
        """(answers, inputs): the largest difference, or 0 if the state was not stored."""
        stored = stored[:, view]
        difference = jnp.where(jnp.isnan(stored), 0.0, jnp.abs(stored - asked))
        return jnp.max(difference.reshape(*difference.shape[:2], -1), axis=-1)

    far = off(model["text"], text) + off(model["time"], t) + off(model["state"], x)
    answers = model["epsilon"][jnp.argmin(far, axis=0), view]
    # Inputs without a stored prediction give NaN, which fails every comparison.
    found = jnp.min(far, axis=0) < _SAME_STATE
    return jnp.where(found[:, None, None, None], answers, jnp.nan)


def stored_denoiser(answers: Sequence[Answer]) -> Denoiser:
    """A denoiser that returns the stored predictions, and NaN for any other text, time or state.

    It processes all views at once, and computes in float64 if enabled.
    """
    shape = answers[0].epsilon.shape
    views = shape[0]
    tokens = np.shape(answers[0].text)[-2:]
    model = {
        "epsilon": [answer.epsilon for answer in answers],
        "time": [np.broadcast_to(answer.time, (views,)) for answer in answers],
        "text": [np.broadcast_to(answer.text, (views, *tokens)) for answer in answers],
        "state": [np.full(shape, np.nan) if a.state is None else a.state for a in answers],
    }
    stacked = {name: jnp.asarray(np.stack(each), jnp.result_type(float)) for name, each in model.items()}
    return Denoiser(stacked, schedule(), views, _answer)


def see(latents: np.ndarray, camera_to_world: np.ndarray | None = None) -> SeenViews:
    """All views of an iteration on one device, in the current default precision."""
    views = len(latents)
    poses = np.tile(np.eye(4), (views, 1, 1)) if camera_to_world is None else camera_to_world
    cameras = Camera(jnp.linalg.inv(jnp.asarray(poses)), jnp.ones((views, 4)), 64, 64)
    return SeenViews(jnp.asarray(latents, jnp.result_type(float)), cameras, views)


@functools.partial(jax.jit, static_argnames="loss")
def _gradient(
    latents: jax.Array,
    seen: SeenViews,
    text: ViewTexts,
    drawn: Draws,
    denoiser: Denoiser,
    progress: Progress,
    *,
    loss: Loss,
) -> Any:
    def scalar(z: jax.Array) -> Any:
        return loss((), dataclasses.replace(seen, latents=z), text, drawn, denoiser, progress)

    return jax.grad(scalar, has_aux=True)(latents)


def gradient_of(
    loss: Loss,
    latents: np.ndarray,
    text: ViewTexts,
    drawn: Draws,
    denoiser: Denoiser,
    progress: Progress,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The gradient at z, (B, h, w, C), and the metrics of a loss without learned parameters."""
    seen = see(latents)
    gradient, numbers = _gradient(seen.latents, seen, text, drawn, denoiser, progress, loss=loss)
    return np.asarray(gradient), {name: np.asarray(value) for name, value in numbers.items()}


def largest_difference(value: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference ÷ the largest expected value, as in the README's tolerances."""
    difference = np.abs(np.asarray(value) - np.asarray(expected))
    return float(np.max(difference) / np.max(np.abs(expected)))


def draw_keys(iteration: int) -> DrawKeys:
    """Random keys of an iteration of one run."""
    times, noise = jax.random.split(jax.random.fold_in(jax.random.key(1), iteration))
    return DrawKeys(times, noise, jax.random.key(2))
