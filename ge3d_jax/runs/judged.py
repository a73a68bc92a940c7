"""An object together with what it is judged by: its views and the true views, from the same cameras."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import jax
import numpy as np

from ge3d_jax.core.caching import cache_folder
from ge3d_jax.core.files import atomic_path
from ge3d_jax.metrics.likeness import Traced, Views, object_views, paint_views, trace_views
from ge3d_jax.runs.evaluate import likeness_cameras
from ge3d_jax.splatting import cameras
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.toybox.world import objects, render, shapes, textures
from ge3d_jax.toybox.world.captions import parse
from ge3d_jax.toybox.world.render import Layers
from ge3d_jax.viewer.sheet import to_uint8


@dataclass(frozen=True)
class Judged:
    """A rendered object, ready to be judged.

    Attributes:
        prompt: prompt of the object.
        seed: random seed of its run.
        gaussians: its splats.
        views: 8 views of the object in a full turn, starting at the front.
        truth: views of the prompt's ground truth, from the same cameras.
        seconds: how long it took; None if unknown.
    """

    prompt: str
    seed: int
    gaussians: Gaussians
    views: Views
    truth: Views
    seconds: float | None = None

    @property
    def pictures(self) -> np.ndarray:
        """float32 (8, 128, 128, 3) on white, as in `evaluate.object_pictures`, in steps of 1/255."""
        return to_uint8(self.views.pictures).astype(np.float32) / 255.0


def see_truths(prompts: Sequence[str], folder: Path | None = None) -> dict[str, Views]:
    """Render the true views of prompts, to be shared by all their objects.

    A kind takes some seconds to trace. The result is cached in a file and then painted in any color.

    Args:
        prompts: sentences of the Toybox world.
        folder: folder for the files; None means the package's cache.

    Raises:
        UserError: a prompt is not a sentence of the Toybox world.
    """
    sentences = {prompt: parse(prompt) for prompt in prompts}
    kinds = dict.fromkeys(sentence.kind for sentence in sentences.values())
    traced = {kind: _load_traced(kind, folder or cache_folder()) for kind in kinds}
    return {prompt: paint_views(traced[sentence.kind], sentence) for prompt, sentence in sentences.items()}


def _world_fingerprint() -> str:
    """Hash of everything that traced pictures depend on."""
    digest = hashlib.sha256(repr(render.RADIUS).encode())
    for module in (cameras, shapes, textures, objects, render):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:12]


def _load_traced(kind: str, folder: Path) -> Traced:
    """Load a kind, traced from the likeness cameras, from its file; trace and store it the first time."""
    seen_from = likeness_cameras()
    places = np.concatenate([np.ravel(each) for each in jax.tree.leaves(seen_from)])
    looked_from = hashlib.sha256(np.float32(places).tobytes()).hexdigest()[:8]
    file = folder / f"toybox-{kind}-{_world_fingerprint()}-{looked_from}.npz"
    if not file.exists():
        made = trace_views(kind, seen_from)
        with atomic_path(file) as path, open(path, "wb") as stream:
            np.savez_compressed(stream, depths=made.depths, points=made.points, **vars(made.layers))
    with np.load(file) as stored:
        layers = Layers(**{field.name: stored[field.name] for field in fields(Layers)})
        return Traced(layers, stored["depths"], stored["points"])


def see(
    prompt: str, seed: int, gaussians: Gaussians, seconds: float | None = None, *, truth: Views | None = None
) -> Judged:
    """Render an object and its ground truth.

    Args:
        prompt: prompt of the object.
        seed: random seed of its run.
        gaussians: its splats.
        seconds: how long it took, if known.
        truth: the prompt's true views from `see_truths`, to avoid tracing them again.

    Raises:
        UserError: the prompt is not a sentence of the Toybox world.
    """
    if truth is None:
        truth = see_truths([prompt])[prompt]
    return Judged(prompt, seed, gaussians, object_views(gaussians, likeness_cameras()), truth, seconds)
