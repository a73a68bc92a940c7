"""An object with what it is judged by: its views and the true ones, from the same cameras."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ge3d_jax.metrics.likeness import Views, object_views, true_views
from ge3d_jax.runs.evaluate import likeness_cameras
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.toybox.world.captions import parse
from ge3d_jax.viewer.sheet import to_uint8


@dataclass(frozen=True)
class Judged:
    """An object that was looked at.

    Attributes:
        prompt: the sentence that it was made from.
        seed: of its run.
        gaussians: its splats.
        views: of the object, 8 once around, the front first.
        truth: of what the sentence describes, from the same cameras.
        seconds: that it took; None if not known.
    """

    prompt: str
    seed: int
    gaussians: Gaussians
    views: Views
    truth: Views
    seconds: float | None = None

    @property
    def pictures(self) -> np.ndarray:
        """float32 (8, 128, 128, 3) on white, as `evaluate.object_pictures`, in steps of 1/255 as in files."""
        return to_uint8(self.views.pictures).astype(np.float32) / 255.0


def see_truths(prompts: Sequence[str]) -> dict[str, Views]:
    """The true views of prompts, to be shared by all their objects; a prompt takes a second or two.

    Args:
        prompts: sentences of the Toybox world; repetitions are traced once.

    Raises:
        UserError: a prompt that is not of the Toybox world.
    """
    sentences = {prompt: parse(prompt) for prompt in prompts}
    cameras = likeness_cameras()
    return {prompt: true_views(sentence, cameras) for prompt, sentence in sentences.items()}


def see(
    prompt: str, seed: int, gaussians: Gaussians, seconds: float | None = None, *, truth: Views | None = None
) -> Judged:
    """Look at an object.

    Args:
        prompt: the sentence that it was made from.
        seed: of its run.
        gaussians: its splats.
        seconds: that it took, if known.
        truth: the prompt's of `see_truths`, not to be traced again.

    Raises:
        UserError: a prompt that is not of the Toybox world.
    """
    if truth is None:
        truth = see_truths([prompt])[prompt]
    return Judged(prompt, seed, gaussians, object_views(gaussians, likeness_cameras()), truth, seconds)
