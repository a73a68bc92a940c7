"""The parts of an edit: an image's latents, two prompts, and a method that leads from one to the other.

A method is a subclass of `Method`: a frozen dataclass that holds its own settings. It knows nothing about
words, files, or devices; it only calls the denoiser, with the attention control that comes with the task. To
add a method, write one file and add one line to the dictionary in `editing/methods.py`.

Symbols: P images; h, w, C, the shape of a latent; L tokens and D channels of a text embedding; N steps, at
the times t_0 > t_1 > … > t_{N−1} and finally 0; z*, an image's latents along the inversion trajectory.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import check_at_least
from ge3d_jax.diffusion.denoiser import Denoiser
from ge3d_jax.editing.control import LocalBlend, PromptControl

# The sampler settings published for editing with Stable Diffusion 1.4, except edit-friendly DDPM and Imagic.
PUBLISHED_STEPS = 50
PUBLISHED_SCALE = 7.5


@struct.dataclass
class EditTask:
    """An editing task.

    Attributes:
        latents: (P, h, w, C), the images' latents: the posterior mean.
        source: (P, L, D), embeddings of the prompts that describe the images.
        target: (P, L, D), embeddings of the prompts that describe the desired result.
        empty: (L, D), embedding of the empty prompt.
        control: what the target prompts inherit from the sources, for N steps; a method that runs fewer steps
            uses the first ones.
        blend: where the images may change; also for N steps.
    """

    latents: jax.Array
    source: jax.Array
    target: jax.Array
    empty: jax.Array
    control: PromptControl
    blend: LocalBlend

    @property
    def pictures(self) -> int:
        """The number of images, P."""
        return self.latents.shape[0]

    @property
    def empties(self) -> jax.Array:
        """(P, L, D), the empty prompt, repeated for each image."""
        return jnp.broadcast_to(self.empty, self.source.shape)


@struct.dataclass
class Edited:
    """The result of running a method on P images.

    Attributes:
        up: (U + 1, P, h, w, C), the inversion trajectory, starting with the images themselves.
        down: (N + 1, P, h, w, C), the denoising trajectory for the target, ending with the edited images.
        source: (N + 1, P, h, w, C), the denoising trajectory for the source: the method's reconstruction;
            None if the method does not reconstruct.
        maps: (2, P, mh, mw, L), attention to the words of source and target, summed over all steps; None if
            the method does not record attention.
        masks: (N, P, h, w) bool, where the blend allowed changes; None if the method does not blend.
        numbers: named arrays that record the progress of an inner optimization.
    """

    up: jax.Array
    down: jax.Array
    source: jax.Array | None = None
    maps: jax.Array | None = None
    masks: jax.Array | None = None
    numbers: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

    @property
    def latents(self) -> jax.Array:
        """(P, h, w, C), the latents of the edited images."""
        return self.down[-1]


def edit_times(schedule_steps: int, steps: int, first_time: int) -> np.ndarray:
    """Return the times of N steps followed by a final 0, (N + 1,) int32, decreasing.

    The times are T // N apart, and the smallest is `first_time`: 1 in the published model files, 0 in the
    schedulers of the original editing code, where the last step down and the first step up do nothing.

    Raises:
        UserError: there are more steps than times.
    """
    ratio = schedule_steps // steps if steps > 0 else 0
    if ratio == 0 or (steps - 1) * ratio + first_time >= schedule_steps:
        raise UserError(
            f"{steps} steps do not fit into the model's {schedule_steps} times; choose between 1 and "
            f"{schedule_steps // 2}."
        )
    times = np.arange(steps)[::-1] * ratio + first_time
    return np.append(times, 0).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Method:
    """Base class of the editing methods; see the module docstring.

    Attributes:
        steps: N, for both inversion and denoising.
        first_time: see `edit_times`.
        scale: s, the guidance scale during denoising.
    """

    # Whether the method needs the source prompt, uses the task's attention control, and uses its blend.
    needs_source: ClassVar[bool] = True
    controls_attention: ClassVar[bool] = True
    blends: ClassVar[bool] = True

    steps: int = PUBLISHED_STEPS
    first_time: int = 0
    scale: float = PUBLISHED_SCALE

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        check_at_least(steps=(self.steps, 1), first_time=(self.first_time, 0))

    def times(self, denoiser: Denoiser) -> jax.Array:
        """(N + 1,) int32, decreasing to 0. Raises UserError if the steps do not fit the schedule."""
        return jnp.asarray(edit_times(denoiser.schedule.steps, self.steps, self.first_time))

    def __call__(self, task: EditTask, denoiser: Denoiser, key: jax.Array) -> Edited:
        """Edit the images of a task; methods that need random noise draw it with `key`."""
        raise NotImplementedError


def per_step(array: jax.Array, steps: int) -> jax.Array:
    """Repeat an array for each of N steps: (N, *shape)."""
    return jnp.broadcast_to(array, (steps, *array.shape))
